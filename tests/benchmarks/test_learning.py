"""The proof of learning at the size of a minute: its language, its master weights, its table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import TINY, FullPrecision, Language, Run, main, planned

from tests.training.tiny import CPU
from workbench.training.optimizer.choice import new_optimizer
from workbench.training.optimizer.exact import join_exact


def test_rows_of_the_language_are_full_packed_and_the_same_for_a_seed() -> None:
    language = Language.draw(TINY, 3)
    rows = list(language.rows(5, 8, 256))
    again = list(Language.draw(TINY, 3).rows(5, 8, 256))
    num_documents = 0
    for row, same in zip(rows, again, strict=True):
        assert np.array_equal(row.ids, same.ids)
        assert row.ids.shape == row.targets.shape == (256,)
        assert row.ids.min() >= 0
        assert row.ids.max() < TINY.vocabulary
        assert not row.targets[row.document_starts].any()
        assert row.targets.sum() == 256 - row.document_starts.size
        num_documents += row.document_starts.size
    assert num_documents > 8


def test_a_dialect_keeps_half_of_what_follows_and_most_of_the_spelling() -> None:
    language = Language.draw(TINY, 3)
    dialect = language.dialect(3)
    kept = (language.successors == dialect.successors).mean()
    assert 0.3 < kept < 0.8
    assert 0.5 < (language.spelling == dialect.spelling).mean() < 0.95


def test_master_weights_move_as_exact_ones_do() -> None:
    shape = (12, 40)
    rules = [
        new_optimizer(
            "adafactor", {"w": shape}, dtype=dtype, device=CPU, seed=0, weight_decay=1e-3,
            rounding="exact",
        )
        for dtype in (torch.float32, torch.bfloat16)
    ]  # fmt: skip
    master = FullPrecision(rules[0])
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = [start.clone(), start.clone()]
    low = torch.zeros(shape, dtype=torch.int16)
    for step in range(1, 30):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        master.update("w", weights[0], gradient, step=step, learning_rate=1e-4)
        rules[1].update("w", weights[1], gradient, {"low": low}, step=step, learning_rate=1e-4)
    assert not torch.equal(weights[0], start)
    assert torch.equal(weights[0], join_exact(weights[1], low).bfloat16())


def test_runs_that_matter_most_come_first_and_each_after_its_master() -> None:
    runs = planned(2, [4e-6, 1e-6])
    assert len(set(runs)) == len(runs) == 2 * 2 * 4 + 3 + 4
    decisive = runs[:5]
    assert {(run.rate, run.seed) for run in decisive} == {(4e-6, 0)}, "one trained state for all"
    assert {run.rounding for run in decisive} == {"master", "stochastic", "exact", "nearest"}
    assert {run.optimizer for run in decisive} == {"adafactor", "adamw"}
    for index, run in enumerate(runs):
        if run.rate in {4e-6, 1e-6}:
            master = Run("adafactor", "master", run.rate, run.seed)
            assert runs.index(master) <= index


def test_the_tiny_form_prints_a_table_and_writes_every_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "losses.jsonl"
    words = "--tiny --seeds 1 --rates 4e-6 --steps 4 --first-steps 30 --device cpu --out"
    monkeypatch.setattr(sys, "argv", ["learning.py", *words.split(), str(out)])
    main()
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    found = {(run["optimizer"], run["rounding"]): run for run in runs}
    assert {rounding for name, rounding in found if name == "adafactor"} == {
        "master", "stochastic", "exact", "nearest",
    }  # fmt: skip
    assert ("adamw", "stochastic") in found
    assert all(len(run["losses"]) == 4 for run in runs)
    assert len({run["losses"][0] for run in runs}) == 1
    master, nearest = (found["adafactor", rounding] for rounding in ("master", "nearest"))
    assert nearest["unmoved"] > master["unmoved"]
    exact = found["adafactor", "exact"]
    assert exact["losses"] == pytest.approx(master["losses"], rel=1e-4)
    printed = capsys.readouterr().out
    assert printed.count("| adafactor |") == 6, "four roundings, and two more rates"


def test_a_run_that_would_not_end_in_time_is_named_and_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "losses.jsonl"
    words = "--tiny --seeds 1 --rates 4e-6 --minutes 0.01 --device cpu --out"
    monkeypatch.setattr(sys, "argv", ["learning.py", *words.split(), str(out)])
    main()
    assert capsys.readouterr().out.count("no time left for") == len(planned(1, [4e-6]))
    assert not out.exists()
