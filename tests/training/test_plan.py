"""The worker's plan: what it says, what it writes down, and what it refuses before loading."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.training.test_family_steps import SWITCHES, family
from tests.training.tiny import CPU, LENGTH, dimensions, tiny_engine
from workbench.config.memory_parts import CONTEXT_BYTES, GIB, StepForm, device_bytes
from workbench.errors import RefusedError
from workbench.model.families import read_dimensions
from workbench.training.engine.calibration import keep_cpu_rates, rates_here
from workbench.training.engine.plan import (
    Plan,
    budget_within,
    choose_plan,
    facts_of_dimensions,
    plan_lines,
    smallest_plan,
    spread,
    spread_levels,
    take_budget,
    write_plan,
)

MISTRAL = read_dimensions(
    {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
)


def plan_of(budget_gib: float, *, rows: int = 4, host_gib: float = 200.0) -> Plan:
    return choose_plan(
        MISTRAL,
        dtype=torch.bfloat16,
        sum_dtype="auto",
        microbatches="auto",
        rows=rows,
        row_length=4096,
        budget_bytes=int(budget_gib * GIB),
        host_bytes=int(host_gib * GIB),
    )


def test_blocks_are_spread_evenly() -> None:
    assert spread(2, 8) == {3, 7}
    assert spread(6, 8) == {1, 2, 3, 5, 6, 7}
    for num_layers in (1, 7, 32, 80):
        for count in range(num_layers + 1):
            chosen = sorted(spread(count, num_layers))
            assert len(chosen) == count
            gaps = {later - earlier for earlier, later in itertools.pairwise(chosen)}
            assert len(gaps) <= 2


def test_levels_are_spread_evenly_too() -> None:
    assert spread_levels(0, 0, 3) == ("full",) * 3
    assert spread_levels(2, 2, 8) == (
        "full", "full", "selective", "none", "full", "full", "selective", "none",
    )  # fmt: skip
    for selective in range(10):
        levels = spread_levels(selective, 9 - selective, 12)
        assert (levels.count("selective"), levels.count("none")) == (selective, 9 - selective)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sum_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"streamed_blocks": 3, "slots": 2, "tile_rows": 16},
        {"streamed_blocks": 2, "vocabulary_resident": False, "pinned_records": True},
        {"selective_blocks": 2, "kept_blocks": 1, "head_rows": 8},
        {"selective_blocks": 1, "pinned_records": True},
        {"optimizer": "adamw", "companions_resident": True},
        {"optimizer": "adamw", "companions_resident": False, "vocabulary_resident": False},
    ],
)
def test_the_engine_allocates_what_the_arithmetic_counts(
    form: dict[str, Any], sum_dtype: Literal["float32", "bfloat16"], tied: bool
) -> None:
    dims = dimensions(tied=tied)
    priced = StepForm(
        rows=16, row_length=LENGTH, microbatches=4, weight_bytes=4,
        sum_bytes=4 if sum_dtype == "float32" else 2, is_gpu=False,
        **({"tile_rows": 64, "head_rows": 32} | form),
    )  # fmt: skip
    engine = tiny_engine(
        dims,
        sum_dtype=sum_dtype,
        optimizer=priced.optimizer,
        resident_blocks=dims.num_layers - priced.streamed_blocks,
        vocabulary_resident=priced.vocabulary_resident,
        slots=priced.slots,
        pinned_records=priced.pinned_records,
        recompute=spread_levels(priced.selective_blocks, priced.kept_blocks, dims.num_layers),
        tile_rows=priced.tile_rows,
        head_rows=priced.head_rows,
        companions_resident=priced.companions_resident,
    ).engine
    predicted = device_bytes(facts_of_dimensions(dims), priced)
    allocated = engine.device_bytes()
    assert len(allocated) > 8
    for name, num_bytes in allocated.items():
        # Tensors of a few elements each begin at a multiple of 256 bytes.
        assert getattr(predicted, name) == pytest.approx(num_bytes, rel=0.02, abs=4096), name


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("weight_bytes", [2, 4])
def test_what_families_differ_in_is_counted_as_it_is_allocated(
    switches: str, weight_bytes: int
) -> None:
    """Wide enough that a part left out is more than what alignment leaves open."""
    wide = {"hidden_size": 96, "intermediate_size": 416, "num_heads": 6, "head_dim": 32}
    dims = replace(family(switches), **wide)
    priced = StepForm(
        rows=16, row_length=LENGTH, microbatches=4, weight_bytes=weight_bytes, sum_bytes=4,
        streamed_blocks=2, selective_blocks=2, kept_blocks=2, tile_rows=64, head_rows=32,
        optimizer="adamw", companions_resident=True, is_gpu=False,
    )  # fmt: skip
    engine = tiny_engine(
        dims,
        dtype=torch.bfloat16 if weight_bytes == 2 else torch.float32,
        optimizer="adamw",
        resident_blocks=dims.num_layers - 2,
        recompute=spread_levels(2, 2, dims.num_layers),
        tile_rows=64,
        head_rows=32,
        companions_resident=True,
    ).engine
    facts = facts_of_dimensions(dims)
    predicted = device_bytes(facts, priced)
    exact = ("slots", "block_inputs", "gradient_sums", "block_buffers", "hidden_states")
    allocated = engine.device_bytes()
    for name in exact:
        assert getattr(predicted, name) == allocated[name] > 0, name
    for name, num_bytes in allocated.items():
        assert getattr(predicted, name) == pytest.approx(num_bytes, rel=0.02, abs=4096), name
    plain = device_bytes(facts_of_dimensions(replace(dimensions(layers=5), **wide)), priced)
    has_vectors = bool(dims.biased) or dims.query_key_norm
    assert (predicted.gradient_sums > plain.gradient_sums) == has_vectors
    assert (predicted.block_buffers > plain.block_buffers) == dims.query_key_norm


def test_an_impossible_budget_is_refused_with_the_smallest_that_works() -> None:
    with pytest.raises(RefusedError) as caught:
        plan_of(2.0)
    assert caught.value.where == "memory.budget_gib"
    found = re.search(r"set memory.budget_gib to ([\d.]+) or more", caught.value.remedy)
    assert found is not None
    least = float(found[1])
    assert "32 of 32 blocks streamed through 2 slots" in caught.value.what
    plan = plan_of(least)
    assert plan.predicted.reserved < least * GIB
    with pytest.raises(RefusedError):
        plan_of(least - 0.02)


def test_little_host_memory_needs_a_larger_budget() -> None:
    with pytest.raises(RefusedError) as caught:
        plan_of(7.2, host_gib=10.0)
    assert "10.0 GiB of host memory" in caught.value.what
    found = re.search(r"set memory.budget_gib to ([\d.]+) or more", caught.value.remedy)
    assert found is not None
    plan = plan_of(float(found[1]), host_gib=10.0)
    assert plan.host is not None
    assert 0 < 32 - plan.resident_blocks < 32
    assert plan.host.total <= 10.0 * GIB


def test_too_little_host_memory_for_anything_is_refused_as_such() -> None:
    with pytest.raises(RefusedError) as caught:
        plan_of(40.0, host_gib=2.0)
    assert caught.value.where == "host memory"
    assert "1.9 of the 2.0 GiB that can be had" in caught.value.what


def test_the_smallest_plan_is_one_that_its_own_budget_allows() -> None:
    plan = smallest_plan(MISTRAL, dtype=torch.bfloat16, rows=16, row_length=2048)
    assert plan.predicted.reserved <= 3.0 * GIB
    assert plan.budget_bytes is not None
    assert plan.predicted.reserved < plan.budget_bytes
    assert (plan.resident_blocks, plan.vocabulary_resident, plan.slots) == (0, False, 2)


def test_a_plan_is_told_in_a_few_lines() -> None:
    lines = list(plan_lines(plan_of(7.2)))
    assert len(lines) == 4
    assert "32 of 32 blocks streamed through 3 slots" in lines[0]
    assert re.search(r"predicted: [\d.]+ GiB reserved of 7.20 \(weights 0.49, slots", lines[1])
    assert "GiB pinned of host memory (weights 13.00" in lines[2]
    assert re.search(r"predicted: [\d.]+ s per step", lines[3])


def test_plan_json_holds_the_plan_and_what_was_measured_beside_it(tmp_path: Path) -> None:
    plan, path = plan_of(15.2), tmp_path / "plan.json"
    write_plan(path, plan)
    first = json.loads(path.read_bytes())
    reserved = plan.predicted.reserved
    assert first["predicted"]["reserved"] == reserved
    assert first["predicted_host"]["total"] > first["predicted_host"]["pinned"] > 0
    assert sum(first["predicted_seconds_by_part"][name] for name in
               ("forward", "head", "backward", "vocabulary", "copies", "other")) == pytest.approx(
        first["predicted_seconds"])  # fmt: skip
    assert len(first["recompute"]) == 32
    assert first["difference_percent"] == {"reserved": None, "allocated": None, "seconds": None}
    peaks = {"peak_gpu_reserved_bytes": round(reserved / 1.04), "peak_host_bytes": 1}
    assert plan.predicted_seconds is not None
    write_plan(path, plan, peaks, plan.predicted_seconds / 0.9)
    then = json.loads(path.read_bytes())
    assert then["measured"] == peaks
    assert then["difference_percent"]["reserved"] == pytest.approx(4.0, abs=0.01)
    assert then["difference_percent"]["seconds"] == pytest.approx(-10.0, abs=0.01)


def test_a_budget_is_no_more_than_what_is_free(caplog: pytest.LogCaptureFixture) -> None:
    free = 20 * GIB
    assert budget_within(None, free) == free + CONTEXT_BYTES
    assert budget_within(7.5, free) == int(7.5 * GIB)
    assert not caplog.records
    assert budget_within(22.8, free) == free + CONTEXT_BYTES
    assert "memory.budget_gib is 22.80, but the GPU has 20.76 GiB free" in caplog.text


def test_the_cpu_has_no_budget_and_nothing_is_measured_there() -> None:
    assert take_budget(CPU, 3.0) is None
    assert not rates_here(CPU).is_gpu


def test_the_speed_of_a_cpu_is_known_once_a_run_has_shown_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dims = dimensions()
    width = dims.hidden_size

    def planned() -> Plan:
        rates = rates_here(CPU, width=width, dtype=torch.float32)
        return choose_plan(
            dims,
            dtype=torch.float32,
            rows=4,
            row_length=64,
            budget_bytes=None,
            rates=rates,
            sum_dtype="auto",
            microbatches="auto",
        )

    first = planned()
    write_plan(tmp_path / "plan.json", first, {}, 2.5)
    said = json.loads((tmp_path / "plan.json").read_bytes())
    assert "predicted_seconds" not in said
    assert "a guess until a run" in said["why_no_predicted_seconds"]
    assert not any("s per step" in line for line in plan_lines(first))
    keep_cpu_rates(first, 2.5, width=width, dtype=torch.float32)
    second = planned()
    assert second.predicted_seconds == pytest.approx(2.5)
    write_plan(tmp_path / "plan.json", second, {}, 2.0)
    said = json.loads((tmp_path / "plan.json").read_bytes())
    assert said["predicted_seconds"] == pytest.approx(2.5)
    assert said["difference_percent"]["seconds"] == pytest.approx(25.0)
    keep_cpu_rates(second, 2.0, width=width, dtype=torch.float32)
    assert planned().predicted_seconds == pytest.approx(2.0)
    # Another dtype, or a model of quite another width, is another speed.
    assert rates_here(CPU, width=width, dtype=torch.bfloat16).is_assumed
    assert rates_here(CPU, width=3 * width, dtype=torch.float32).is_assumed
    assert not rates_here(CPU, width=2 * width, dtype=torch.float32).is_assumed
