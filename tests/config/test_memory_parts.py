"""Bytes by arithmetic, against the engine's own buffers and against peaks that were measured."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.config.host_parts import checkpoint_bytes, host_bytes
from workbench.config.known_models import KNOWN_MODELS
from workbench.config.memory_parts import (
    GIB,
    MARGIN,
    MIB,
    DeviceBytes,
    StepForm,
    SumDtype,
    block_bytes,
    device_bytes,
    factored_state_bytes,
    kept_bytes_per_token,
    largest_record_bytes,
    microbatch_counts,
    needed_bytes,
    outside_bytes,
    record_bytes,
    records_bytes,
    sum_bytes_of,
)
from workbench.config.model_facts import ModelFacts

MISTRAL = KNOWN_MODELS["mistral-7b"]
LASTING = [
    field.name for field in dataclasses.fields(DeviceBytes) if field.name not in ("phases", "gap")
]


def test_the_engine_has_the_shapes_that_the_arithmetic_counts() -> None:
    import torch

    from workbench.model.decoder import block_parameters, parameter_shapes
    from workbench.model.families import read_dimensions
    from workbench.training.engine.plan import facts_of_dimensions
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
    families: list[dict[str, object]] = [
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 24},
    ]
    for changes in families:
        dims = read_dimensions(stated | changes)
        facts = facts_of_dimensions(dims)
        shapes = parameter_shapes(dims)
        assert sorted(facts.block_shapes) == sorted(block_parameters(dims).values())
        assert facts.num_parameters == sum(torch.Size(each).numel() for each in shapes.values())
        statistics = [new_statistics(each, torch.device("cpu")).named() for each in shapes.values()]
        assert factored_state_bytes(facts) == sum(
            tensor.nbytes for each in statistics for tensor in each.values()
        )


FORMS = st.builds(
    StepForm,
    rows=st.integers(1, 32),
    row_length=st.sampled_from([64, 512, 4096]),
    microbatches=st.sampled_from([1, 2, 4]),
    weight_bytes=st.sampled_from([2, 4]),
    sum_bytes=st.sampled_from([2, 4]),
    streamed_blocks=st.integers(0, 32),
    vocabulary_resident=st.booleans(),
    slots=st.sampled_from([2, 3]),
    pinned_records=st.booleans(),
    selective_blocks=st.integers(0, 16),
    kept_blocks=st.integers(0, 16),
    tile_rows=st.sampled_from([256, 2048]),
    optimizer=st.sampled_from(["adafactor", "adamw", "adamw_8bit"]),
    exact=st.booleans(),
    companions_resident=st.booleans(),
    is_gpu=st.booleans(),
)


@given(form=FORMS, model=st.sampled_from(["mistral-7b", "smollm2-135m", "qwen3-0.6b"]))
def test_the_parts_add_up_to_the_peak(form: StepForm, model: str) -> None:
    facts = KNOWN_MODELS[model]
    form = dataclasses.replace(
        form,
        streamed_blocks=min(form.streamed_blocks, facts.num_layers),
        selective_blocks=min(form.selective_blocks, facts.num_layers // 2),
        kept_blocks=min(form.kept_blocks, facts.num_layers // 2),
    )
    device = device_bytes(facts, form)
    parts = sum(getattr(device, name) for name in LASTING)
    assert device.reserved == parts + device.peak_phase.workspace + device.unused
    assert device.peak <= device.reserved
    assert all(getattr(device, name) >= 0 for name in LASTING)
    host = host_bytes(facts, form)
    assert host.total == sum(dataclasses.asdict(host).values())
    # What is on neither side is missing; what is on both is counted twice.
    if form.is_gpu:
        weights = (
            facts.num_layers * block_bytes(facts, form.weight_bytes)
            + (1 if facts.tied else 2) * facts.vocabulary_parameters * form.weight_bytes
            + facts.hidden_size * form.weight_bytes
        )
        assert device.weights + host.weights == weights
        assert device.block_inputs + host.block_inputs == records_bytes(facts, form)


MEASURED = json.loads(
    (Path(__file__).parent.parent / "assets" / "measured_peaks.json").read_bytes()
)


def measured_shape(record: dict[str, Any]) -> ModelFacts:
    numbers = MEASURED["shapes"][record["trial"]["shapes"]]
    return ModelFacts(
        family="llama",
        num_layers=record.get("layers", numbers["layers"]),
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


def measured_form(record: dict[str, Any]) -> StepForm:
    trial, plan = record["trial"], record["plan"]
    return StepForm(
        rows=trial["rows"],
        row_length=trial["row"],
        microbatches=plan["microbatches"],
        row_documents=record["row_documents"],
        sum_bytes={"bfloat16": 2, "float32": 4}[plan["sum_dtype"]],
        streamed_blocks=measured_shape(record).num_layers - plan["resident_blocks"],
        vocabulary_resident=plan["vocabulary_resident"],
        slots=plan["slots"],
        pinned_records=plan["pinned_records"],
        selective_blocks=plan["recompute"].get("selective", 0),
        kept_blocks=plan["recompute"].get("none", 0),
        tile_rows=plan["tile_rows"],
        head_rows=plan["head_rows"],
    )


@pytest.mark.parametrize(
    "record",
    MEASURED["peaks"],
    ids=lambda record: f"{record['trial']['shapes']}-{record['trial'].get('label', '')}",
)
def test_predictions_are_within_5_percent_of_measured_peaks_and_hardly_ever_under(
    record: dict[str, Any],
) -> None:
    predicted = device_bytes(measured_shape(record), measured_form(record))
    assert 0.98 * record["reserved"] <= predicted.reserved <= 1.05 * record["reserved"]


@pytest.mark.parametrize(
    "record",
    [record for record in MEASURED["peaks"] if "on_card" in record],
    ids=lambda record: f"{record['trial']['shapes']}-{record['trial'].get('label', '')}",
)
def test_what_the_driver_takes_is_foreseen(record: dict[str, Any]) -> None:
    pinned = host_bytes(measured_shape(record), measured_form(record)).pinned
    taken = record["on_card"] - record["reserved"]
    assert taken <= outside_bytes(pinned) <= taken + 16 * MIB


def test_a_7b_that_stays_takes_its_weights_and_records() -> None:
    device = device_bytes(MISTRAL, StepForm(rows=4, row_length=4096, microbatches=4))
    assert device.weights == 2 * 7_241_732_096
    # 256 KiB of block inputs per token of a 7B.
    assert device.block_inputs == 16384 * 256 * 1024
    assert device.slots == device.staging == device.companions == 0
    assert device.peak_phase.name == "backward of a block"
    assert needed_bytes(device, 0) == int(device.reserved * (1 + MARGIN)) + outside_bytes(0)


@pytest.mark.parametrize(
    ("recompute", "row_of_the_table"), [("full", 8_192), ("selective", 36_992), ("none", 94_336)]
)
def test_kept_activations_of_a_7b_are_those_of_the_table(
    recompute: str, row_of_the_table: int
) -> None:
    kept = 2 * MISTRAL.hidden_size + kept_bytes_per_token(MISTRAL, recompute)  # type: ignore[arg-type]
    assert kept == row_of_the_table
    record = record_bytes(MISTRAL, 4096, recompute)  # type: ignore[arg-type]
    assert record == 4096 * row_of_the_table


@pytest.mark.parametrize(
    ("heads", "rows", "deterministic", "bytes_per_token"),
    [
        # As measured on an H200 with 16,384 tokens: gradients, sums in fp32, and where heads are
        # grouped each query head's own gradients of keys and values.
        ("mistral-7b", 4, False, 45_184),
        ("llama-2-7b", 4, False, 41_088),
        ("mistral-7b", 4, True, 62_596),
        ("mistral-7b", 1, True, 111_361),
    ],
)
def test_attention_backward_takes_what_was_measured(
    heads: str, rows: int, deterministic: bool, bytes_per_token: int
) -> None:
    form = StepForm(
        rows=rows, row_length=16384 // rows, microbatches=1, selective_blocks=32,
        deterministic=deterministic,
    )  # fmt: skip
    (backward,) = (
        phase.workspace
        for phase in device_bytes(KNOWN_MODELS[heads], form).phases
        if phase.name == "backward of a block"
    )
    assert backward / 16384 == pytest.approx(bytes_per_token, rel=0.04)


def test_long_rows_go_through_attention_a_few_heads_at_a_time() -> None:
    form = StepForm(rows=1, row_length=131_072, microbatches=1, selective_blocks=32)
    backward = max(phase.workspace for phase in device_bytes(MISTRAL, form).phases)
    assert backward < 131_072 * 2 * (4096 + 2048) + 1.0 * GIB
    documents = dataclasses.replace(form, row_length=4096, row_documents=200)
    one = dataclasses.replace(documents, row_documents=1)
    padding = device_bytes(MISTRAL, documents).peak - device_bytes(MISTRAL, one).peak
    assert padding == 199 * 512 * 4096


def test_what_leaves_the_gpu_arrives_in_host_memory() -> None:
    here = StepForm(rows=8, row_length=2048, microbatches=8)
    there = dataclasses.replace(here, streamed_blocks=24, pinned_records=True)
    host, device = host_bytes(MISTRAL, there), device_bytes(MISTRAL, there)
    before = device_bytes(MISTRAL, here)
    assert host.weights == 24 * MISTRAL.block_parameters * 2 == before.weights - device.weights
    assert host.block_inputs == before.block_inputs
    assert device.block_inputs == 0
    assert device.staging == 2 * largest_record_bytes(MISTRAL, there)
    assert device.slots == 3 * MISTRAL.block_parameters * 2
    assert host_bytes(MISTRAL, here).total == host_bytes(MISTRAL, here).process
    exact = dataclasses.replace(there, exact=True, companions_resident=False)
    assert host_bytes(MISTRAL, exact).low_bits == 2 * MISTRAL.num_parameters
    assert device_bytes(MISTRAL, exact).slots > device.slots


def test_a_streamed_vocabulary_takes_one_slot() -> None:
    here = device_bytes(MISTRAL, StepForm(rows=1, row_length=512, microbatches=1))
    form = StepForm(rows=1, row_length=512, microbatches=1, vocabulary_resident=False)
    there, vocabulary = device_bytes(MISTRAL, form), MISTRAL.vocabulary_parameters * 2
    assert here.weights - there.weights == 2 * vocabulary
    assert there.slots == vocabulary
    assert host_bytes(MISTRAL, form).weights == 2 * vocabulary


def test_other_optimizers_keep_more() -> None:
    def beside(name: str) -> int:
        form = StepForm(rows=1, row_length=512, microbatches=1, optimizer=name)  # type: ignore[arg-type]
        device = device_bytes(MISTRAL, form)
        return device.companions + device.optimizer_state

    assert beside("adafactor") < 15e6
    ratios = [beside(name) / MISTRAL.num_parameters for name in
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


@pytest.mark.parametrize(
    ("wanted", "weight_bytes", "microbatches", "expected"),
    [("auto", 2, 4, 2), ("auto", 2, 5, 4), ("bfloat16", 2, 9, 2), ("auto", 4, 1, 4)],
)
def test_many_sums_are_taken_in_fp32(
    wanted: SumDtype, weight_bytes: int, microbatches: int, expected: int
) -> None:
    assert sum_bytes_of(wanted, weight_bytes, microbatches) == expected
