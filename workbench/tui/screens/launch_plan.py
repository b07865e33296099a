"""What a launch would do, resolved and in words: where it goes, where it begins, how far it runs.

Reads files and asks nobody; blocks, so a thread calls it. Invariant: nothing is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import ConfigError, WorkbenchError
from workbench.tui import words

if TYPE_CHECKING:
    from workbench.config.load import ResolvedConfig
    from workbench.runs.create import PlannedRun


@dataclass(frozen=True)
class Planned:
    """What a launch would do.

    Attributes:
        resolved: the config with what was typed.
        run: where it goes, None where that cannot be said; the check ``folder`` tells why.
        torchrun: the command line of the ranks, "" where it cannot be said.
        model: what the model's config.json says in one line, or what is published of it.
        begins: where it begins and with what, "" where that cannot be said.
    """

    resolved: "ResolvedConfig"
    run: "PlannedRun | None"
    torchrun: str
    model: str
    begins: str


def plan(config: str, typed: Sequence[str], project: Path) -> Planned:
    """Resolve a config with what was typed, and say where a start of it would go.

    Raises:
        ConfigError: every mistake of the config and of what was typed.
    """
    from workbench.config.flags import parse
    from workbench.config.load import offered_flags, resolve
    from workbench.jobs.preflight import output_root
    from workbench.jobs.start_point import start_point, start_words
    from workbench.jobs.torchrun_command import torchrun_command
    from workbench.runs.create import plan_run

    flags = offered_flags(config, project=project)
    overrides, rest = parse(list(typed), flags)
    if rest:
        raise ConfigError(
            f"{rest[0]} is neither a flag of this config nor key=value",
            where="flags",
            remedy="write --flag VALUE or section.key=value",
        )
    resolved = resolve(config, project=project, overrides=overrides)
    run, torchrun, begins = None, "", ""
    try:
        run = plan_run(resolved, output_root(project))
        torchrun = torchrun_command(resolved.config, run.folder).line
        begins = start_words(start_point(resolved.config, run), resolved.config)
    except WorkbenchError:
        pass  # the checks of folder and start say it
    return Planned(resolved, run, torchrun, _model_words(resolved), begins)


def _model_words(resolved: "ResolvedConfig") -> str:
    """Say what the model is: of one that is only named, that its shapes are the published ones."""
    from workbench.jobs.fit import shapes_of

    path = resolved.config.model.path
    if path is None:
        return "no model"
    name, shapes = words.last_parts(path), shapes_of(resolved)
    if shapes is None:
        return name  # the check of the model says why
    facts = shapes.facts
    shape = f"{facts.family}, {facts.num_layers} layers, {facts.num_parameters / 1e6:,.1f} M"
    if shapes.is_published:
        return f"{shapes.name}, not here; as published: {shape}"
    return f"{name}: {shape}"


def plan_facts(planned: Planned) -> list[tuple[str, str]]:
    """Give what a run will do, as names and values."""
    config = planned.resolved.config
    length = words.number_of(config.training.epochs, "epoch")
    if config.training.max_steps:
        length = f"at most {config.training.max_steps:,} steps, {length},"
    optimizer = config.optimizer
    rate = words.learning_rate(optimizer.learning_rate)
    warmup = f"warm-up {optimizer.warmup_steps} → " if optimizer.warmup_steps else ""
    cooldown = f" → cool-down {optimizer.cooldown_steps}" if optimizer.cooldown_steps else ""
    every = config.evaluation.every_steps
    saves = {
        "no": "never",
        "epoch": "every epoch",
        "steps": f"every {config.checkpoints.every_steps} steps",
    }[config.checkpoints.save_strategy]
    # Weights of 32 bits are the ones that are updated: nothing is rounded.
    rounding = "" if config.model.dtype == "float32" else f", {optimizer.rounding} rounding"
    attempt = planned.run.attempt if planned.run else 1
    facts = [
        ("model", planned.model),
        *([("begins", planned.begins)] if planned.begins else []),
        ("length", f"{length} of {config.batch.train} rows, context {config.data.max_length:,}"),
        ("optimizer", f"{optimizer.name}, {warmup}{rate}{cooldown}"),
        (
            "numbers",
            f"{config.model.dtype}{rounding}, seed {config.training.seed}",
        ),
        ("device", config.training.device),
        ("evaluate", f"every {every} steps" if every else "never"),
        ("save", f"{saves}, keep {config.checkpoints.keep} + best"),
    ]
    if planned.run is not None:
        facts.append(
            (
                "folder",
                planned.run.folder.path.name + (f", attempt {attempt}" if attempt > 1 else ""),
            )
        )
        if planned.run.changed:
            facts.append(("changed", ", ".join(planned.run.changed)))
    return facts
