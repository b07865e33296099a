"""Bytes by arithmetic, against peaks that were measured and against the engine's own shapes."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from workbench.config.known_models import KNOWN_MODELS
from workbench.config.memory_parts import (
    CONTEXT_BYTES,
    GIB,
    MIB,
    StepForm,
    SumDtype,
    checkpoint_bytes,
    choose_microbatches,
    chunk_rows,
    device_bytes,
    factored_state_bytes,
    host_bytes,
    kept_bytes_per_token,
    microbatch_counts,
    needed_bytes,
    sum_bytes_of,
)
from workbench.config.model_facts import ModelFacts

MEASURED = json.loads(
    (Path(__file__).parent.parent / "assets" / "measured_peaks.json").read_bytes()
)
MISTRAL = KNOWN_MODELS["mistral-7b"]


def shape(name: str) -> ModelFacts:
    numbers = MEASURED["shapes"][name]
    return ModelFacts(
        family="llama",
        num_layers=numbers["layers"],
        hidden_size=numbers["hidden"],
        intermediate_size=numbers["intermediate"],
        num_heads=numbers["heads"],
        num_key_value_heads=numbers["key_value_heads"],
        head_size=numbers["hidden"] // numbers["heads"],
        vocabulary_size=numbers["vocabulary"],
        max_positions=None,
        sliding_window=None,
        tied=False,
    )


@pytest.mark.parametrize(
    "peak",
    MEASURED["peaks"],
    ids=lambda peak: f"{peak['shape']}-{peak['row']}x{peak['rows']}-{peak['microbatches']}",
)
def test_predictions_are_within_5_percent_of_measured_peaks_and_hardly_ever_under(
    peak: dict[str, Any],
) -> None:
    form = StepForm(
        rows=peak["rows"],
        row_length=peak["row"],
        microbatches=peak["microbatches"],
        sum_bytes={"bfloat16": 2, "float32": 4}[peak["sum_dtype"]],
    )
    predicted = device_bytes(shape(peak["shape"]), form)
    assert 0.98 * peak["reserved"] <= predicted.reserved <= 1.05 * peak["reserved"]
    # What is alive is counted, not fitted. It may count more, for not every token was a target.
    assert 0.994 * peak["allocated"] <= predicted.peak <= 1.012 * peak["allocated"]
    context = peak["used_by_driver"] - peak["reserved"]
    assert context <= CONTEXT_BYTES <= context + 32 * MIB


def test_many_shapes_and_forms_were_measured() -> None:
    assert len(MEASURED["peaks"]) >= 25
    assert len({peak["shape"] for peak in MEASURED["peaks"]}) >= 5


def test_the_engine_takes_its_plan_from_the_same_arithmetic() -> None:
    import torch

    from workbench.model.decoder import block_parameters, parameter_shapes
    from workbench.model.families import read_dimensions
    from workbench.training.engine import step
    from workbench.training.engine.plan import choose_plan, facts_of_dimensions
    from workbench.training.optimizer.adafactor import new_statistics

    stated = {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    for tied in (False, True):
        dims = read_dimensions(stated | {"tie_word_embeddings": tied})
        facts = facts_of_dimensions(dims)
        shapes = parameter_shapes(dims)
        assert sorted(facts.block_shapes) == sorted(block_parameters(dims).values())
        assert facts.num_parameters == sum(torch.Size(each).numel() for each in shapes.values())
        statistics = [new_statistics(each, torch.device("cpu")).named() for each in shapes.values()]
        assert factored_state_bytes(facts) == sum(
            tensor.nbytes for each in statistics for tensor in each.values()
        )
        plan = choose_plan(
            dims,
            dtype=torch.float32,
            sum_dtype="auto",
            microbatches=2,
            rows=8,
            row_length=128,
            budget_bytes=None,
        )
        form = StepForm(
            rows=8, row_length=128, microbatches=2, weight_bytes=4, sum_bytes=4, is_gpu=False
        )
        assert plan.predicted == device_bytes(facts, form)
    assert step.chunk_rows is chunk_rows, "the engine cuts the head's rows as the arithmetic does"


def test_the_parts_add_up_to_the_peak() -> None:
    device = device_bytes(MISTRAL, StepForm(rows=4, row_length=4096, microbatches=2))
    parts = (
        device.weights + device.block_inputs + device.hidden_states + device.gradient_sums
        + device.optimizer_state + device.libraries + device.peak_phase.workspace
    )  # fmt: skip
    assert device.peak == parts
    assert device.peak_phase.name == "backward of a block"
    assert device.weights == 2 * 7_241_732_096
    # 256 KiB of block inputs per token of a 7B.
    assert device.block_inputs == 16384 * 256 * 1024
    assert device.reserved > device.peak


@pytest.mark.parametrize(
    ("recompute", "row_of_the_table"), [("full", 8_192), ("selective", 36_992), ("none", 94_336)]
)
def test_kept_activations_of_a_7b_are_those_of_the_table(
    recompute: str, row_of_the_table: int
) -> None:
    kept = 2 * MISTRAL.hidden_size + kept_bytes_per_token(MISTRAL, recompute)  # type: ignore[arg-type]
    assert kept == row_of_the_table


@pytest.mark.parametrize(
    ("model", "rows", "row_length", "resident_fraction", "gib"),
    [
        # By the closed formula, microbatches of one row, context left out.
        ("mistral-7b", 1, 4096, 0.0, 3.1),
        ("mistral-7b", 1, 16384, 0.0, 4.4),
        ("mistral-7b", 1, 4096, 1.0, 14.8),
        ("llama-30b", 4, 4096, 0.0, 6.5),
    ],
)
def test_streamed_and_pinned_forms_follow_the_formula(
    model: str, rows: int, row_length: int, resident_fraction: float, gib: float
) -> None:
    form = StepForm(
        rows=rows,
        row_length=row_length,
        microbatches=rows,
        resident_fraction=resident_fraction,
        pinned_inputs=True,
    )
    assert not form.is_measured
    assert device_bytes(KNOWN_MODELS[model], form).peak / GIB == pytest.approx(gib, rel=0.1)


def test_what_leaves_the_gpu_arrives_in_host_memory() -> None:
    here = StepForm(rows=8, row_length=2048, microbatches=8)
    there = dataclasses.replace(here, resident_fraction=0.25, pinned_inputs=True)
    host, device = host_bytes(MISTRAL, there), device_bytes(MISTRAL, there)
    before = device_bytes(MISTRAL, here)
    assert host.weights == 24 * MISTRAL.block_parameters * 2 == before.weights - device.weights
    assert host.block_inputs == before.block_inputs
    assert device.block_inputs == 0
    assert device.slots == 3 * MISTRAL.block_parameters * 2
    assert host_bytes(MISTRAL, here).total == host_bytes(MISTRAL, here).process
    exact = dataclasses.replace(there, exact=True)
    assert host_bytes(MISTRAL, exact).low_bits == 2 * MISTRAL.num_parameters


def test_other_optimizers_keep_more() -> None:
    def state(name: str) -> int:
        form = StepForm(rows=1, row_length=512, microbatches=1, optimizer=name)  # type: ignore[arg-type]
        return device_bytes(MISTRAL, form).optimizer_state

    assert state("adafactor") < 15e6
    ratios = [state(name) / MISTRAL.num_parameters for name in
              ("adamw", "adamw_8bit", "adamw_4bit")]  # fmt: skip
    assert ratios == pytest.approx([8, 2.03, 1.06], abs=0.01)


def test_a_checkpoint_holds_weights_and_statistics() -> None:
    one = checkpoint_bytes(MISTRAL, weight_bytes=2)
    assert 2 * MISTRAL.num_parameters < one < 2.15 * MISTRAL.num_parameters
    assert checkpoint_bytes(MISTRAL, weight_bytes=2, exact=True) > 1.9 * one


def test_equal_parts_of_any_number_of_rows_are_found_at_once() -> None:
    for rows in range(1, 200):
        assert microbatch_counts(rows) == [part for part in range(1, rows + 1) if rows % part == 0]
    assert len(microbatch_counts(10**9)) == 100


def test_the_fewest_microbatches_that_fit_are_chosen() -> None:
    def chosen(
        budget_gib: float | None, microbatches: Literal["auto"] | int = "auto"
    ) -> tuple[int, bool]:
        choice = choose_microbatches(
            MISTRAL,
            StepForm(rows=4, row_length=4096, microbatches=1),
            microbatches=microbatches,
            sum_dtype="auto",
            budget_bytes=None if budget_gib is None else int(budget_gib * GIB),
        )
        if choice.fits and budget_gib is not None:
            assert needed_bytes(choice.device) <= budget_gib * GIB
        return choice.form.microbatches, choice.fits

    assert [chosen(budget) for budget in (80, 22.8, 21, 16)] == [
        (1, True), (2, True), (4, True), (4, False),
    ]  # fmt: skip
    assert chosen(22.8, microbatches=4) == (4, True)
    assert chosen(None) == (1, True)


def test_the_cpu_takes_microbatches_of_at_most_8192_tokens() -> None:
    choice = choose_microbatches(
        MISTRAL,
        StepForm(rows=16, row_length=2048, microbatches=1, weight_bytes=4, is_gpu=False),
        microbatches="auto",
        sum_dtype="auto",
        budget_bytes=None,
    )
    assert (choice.form.microbatches, choice.form.sum_bytes) == (4, 4)


@pytest.mark.parametrize(
    ("wanted", "weight_bytes", "microbatches", "expected"),
    [("auto", 2, 4, 2), ("auto", 2, 5, 4), ("bfloat16", 2, 9, 2), ("auto", 4, 1, 4)],
)
def test_many_sums_are_taken_in_fp32(
    wanted: SumDtype, weight_bytes: int, microbatches: int, expected: int
) -> None:
    assert sum_bytes_of(wanted, weight_bytes, microbatches) == expected
