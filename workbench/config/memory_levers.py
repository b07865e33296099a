"""Levers: changes of a config that take bytes off, in order of cost.

A lever is a config with one change, so no number is guessed. Which of them are enough says
``memory_ways``.

Invariant: a lever takes bytes off.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from workbench.config.memory_fit import Counts, Fit, Machine, Verdict, fit, obstacles
from workbench.config.memory_parts import GIB, MIB, StepForm, microbatch_counts
from workbench.config.model_facts import ModelFacts
from workbench.config.schema.config import Config

SHORTEST_ROW = 256
"""Tokens of the shortest row that is proposed."""


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
        total: bytes of the worst rank with it.
        host_bytes: of host memory with it.
    """

    words: str
    overrides: Mapping[str, object]
    saved_bytes: int
    time_ratio: float
    changes_training: bool
    can_start: bool
    verdict: Verdict
    total: int
    host_bytes: int


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


def can_start(config: Config, facts: ModelFacts) -> bool:
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


def changes_training(overrides: Mapping[str, object]) -> bool:
    """Say whether other losses come out with those keys."""
    return any(key in _CHANGE_TRAINING for key in overrides)


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
    for words, overrides in single_levers(config, facts, now):
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
                time_ratio=time_ratio(found, now),
                changes_training=changes_training(overrides),
                can_start=can_start(changed, facts),
                verdict=found.verdict,
                total=found.worst.total,
                host_bytes=found.host_needed,
            )
        )
    return sorted(
        found_levers, key=lambda lever: (lever.changes_training, round(lever.time_ratio, 2))
    )


def time_ratio(found: Fit, now: Fit) -> float:
    """Give the seconds of a token against those of another fit."""
    return (found.seconds / found.step_tokens) / (now.seconds / now.step_tokens)


def single_levers(
    config: Config, facts: ModelFacts, now: Fit
) -> Iterator[tuple[str, dict[str, object]]]:
    """Give what can be tried, in words and as overrides."""
    memory, form = config.memory, now.form
    is_layer_major = isinstance(form, StepForm)
    if isinstance(form, StepForm) and now.is_gpu:
        opened = left_open(config)
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
    if length // 2 >= SHORTEST_ROW:
        words = f"rows of {length // 2:,} tokens in place of {length:,}"
        yield words, {"data.max_length": length // 2}
    if rows >= 2 and is_layer_major:
        halved: dict[str, object] = {"batch.train": rows // 2}
        stated = config.batch.microbatches
        if stated != "auto" and stated > rows // 2:
            halved["batch.microbatches"] = rows // 2
        yield f"{rows // 2} rows per step in place of {rows}", halved


_LEFT_OPEN = ("resident_fraction", "block_inputs", "recompute")


def left_open(config: Config) -> dict[str, object]:
    """Give what leaves to the plan all that a config fixes of memory."""
    return {f"memory.{key}": "auto" for key in _LEFT_OPEN if getattr(config.memory, key) != "auto"}
