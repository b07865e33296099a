"""Every benchmark of the engine at the size of the demo: it runs, and measures what it says."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import first_step
import memory
import numpy as np
import our_step
import pytest
import stress
import telemetry
import torch
from machine import ceilings, describe
from our_step import Trial
from result_file import share_words
from shapes import (
    dimensions,
    draw_weights,
    host_bytes_of,
    layers_that_fit,
    random_rows,
)
from throughput import main, run_trial

SMALL = Trial(shapes="demo", row=96, rows=4, layers=2, steps=2, warmup=1)


def test_rows_are_the_same_however_the_step_is_cut() -> None:
    dims = dimensions("demo")
    whole, parts = (random_rows(dims, 4, 2048, count, seed=5) for count in (1, 4))
    assert (whole.num_tokens, whole.num_targets) == (parts.num_tokens, parts.num_targets)
    ids = np.concatenate([batch.ids for batch in parts.microbatches])
    assert np.array_equal(whole.microbatches[0].ids, ids)
    starts = whole.microbatches[0].document_starts
    lengths = np.diff(starts[0][starts[0] < 2048])
    assert lengths.size >= 1
    assert lengths.min() >= 100
    assert lengths.max() <= 1300
    assert 0.45 < whole.num_targets / whole.num_tokens < 0.55
    (one,) = random_rows(dims, 1, 2048, 1, seed=5, one_document=True).microbatches
    assert (one.document_starts[0] < 2048).sum() == 1


def test_weights_depend_on_their_names_alone_and_are_not_zeros() -> None:
    first, second = (
        {"a": torch.zeros(300, 40), "norm": torch.zeros(7)},
        {"norm": torch.zeros(7), "b": torch.zeros(5, 5), "a": torch.zeros(300, 40)},
    )
    for weights in (first, second):
        draw_weights(weights.items(), torch.device("cpu"))
    assert torch.equal(first["a"], second["a"])
    assert first["a"].std().item() == pytest.approx(0.02, rel=0.05)
    assert first["norm"].tolist() == [1.0] * 7


def test_as_many_blocks_as_host_memory_holds() -> None:
    dims = dimensions("llama-70b")
    assert host_bytes_of(dims, 0) == pytest.approx(2 * 68.98e9, rel=1e-3)
    assert layers_that_fit(dims, 16384, 1 << 40) == 80
    some = layers_that_fit(dims, 16384, 110 << 30)
    assert 50 < some < 65
    fewer = dataclasses.replace(dims, num_layers=some)
    assert host_bytes_of(fewer, 16384) <= 110 << 30
    assert layers_that_fit(dims, 16384, 0) == 1


def test_a_trial_of_ours_says_what_was_planned_and_seen() -> None:
    record = json.loads(json.dumps(our_step.measure(dataclasses.replace(SMALL, ceilings=True))))
    assert len(record["seconds"]) == 2
    assert len(record["warmup_seconds"]) == 1
    assert record["tokens_per_second"] > 0
    assert record["layers"] == 2
    assert record["plan"]["resident_blocks"] == 2
    assert record["ceilings"]["product_flops"] > 1e8
    assert record["loss"] == pytest.approx(np.log(1536), rel=0.1)
    assert 0 < record["seen_tokens"] <= 96
    assert record["mfu"] is None, "nobody publishes the peak of a CPU"


def test_the_baseline_has_the_loss_of_our_engine_on_the_same_rows_and_weights() -> None:
    theirs = run_trial("rival.py", SMALL)
    ours = our_step.measure(SMALL)
    assert "failed" not in theirs, theirs
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=2e-3)
    assert theirs["seen_tokens"] == ours["seen_tokens"]


def test_a_trial_that_cannot_run_becomes_a_record_of_it() -> None:
    record = run_trial("our_step.py", dataclasses.replace(SMALL, shapes="nonsense"))
    assert record["failed"] == "exit status 1"
    assert record["trial"]["shapes"] == "nonsense"


def test_the_command_runs_a_trial_and_prints_its_record(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--shapes", "demo", "--row", "64", "--rows", "2", "--layers", "1",
                 "--steps", "1", "--warmup", "0"]) == 0  # fmt: skip
    told = capsys.readouterr()
    assert json.loads(told.out)["trial"]["row"] == 64
    assert "workbench demo 64 × 2 trial:" in told.err


def test_the_longest_is_found_by_doubling_and_bisection() -> None:
    asked: list[int] = []

    def fits(row: int) -> bool:
        asked.append(row)
        return row <= 5000

    assert memory.longest_number(fits, 1024, 64) == 4992
    assert asked[:4] == [1024, 2048, 4096, 8192]
    assert len(asked) < 12
    assert memory.longest_number(lambda row: row < 100, 1024, 64) is None


def test_the_least_budget_is_one_that_the_planner_accepts_and_no_smaller_one_is() -> None:
    record = memory.measure_least(SMALL)
    budget = int(record["least_budget_gib"] * (1 << 30))
    assert memory.is_planned(SMALL, budget)
    assert not memory.is_planned(SMALL, int(budget * 0.97))
    assert record["seconds"]


def test_head_and_loss_are_measured_by_themselves() -> None:
    found = memory.measure_head("demo", 128, 0.5)
    assert found["targets"] == 64
    assert found["seconds"] > 0
    assert found["bytes_above"] > 1536 * 128 * 2


def test_predictions_are_held_against_what_was_measured() -> None:
    trial = dataclasses.asdict(SMALL)
    good = {"trial": trial, "reserved": 1000, "predicted_reserved": 1040,
            "predicted_seconds": 1.05, "seconds": [1.0, 1.0, 1.2]}  # fmt: skip
    verdict, lines = memory.judge_grid([good, good | {"predicted_reserved": 990}])
    assert str(verdict) == "hit: 2 of 2 settings within"
    assert lines[0].endswith("predicted peak +4.0 %, time +5.0 %, hit")
    for change in ({"predicted_reserved": 970}, {"predicted_reserved": 1060},
                   {"predicted_seconds": 1.2}, {"failed": "RefusedError"}):  # fmt: skip
        verdict, lines = memory.judge_grid([good, good | change])
        assert str(verdict) == "missed: 1 of 2 settings within"
    assert len(memory.GRID) == 12


def test_stress_draws_many_kinds_of_rows_and_takes_every_step() -> None:
    record = stress.measure(dataclasses.replace(SMALL, steps=5, layers=1))
    assert record["steps"] == 5
    assert record["documents"][0] <= 8 < record["documents"][1]
    assert record["reserved"] == record["reserved_settled"]
    assert "failed" not in record
    assert all(each == 0 for _, each in record["grew"])


def test_telemetry_is_the_difference_of_the_same_steps() -> None:
    trial = dataclasses.replace(SMALL, row=32, rows=2, layers=1)
    record = telemetry.measure(trial, steps=3, pairs=2, log_every=2)
    assert [len(each) for each in record["seconds_per_step"].values()] == [2, 2]
    assert record["num_records"] >= 3
    assert record["bytes_told"] > 1000, "the publisher told its supervisor"
    assert not telemetry.judge(record | {"telemetry_share": 0.006}).is_hit
    assert telemetry.judge(record | {"telemetry_share": 0.004, "optimizer_share": 0.02}).is_hit


@pytest.mark.end_to_end
def test_the_first_step_is_timed_from_the_command_on(tmp_path: Path) -> None:
    trial = dataclasses.replace(SMALL, row=256, dtype="float32", layers=1)
    record: dict[str, Any] = first_step.measure(trial, tmp_path)
    assert record["exit_status"] == 0
    assert 0 < record["since_supervisor"] < record["seconds_to_first_step"]
    assert list(record["states"])[:2] == ["starting", "loading"]
    assert len(record["step_seconds"]) == 2


def test_the_machine_is_described_and_measured() -> None:
    cpu = torch.device("cpu")
    found = describe(cpu)
    assert found["torch"] == torch.__version__
    assert "usable" in found["cpu"]
    reached = ceilings(cpu, tokens=8, hidden=16, intermediate=32, dtype=torch.float32)
    assert set(reached) == {"product_flops", "model_product_flops", "memory_bytes_per_second"}
    times = {"step": 2.0, "up": 1.0, "waiting": 0.1}
    assert share_words({"times": times}) == "step 2.000 s, up 1.000 (50.0 %), waiting 0.100 (5.0 %)"
