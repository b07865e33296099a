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

Prints a table, and writes one JSON line per run with the loss of every step. Runs that the limit of
minutes leaves no time for are named.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
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


FULL = Sizes(4096, 1024, 4, 2816, 8, 2000, 16, 512, 1500, 5e-4, 500)
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
            part_tokens=sizes.rows * sizes.row,
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
        seconds: of all steps.
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
        rate = learning_rate(
            number,
            peak=run.rate,
            warmup_steps=max(1, len(steps) // 25),
            cooldown_steps=len(steps) // 4 if cools_down else 0,
            max_steps=len(steps),
        )
        sums.append(engine.step(rows, number, rate).loss_sum / max(rows.num_targets, 1))
    losses = torch.stack(sums).tolist()
    seconds = time.perf_counter() - begin
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


def planned(seeds: int, rates: list[float]) -> list[Run]:
    """List the runs, those first that matter most."""
    runs = []
    for rate in rates:
        for seed in range(seeds):
            for rounding in ("master", "stochastic", "exact", "nearest"):
                runs.append(Run("adafactor", rounding, rate, seed))
        if rate == rates[0]:
            names: tuple[OptimizerName, ...] = ("adamw", "adamw_8bit", "adamw_4bit")
            runs += [Run(name, "stochastic", rate, seed) for seed in range(seeds) for name in names]
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a small model, for the CPU")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-6, 2e-6, 1e-6])
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--first-steps", type=int, help="that make the trained state")
    parser.add_argument("--minutes", type=float, default=3.5, help="no run begins after them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON lines, one per run")
    given = parser.parse_args()
    begin = time.perf_counter()
    device = torch.device(given.device)
    prepare_torch(0, matmul_precision="highest", deterministic=False)
    sizes = TINY if given.tiny else FULL
    sizes = replace(
        sizes,
        steps=given.steps or sizes.steps,
        first_steps=given.first_steps or sizes.first_steps,
    )
    lines = []
    starts: dict[int, dict[str, Tensor]] = {}
    data: dict[int, tuple[list[StepRows], list[StepRows]]] = {}
    dims = sizes.dimensions()
    num_parameters = sum(torch.Size(shape).numel() for shape in parameter_shapes(dims).values())
    print(
        f"{num_parameters / 1e6:.1f}M parameters on {device}, torch {torch.__version__}; "
        f"{sizes.rows} packed rows of {sizes.row} tokens a step, {sizes.steps} steps a run"
    )
    for seed in range(given.seeds):
        language = Language.draw(sizes, seed)
        dialect = language.dialect(seed)
        data[seed] = (
            steps_of(dialect, 10 * seed + 1, sizes.steps, sizes),
            steps_of(dialect, 10 * seed + 2, _HELD_OUT, sizes),
        )
        found, starts[seed] = train(
            Run("adafactor", "stochastic", sizes.first_rate, seed),
            random_weights(dims, seed, torch.bfloat16),
            steps_of(language, 10 * seed + 3, sizes.first_steps, sizes),
            data[seed][1],
            sizes,
            device,
            cools_down=True,
        )
        print(
            f"seed {seed}: trained state after {sizes.first_steps} steps in {found.seconds:.1f} s: "
            f"loss {found.losses[0]:.3f} -> {found.last:.4f}, of the dialect {found.held_out:.4f}"
        )
    print(
        "| optimizer | rounding | rate | seed | last loss | mean of last 50 | to master "
        "| held out | to master | unmoved | s |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    masters: dict[tuple[float, int], Found] = {}
    left_out = []
    for run in planned(given.seeds, given.rates):
        if time.perf_counter() - begin > 60 * given.minutes:
            left_out.append(run)
            continue
        try:
            found, _ = train(run, starts[run.seed], *data[run.seed], sizes, device)
        except WorkbenchError as error:
            print(f"{run.optimizer} is left out: {error}")
            continue
        if run.rounding == "master":
            masters[run.rate, run.seed] = found
        master = masters[run.rate, run.seed]
        print(
            f"| {run.optimizer} | {run.rounding} | {run.rate:g} | {run.seed} "
            f"| {found.losses[-1]:.4f} | {found.last:.4f} | {found.last / master.last - 1:+.2%} "
            f"| {found.held_out:.4f} | {found.held_out / master.held_out - 1:+.2%} "
            f"| {found.unmoved:.1%} | {found.seconds:.1f} |"
        )
        lines.append(json.dumps(vars(run) | vars(found)))
        if given.out is not None:
            given.out.write_text("\n".join(lines) + "\n")
    for run in left_out:
        print(f"no time left for {run}")
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
