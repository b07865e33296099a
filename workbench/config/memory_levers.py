"""What makes a config fit: levers in order of cost, and proposals, each estimated before named.

A lever is a config with one change, so no number is guessed.

Invariant: a proposed config has been estimated and fits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from workbench.config.memory_fit import Counts, Fit, Machine, Verdict, fit, obstacles
from workbench.config.memory_parts import GIB, MIB, StepForm, microbatch_counts
from workbench.config.model_facts import ModelFacts
from workbench.config.schema.config import Config

_SHORTEST_ROW = 256


@dataclass(frozen=True, kw_only=True)
class Lever:
    """A change that takes bytes off.

    Attributes:
        words: what it does.
        overrides: the keys it sets.
        saved_bytes: off the worst rank's total.
        time_ratio: seconds per token against now.
        changes_training: other losses come out.
        can_start: this version's engine runs it.
        verdict: of the config with it.
    """

    words: str
    overrides: Mapping[str, object]
    saved_bytes: int
    time_ratio: float
    changes_training: bool
    can_start: bool
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A config that fits, as overrides of the one that was asked about."""

    overrides: Mapping[str, object]
    total: int
    verdict: Verdict
    time_ratio: float
    changes_training: bool
    can_start: bool


def lever_words(lever: Lever) -> str:
    """Say what a lever does, saves and costs, and how it is pulled."""
    keys = " ".join(f"{key}={value}" for key, value in lever.overrides.items())
    saved = lever.saved_bytes
    amount = f"{saved / GIB:,.2f} GiB" if saved >= 0.1 * GIB else f"{saved / MIB:,.1f} MiB"
    return f"{lever.words} ({keys}) takes {amount} off"


def with_overrides(config: Config, overrides: Mapping[str, object]) -> Config:
    """Give a config with keys of its sections replaced."""
    for key, value in overrides.items():
        section, name = key.split(".")
        changed = msgspec.structs.replace(getattr(config, section), **{name: value})
        config = msgspec.structs.replace(config, **{section: changed})
    return config


def _can_start(config: Config, facts: ModelFacts) -> bool:
    """Say whether this version trains a model so; keys left open do not matter."""
    return next(obstacles(config, facts), None) is None


_CHANGE_TRAINING = (
    "data.max_length",
    "batch.train",
    "memory.sum_dtype",
    "model.dtype",
    "optimizer.name",
    "optimizer.rounding",
)


def as_planned(config: Config, now: Fit) -> Config:
    """Fix what a plan chose, so that a lever's bytes are its own and not another plan's answer."""
    fixed: dict[str, object] = {"batch.microbatches": now.form.microbatches}
    if isinstance(now.form, StepForm) and now.is_gpu:
        form, num_layers = now.form, now.worst.blocks
        fixed["memory.resident_fraction"] = form.resident_blocks(num_layers) / num_layers
        fixed["memory.block_inputs"] = "pinned" if form.pinned_records else "gpu"
        for level, blocks in (("selective", form.selective_blocks), ("none", form.kept_blocks)):
            if blocks == num_layers:
                fixed["memory.recompute"] = level
        if form.full_blocks(num_layers) == num_layers:
            fixed["memory.recompute"] = "full"
    return with_overrides(config, fixed)


def levers(
    config: Config,
    facts: ModelFacts,
    machine: Machine,
    counts: Counts | None,
    now: Fit,
) -> list[Lever]:
    """Try every lever by itself, cheapest first.

    Args:
        config: as it is now.
        facts: of its model.
        machine: what it is held against.
        counts: of its prepared data.
        now: what it takes as it is.
    """
    found_levers = []
    as_now = as_planned(config, now)
    for words, overrides in _single_levers(config, facts, now):
        is_planned_anew = "batch.train" in overrides or "auto" in overrides.values()
        base = config if is_planned_anew else as_now
        found = fit(with_overrides(base, overrides), facts, machine, counts)
        changed = with_overrides(config, overrides)
        saved = now.worst.total - found.worst.total
        if saved <= 0:
            continue
        found_levers.append(
            Lever(
                words=words,
                overrides=overrides,
                saved_bytes=saved,
                time_ratio=_time_ratio(found, now),
                changes_training=any(key in _CHANGE_TRAINING for key in overrides),
                can_start=_can_start(changed, facts),
                verdict=found.verdict,
            )
        )
    return sorted(
        found_levers, key=lambda lever: (lever.changes_training, round(lever.time_ratio, 2))
    )


def _time_ratio(found: Fit, now: Fit) -> float:
    return (found.seconds / found.step_tokens) / (now.seconds / now.step_tokens)


def _single_levers(
    config: Config, facts: ModelFacts, now: Fit
) -> Iterator[tuple[str, dict[str, object]]]:
    """Give what can be tried, in words and as overrides."""
    memory, form = config.memory, now.form
    is_layer_major = isinstance(form, StepForm)
    if isinstance(form, StepForm) and now.is_gpu:
        opened = _opened(config)
        if opened:
            yield "let the plan choose", opened
        if not form.pinned_records:
            yield "keep block inputs in pinned RAM", {"memory.block_inputs": "pinned"}
        resident = form.resident_blocks(facts.num_layers)
        for share in (0.75, 0.5, 0.25, 0.0):
            blocks = round(share * facts.num_layers)
            if blocks < resident:
                words = f"stream {facts.num_layers - blocks} of {facts.num_layers} blocks"
                yield words, {"memory.resident_fraction": share}
    elif memory.block_inputs != "pinned" and now.is_gpu:
        yield "keep block inputs in pinned RAM", {"memory.block_inputs": "pinned"}
    if isinstance(form, StepForm) and form.full_blocks(facts.num_layers) < facts.num_layers:
        yield "recompute blocks in backward", {"memory.recompute": "full"}
    if not is_layer_major and memory.recompute in ("none", "selective"):
        yield "recompute blocks in backward", {"memory.recompute": "auto"}
    rows = config.batch.train
    more = [count for count in microbatch_counts(rows) if count > form.microbatches]
    if more and is_layer_major:
        for count in dict.fromkeys((more[0], more[-1])):
            yield f"{count} microbatches of {rows // count}", {"batch.microbatches": count}
    if config.optimizer.rounding == "exact":
        yield "round weights stochastically", {"optimizer.rounding": "stochastic"}
    if config.optimizer.name != "adafactor":
        yield "keep factored statistics alone", {"optimizer.name": "adafactor"}
    if config.model.dtype == "float32":
        yield "weights of 16 bits", {"model.dtype": "bfloat16"}
    if form.sum_bytes == 4 and form.weight_bytes == 2:
        yield "gradient sums of 16 bits", {"memory.sum_dtype": "bfloat16"}
    length = config.data.max_length
    if length // 2 >= _SHORTEST_ROW:
        words = f"rows of {length // 2:,} tokens in place of {length:,}"
        yield words, {"data.max_length": length // 2}
    if rows >= 2 and is_layer_major:
        halved: dict[str, object] = {"batch.train": rows // 2}
        stated = config.batch.microbatches
        if stated != "auto" and stated > rows // 2:
            halved["batch.microbatches"] = rows // 2
        yield f"{rows // 2} rows per step in place of {rows}", halved


def proposals(
    config: Config,
    facts: ModelFacts,
    machine: Machine,
    counts: Counts | None,
    now: Fit,
) -> Iterator[Proposal]:
    """Find what fits: without changing training, and, where that cannot start yet, what can.

    Args:
        config: as it is now.
        facts: of its model.
        machine: what it is held against.
        counts: of its prepared data.
        now: what it takes as it is.
    """
    gentle = _first_that_fits(
        config, facts, machine, counts, now, _gentle_candidates(config, facts, now)
    )
    if gentle is not None:
        yield gentle
        if gentle.can_start:
            return
    firm = _first_that_fits(config, facts, machine, counts, now, _firm_candidates(config, now))
    if firm is not None and (gentle is None or firm.can_start):
        yield firm


def _first_that_fits(
    config: Config,
    facts: ModelFacts,
    machine: Machine,
    counts: Counts | None,
    now: Fit,
    candidates: Iterator[dict[str, object]],
) -> Proposal | None:
    """Give the first candidate that fits; of what cannot start, with room to spare if any."""
    tight: Proposal | None = None
    for overrides in candidates:
        changed = with_overrides(config, overrides)
        found = fit(changed, facts, machine, counts)
        if found.verdict not in ("fits", "tight"):
            continue
        proposal = Proposal(
            overrides=overrides,
            total=found.worst.total,
            verdict=found.verdict,
            time_ratio=_time_ratio(found, now),
            changes_training=any(key in _CHANGE_TRAINING for key in overrides),
            can_start=_can_start(changed, facts),
        )
        if found.verdict == "fits" or proposal.can_start:
            return proposal
        tight = tight or proposal
    return tight


_LEFT_OPEN = ("resident_fraction", "block_inputs", "recompute")


def _opened(config: Config) -> dict[str, object]:
    """Give what leaves to the plan all that a config fixes of it."""
    return {f"memory.{key}": "auto" for key in _LEFT_OPEN if getattr(config.memory, key) != "auto"}


def _gentle_candidates(config: Config, facts: ModelFacts, now: Fit) -> Iterator[dict[str, object]]:
    """Give combinations that change no loss beyond rounding, cheapest first."""
    memory = config.memory
    opened = _opened(config)
    if not isinstance(now.form, StepForm):
        base = opened if memory.recompute in ("none", "selective") else {}
        if base:
            yield dict(base)
        if memory.block_inputs != "pinned":
            yield base | {"memory.block_inputs": "pinned"}
        return
    if opened:
        yield dict(opened)
    if config.batch.microbatches != "auto":
        yield opened | {"batch.microbatches": "auto"}


def _firm_candidates(config: Config, now: Fit) -> Iterator[dict[str, object]]:
    """Give combinations that change training too: what is remembered first, then what is seen."""
    base: dict[str, object] = {}
    if isinstance(now.form, StepForm):
        base |= _opened(config)
        if config.batch.microbatches != "auto":
            base["batch.microbatches"] = "auto"
    elif config.memory.recompute not in ("auto", "full"):
        base["memory.recompute"] = "auto"
    for changed in (
        {"optimizer.rounding": "stochastic"} if config.optimizer.rounding == "exact" else {},
        {"optimizer.name": "adafactor"} if config.optimizer.name != "adafactor" else {},
        {"model.dtype": "bfloat16"} if config.model.dtype == "float32" else {},
        {"memory.sum_dtype": "bfloat16"} if config.memory.sum_dtype != "bfloat16" else {},
    ):
        if changed:
            base |= changed
            yield dict(base)
    rows, length = config.batch.train, config.data.max_length
    while length // 2 >= _SHORTEST_ROW:
        length //= 2
        yield base | {"data.max_length": length}
    while rows > 1:
        rows //= 2
        fewer = {"batch.train": rows, "data.max_length": length}
        stated = config.batch.microbatches
        if stated != "auto" and not isinstance(now.form, StepForm):
            fewer["batch.microbatches"] = min(stated, rows)
        yield base | fewer
