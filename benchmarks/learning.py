"""Show what roundings and optimizers learn, at rates where nearest rounding stalls.

    python benchmarks/learning.py --out learning.jsonl
    python benchmarks/learning.py --tiny

A decoder of 60M parameters is trained on a made-up language, then taught a dialect of it at the
rates of finetuning: half of the phrases have other successors and a quarter another spelling. All
runs of a seed begin with the same weights and see the same rows in the same order:

    master      fp32 weights beside the bf16 ones that forward sees, updated in fp32
    stochastic  bf16 weights, rounded by chance in proportion
    exact       the same fp32 weights as 16 + 16 bits
    nearest     bf16 weights, rounded to nearest

Prints a table, and writes one JSON line per run with the loss of every step. The runs that decide
come first, all on one trained state; more seeds and rates follow as long as the minutes last, and
runs that they leave no time for are named.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from machine import describe, synchronize
from numpy.typing import NDArray
from torch import Tensor

from workbench.data.loader import StepRows, make_batch
from workbench.data.packing import Row
from workbench.errors import WorkbenchError
from workbench.model.decoder import parameter_shapes
from workbench.model.families import Dimensions
from workbench.model.weights import random_weights
from workbench.training.device import prepare_torch
from workbench.training.engine.assemble import assemble
from workbench.training.engine.plan import choose_plan
from workbench.training.engine.step import LayerMajorEngine
from workbench.training.optimizer.choice import OptimizerName, new_optimizer
from workbench.training.optimizer.learning_rate import learning_rate
from workbench.training.optimizer.protocol import (
    NO_COMPANION,
    CompanionParts,
    Optimizer,
    Rounding,
)

# The chance of each successor of a phrase, and of a token that is any other.
_SUCCESSORS, _NOISE = np.array([0.55, 0.25, 0.13, 0.07]), 0.03
_LAST = 50  # steps whose mean is compared
_HELD_OUT = 16  # batches
_UNTIMED = 5  # steps
_COMPILING = 5.0  # seconds that a run may take beside its steps

HEADER = (
    "| optimizer | rounding | rate | seed | last loss | mean of last 50 | to master "
    "| held out | to master | unmoved | s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    phrases: int
    rows: int
    row: int
    first_steps: int
    first_rate: float
    steps: int

    def dimensions(self) -> Dimensions:
        return Dimensions(
            family="llama",
            num_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.hidden // self.heads,
            vocabulary_size=self.vocabulary,
            norm_epsilon=1e-5,
            rope_theta=10000.0,
            max_positions=4096,
            sliding_window=None,
            tied=False,
            initializer_range=0.02,
        )


# A step of the full size is 2.7 TFLOP and some 600 launches: 10 to 20 ms on an H200. The trained
# state and the five runs that decide are 3,300 steps, about a minute of them, beside the half that
# compiling kernels takes.
FULL = Sizes(4096, 1024, 4, 2816, 8, 2000, 16, 512, 800, 5e-4, 500)
TINY = Sizes(256, 64, 2, 128, 2, 40, 4, 128, 60, 5e-3, 12)


@dataclass(frozen=True)
class Language:
    """Phrases, and which follow which: what a document says next depends on topic and phrase.

    Attributes:
        spelling: tokens of all phrases, one behind the other.
        begins: (phrases,) offset of each phrase in ``spelling``.
        lengths: (phrases,) tokens of each.
        successors: (topics, phrases, 4), likeliest first.
        vocabulary: number of tokens.
    """

    spelling: NDArray[np.int64]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    successors: NDArray[np.int64]
    vocabulary: int

    @classmethod
    def draw(cls, sizes: Sizes, seed: int) -> "Language":
        generator = np.random.default_rng([seed, 1])
        lengths = generator.integers(3, 9, size=sizes.phrases)
        return cls(
            spelling=some_tokens(generator, int(lengths.sum()), sizes.vocabulary),
            begins=np.cumsum(lengths) - lengths,
            lengths=lengths,
            successors=generator.integers(0, sizes.phrases, size=(2, sizes.phrases, 4)),
            vocabulary=sizes.vocabulary,
        )

    def dialect(self, seed: int) -> "Language":
        """Other successors for half of the phrases, another spelling for a quarter."""
        generator = np.random.default_rng([seed, 2])
        phrases = self.lengths.size
        is_other = (generator.random((2, phrases)) < 0.5)[:, :, None]
        drawn = generator.integers(0, phrases, size=self.successors.shape)
        is_respelt = np.repeat(generator.random(phrases) < 0.25, self.lengths)
        spelt = some_tokens(generator, self.spelling.size, self.vocabulary)
        return replace(
            self,
            successors=np.where(is_other, drawn, self.successors),
            spelling=np.where(is_respelt, spelt, self.spelling),
        )

    def rows(self, seed: int, num_rows: int, length: int) -> Iterator[Row]:
        """Write rows full of documents of about 30 phrases."""
        generator = np.random.default_rng([seed, 3])
        phrases = self.lengths.size
        num_phrases = length // 3 + 1
        said = np.empty((num_rows, num_phrases), dtype=np.int64)
        begins = generator.random((num_rows, num_phrases)) < 1 / 30
        begins[:, 0] = True
        topics = generator.integers(0, 2, size=(num_rows, num_phrases))
        opening = generator.integers(0, phrases, size=(num_rows, num_phrases))
        choice = generator.choice(4, p=_SUCCESSORS, size=(num_rows, num_phrases))
        topic, phrase = topics[:, 0], opening[:, 0]
        for index in range(num_phrases):
            following = self.successors[topic, phrase, choice[:, index]]
            topic = np.where(begins[:, index], topics[:, index], topic)
            phrase = np.where(begins[:, index], opening[:, index], following)
            said[:, index] = phrase
        for spoken, is_first in zip(said, begins, strict=True):
            lengths = self.lengths[spoken]
            ends = np.cumsum(lengths)
            offsets = np.repeat(self.begins[spoken] - (ends - lengths), lengths)
            ids = self.spelling[offsets + np.arange(offsets.size)][:length]
            noisy = generator.random(length) < _NOISE
            ids = np.where(noisy, some_tokens(generator, length, self.vocabulary), ids)
            starts = (ends - lengths)[is_first]
            starts = starts[starts < length].astype(np.int32)
            targets = np.ones(length, dtype=np.bool_)
            targets[starts] = False
            yield Row(ids.astype(np.int32), targets, starts)


def some_tokens(
    generator: np.random.Generator, num_tokens: int, vocabulary: int
) -> NDArray[np.int64]:
    """Draw tokens of which, as in a text, few are frequent: the square of a uniform number."""
    return (generator.random(num_tokens) ** 2 * vocabulary).astype(np.int64)


def steps_of(language: Language, seed: int, num_steps: int, sizes: Sizes) -> list[StepRows]:
    rows = list(language.rows(seed, num_steps * sizes.rows, sizes.row))
    max_documents = max(row.document_starts.size for row in rows) + 1
    steps = []
    for begin in range(0, len(rows), sizes.rows):
        batch = make_batch(
            rows[begin : begin + sizes.rows],
            num_rows=sizes.rows,
            row_length=sizes.row,
            max_documents=max_documents,
            pad_id=0,
        )
        steps.append(StepRows((batch,), batch.num_targets, batch.num_tokens, 0.0))
    return steps


class FullPrecision:
    """An optimizer that keeps fp32 weights of its own; forward sees their nearest bfloat16."""

    def __init__(self, rule: Optimizer) -> None:
        self._rule = rule
        self._full: dict[str, Tensor] = {}

    def companion(self, shape: tuple[int, ...]) -> CompanionParts:
        return self._rule.companion(shape)

    def update(
        self,
        name: str,
        weight: Tensor,
        gradient: Tensor,
        companion: Mapping[str, Tensor] = NO_COMPANION,
        *,
        step: int,
        learning_rate: float,
        scale: Tensor | None = None,
        ok: Tensor | None = None,
    ) -> Tensor:
        if name not in self._full:
            self._full[name] = weight.float()
        square = self._rule.update(
            name, self._full[name], gradient, companion, step=step, learning_rate=learning_rate,
            scale=scale, ok=ok,
        )  # fmt: skip
        weight.copy_(self._full[name])
        return square

    def named_tensors(self) -> dict[str, Tensor]:
        return self._rule.named_tensors()


@dataclass(frozen=True)
class Run:
    """One run of the comparison; ``rounding`` is a ``Rounding`` or master."""

    optimizer: OptimizerName
    rounding: str
    rate: float
    seed: int

    def engine(self, sizes: Sizes, device: torch.device) -> LayerMajorEngine:
        dims = sizes.dimensions()
        is_master = self.rounding == "master"
        roundings: dict[str, Rounding] = {"stochastic": "stochastic", "exact": "exact"}
        optimizer: Optimizer = new_optimizer(
            self.optimizer,
            parameter_shapes(dims),
            dtype=torch.float32 if is_master else torch.bfloat16,
            device=device,
            seed=self.seed,
            weight_decay=1e-3,
            rounding=roundings.get(self.rounding, "nearest"),
        )
        plan = choose_plan(
            dims,
            dtype=torch.bfloat16,
            sum_dtype="auto",
            microbatches=1,
            rows=sizes.rows,
            row_length=sizes.row,
            budget_bytes=None,
        )
        return assemble(
            plan,
            dims,
            FullPrecision(optimizer) if is_master else optimizer,
            microbatch_tokens=sizes.rows * sizes.row,
            dtype=torch.bfloat16,
            device=device,
        )


@dataclass(frozen=True)
class Found:
    """What a run measured.

    Attributes:
        losses: of every step, before its update.
        held_out: loss over rows that no step trained on, after the last.
        unmoved: share of the weights of matrices that are what they were.
        seconds: of all steps, had the first taken as long as the rest: they compile kernels.
    """

    losses: list[float]
    held_out: float
    unmoved: float
    seconds: float

    @property
    def last(self) -> float:
        return float(np.mean(self.losses[-_LAST:]))


def train(
    run: Run,
    start: Mapping[str, Tensor],
    steps: list[StepRows],
    held_out: list[StepRows],
    sizes: Sizes,
    device: torch.device,
    *,
    cools_down: bool = False,
) -> tuple[Found, dict[str, Tensor]]:
    """Run all steps from the weights ``start``; give what was found, and the weights."""
    engine = run.engine(sizes, device)
    engine.store.load(start)
    begin = time.perf_counter()
    sums = []
    for number, rows in enumerate(steps, start=1):
        if number == _UNTIMED + 1:
            synchronize(device)
            begin = time.perf_counter()
        rate = learning_rate(
            number,
            peak=run.rate,
            warmup_steps=max(1, len(steps) // 25),
            cooldown_steps=len(steps) // 4 if cools_down else 0,
            max_steps=len(steps),
        )
        sums.append(engine.step(rows, number, rate).loss_sum / max(rows.num_targets, 1))
    losses = torch.stack(sums).tolist()
    seconds = (time.perf_counter() - begin) * len(steps) / max(1, len(steps) - _UNTIMED)
    weights = {name: tensor.clone() for name, tensor in engine.store.named_tensors()}
    compared = [name for name in weights if weights[name].dim() == 2]
    same = sum(int((weights[name] == start[name].to(device)).sum()) for name in compared)
    found = Found(
        losses,
        held_out=evaluate(engine, held_out),
        unmoved=same / sum(weights[name].numel() for name in compared),
        seconds=seconds,
    )
    return found, weights


def evaluate(engine: LayerMajorEngine, held_out: list[StepRows]) -> float:
    sums = [engine.evaluate(rows.microbatches[0]) for rows in held_out]
    return sum(float(found.loss_sum) for found in sums) / sum(found.num_targets for found in sums)


@dataclass(frozen=True)
class Beginning:
    """What all runs of a seed share: a trained state, and the rows that come next."""

    weights: dict[str, Tensor]
    steps: list[StepRows]
    held_out: list[StepRows]


def begin_seed(seed: int, sizes: Sizes, device: torch.device) -> tuple[Beginning, Found]:
    """Train the state that all runs of a seed begin with; give what its training found, too."""
    language = Language.draw(sizes, seed)
    dialect = language.dialect(seed)
    held_out = steps_of(dialect, 10 * seed + 2, _HELD_OUT, sizes)
    found, weights = train(
        Run("adafactor", "stochastic", sizes.first_rate, seed),
        random_weights(sizes.dimensions(), seed, torch.bfloat16),
        steps_of(language, 10 * seed + 3, sizes.first_steps, sizes),
        held_out,
        sizes,
        device,
        cools_down=True,
    )
    return Beginning(weights, steps_of(dialect, 10 * seed + 1, sizes.steps, sizes), held_out), found


def planned(seeds: int, rates: list[float]) -> list[Run]:
    """List the runs, those that matter most first, a master before what is compared to it."""
    runs = [
        Run("adafactor", "master", rates[0], 0),
        Run("adafactor", "stochastic", rates[0], 0),
        Run("adafactor", "nearest", rates[0], 0),
        Run("adafactor", "exact", rates[0], 0),
        Run("adamw", "stochastic", rates[0], 0),
    ]
    roundings = ("master", "stochastic", "nearest", "exact")
    # One rate is hardly the best for two optimizers.
    runs += [
        Run(optimizer, "stochastic", times * rates[0], 0)
        for times in (2, 4)
        for optimizer in ("adafactor", "adamw")
    ]
    runs += [
        Run("adamw_8bit", "stochastic", rates[0], 0),
        Run("adamw_4bit", "stochastic", rates[0], 0),
    ]
    runs += [
        Run("adafactor", rounding, rates[0], seed)
        for seed in range(1, seeds)
        for rounding in roundings
    ]
    return runs + [
        Run("adafactor", rounding, rate, seed)
        for rate in rates[1:]
        for seed in range(seeds)
        for rounding in roundings
    ]


def main() -> None:
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a small model, for the CPU")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-6, 1e-6])
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--first-steps", type=int, help="that make the trained state")
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="no run begins that would not end within them"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON lines, one per run")
    given = parser.parse_args()
    device = torch.device(given.device)
    prepare_torch(0, matmul_precision="highest", deterministic=False)
    sizes = TINY if given.tiny else FULL
    sizes = replace(
        sizes,
        steps=given.steps or sizes.steps,
        first_steps=given.first_steps or sizes.first_steps,
    )
    shapes = parameter_shapes(sizes.dimensions()).values()
    print(
        f"{sum(map(math.prod, shapes)) / 1e6:.1f}M parameters; {sizes.rows} packed rows of "
        f"{sizes.row} tokens a step, {sizes.steps} steps a run"
    )
    print(", ".join(f"{name} {value}" for name, value in describe(device).items()), flush=True)
    lines, beginnings = [], dict[int, Beginning]()
    masters: dict[tuple[float, int], Found] = {}
    runs = planned(given.seeds, given.rates)
    step_seconds = 0.0  # of the slowest run so far
    for number, run in enumerate(runs):
        steps = sizes.steps + (0 if run.seed in beginnings else sizes.first_steps)
        end = time.perf_counter() - begin + steps * step_seconds + _COMPILING
        if end > 60 * given.minutes:
            for left_out in runs[number:]:
                print(f"no time left for {left_out}")
            break
        if run.seed not in beginnings:
            beginnings[run.seed], found = begin_seed(run.seed, sizes, device)
            print(
                f"seed {run.seed}: trained for {sizes.first_steps} steps in {found.seconds:.1f} s, "
                f"loss {found.losses[0]:.3f} -> {found.last:.4f}, of the dialect "
                f"{found.held_out:.4f}\n\n{HEADER}"
            )
        beginning = beginnings[run.seed]
        try:
            found, _ = train(
                run, beginning.weights, beginning.steps, beginning.held_out, sizes, device
            )
        except WorkbenchError as error:
            print(f"{run.optimizer} is left out: {error}")
            continue
        step_seconds = max(step_seconds, found.seconds / sizes.steps)
        if run.rounding == "master":
            masters[run.rate, run.seed] = found
        last = held_out = "–"
        if master := masters.get((run.rate, run.seed)):
            last = f"{found.last / master.last - 1:+.2%}"
            held_out = f"{found.held_out / master.held_out - 1:+.2%}"
        print(
            f"| {run.optimizer} | {run.rounding} | {run.rate:g} | {run.seed} "
            f"| {found.losses[-1]:.4f} | {found.last:.4f} | {last} "
            f"| {found.held_out:.4f} | {held_out} | {found.unmoved:.1%} | {found.seconds:.1f} |",
            flush=True,
        )
        lines.append(json.dumps(vars(run) | vars(found)))
        if given.out is not None:
            given.out.write_text("\n".join(lines) + "\n")
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
