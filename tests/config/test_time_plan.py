"""FLOP per token against a table, and what a step waits for."""

import dataclasses
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.test_memory_parts import MEASURED, measured_form, measured_shape
from workbench.config.known_models import KNOWN_MODELS
from workbench.config.memory_parts import OptimizerName, Recompute, StepForm
from workbench.config.rates import CARDS, MeasuredRates, Rates, rates_of
from workbench.config.time_plan import (
    forward_flop_per_token,
    step_parts,
    step_seconds,
    training_flop_per_token,
)

MISTRAL = KNOWN_MODELS["mistral-7b"]
H200 = rates_of(gpu_name="NVIDIA H200")


@pytest.mark.parametrize(
    ("model", "tokens", "forward", "nothing", "everything", "all_but_down"),
    [
        ("mistral-7b", 1024, 14.5, 43.5, 57.7, 53.9),
        ("mistral-7b", 4096, 15.3, 45.9, 60.9, 57.2),
        ("llama-2-7b", 4096, 14.3, 42.9, 56.9, 54.0),
        ("llama-3.1-8b", 4096, 16.1, 48.2, 63.3, 59.5),
        ("llama-30b", 4096, 67.9, 203.7, 271.2, 256.9),
    ],
)
def test_gflop_per_token_are_those_of_the_closed_formula(
    model: str,
    tokens: int,
    forward: float,
    nothing: float,
    everything: float,
    all_but_down: float,
) -> None:
    facts = KNOWN_MODELS[model]

    def training(recompute: Literal["all"] | Recompute) -> float:
        return training_flop_per_token(facts, tokens, recompute) / 1e9

    assert forward_flop_per_token(facts, tokens) / 1e9 == pytest.approx(forward, abs=0.06)
    assert training("none") == pytest.approx(nothing, abs=0.06)
    assert training("all") == pytest.approx(everything, abs=0.06)
    assert training("full") == pytest.approx(all_but_down, abs=0.06)
    assert training("none") < training("selective") < training("full")


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090"),
        ("NVIDIA GeForce RTX 5060 Ti", "RTX 5060 Ti"),
        ("NVIDIA GeForce RTX 4060", "RTX 4060"),
        ("NVIDIA GeForce RTX 4070 SUPER", "RTX 4070"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_card_is_known_by_the_name_its_driver_gives(name: str, card: str) -> None:
    assert rates_of(gpu_name=name).up == CARDS[card].link_gbps * 1e9
    assert rates_of(gpu_name=name).basis.startswith(f"{card}: ")


def test_the_basis_of_a_rate_is_always_said() -> None:
    assert "as stated" in rates_of(gpu_name="NVIDIA H200", tflops=400).basis
    assert "assumed" in rates_of(gpu_name=None).basis
    assert "not in the table" in rates_of(gpu_name="Voodoo 2").basis
    # Another chip than the card of that name.
    assert "not in the table" in rates_of(gpu_name="NVIDIA GeForce RTX 4090 Laptop GPU").basis
    assert "link 12 GB/s as stated" in rates_of(gpu_name="NVIDIA H200", link_gbps=12).basis
    assert rates_of(gpu_name=None, is_gpu=False).basis.startswith("CPU")


@pytest.mark.parametrize(
    "record",
    [record for record in MEASURED["peaks"] if "seconds" in record],
    ids=lambda record: f"{record['trial']['shapes']}-{record['trial'].get('label', '')}",
)
def test_predicted_seconds_are_within_10_percent_of_measured_ones(record: dict[str, Any]) -> None:
    seconds = step_seconds(
        measured_shape(record), measured_form(record), H200, record["seen_tokens"]
    )
    assert seconds == pytest.approx(record["seconds"], rel=0.10)


def test_what_was_measured_here_comes_before_the_table() -> None:
    seen = MeasuredRates(products=600e12, memory=4e12, up=50e9, down=40e9, both=35e9)
    found = rates_of(gpu_name="NVIDIA H200", measured=seen)
    assert found.basis.startswith("measured here: 600 TFLOP/s")
    assert (found.up, found.down, found.both) == (50e9, 40e9, 35e9)
    assert found.attention < found.products
    assert rates_of(gpu_name="NVIDIA H200", measured=seen, tflops=1).products == 1e12
    assert rates_of(gpu_name="NVIDIA H200", measured=seen, link_gbps=3).up == 3e9


def step(**changes: object) -> StepForm:
    form = StepForm(rows=4, row_length=4096, microbatches=4)
    return dataclasses.replace(form, **changes)  # type: ignore[arg-type]


def with_link(gbps: float) -> Rates:
    return rates_of(gpu_name="NVIDIA H200", link_gbps=gbps)


def test_streaming_costs_little_until_the_link_is_slower_than_the_products() -> None:
    streamed = step(streamed_blocks=32)
    here = step_seconds(MISTRAL, step(), H200, 700)
    there = step_seconds(MISTRAL, streamed, H200, 700)
    assert here < there < 1.025 * here
    slow = step_parts(MISTRAL, streamed, with_link(2), 700)
    # What is in the slots at a turn need not come again: 30 of 32 blocks go up, twice.
    block = 2 * MISTRAL.block_parameters
    assert slow.forward == pytest.approx(30 * block / 2e9)
    both = slow.up + slow.down
    assert both == pytest.approx(slow.forward + 2 * 30 * block / (2e9 * 0.93) + 2 * block / 2e9)


@pytest.mark.parametrize(
    ("changes", "gigabytes"),
    [
        # 30 of 32 blocks go up twice; low bits of all 7.24 B, the head's and embedding's too, once;
        # 8 bytes of moments each.
        ({"streamed_blocks": 32}, 26.18),
        ({"streamed_blocks": 32, "exact": True, "companions_resident": False}, 26.18 + 14.48),
        (
            {"streamed_blocks": 32, "optimizer": "adamw", "exact": True,
             "companions_resident": False},
            26.18 + 14.48 + 57.93,
        ),
        # What is kept of 16,384 tokens goes up beside the weights: 262,144 bytes of each in all
        # blocks, or 1,183,744.
        ({"streamed_blocks": 32, "pinned_records": True}, 26.18 + 4.29),
        (
            {"streamed_blocks": 32, "pinned_records": True, "selective_blocks": 32},
            26.18 + 19.39,
        ),
        ({"vocabulary_resident": False}, 0.524),
        ({"streamed_blocks": 2}, 0.0),
    ],
)  # fmt: skip
def test_everything_that_is_not_on_the_gpu_passes_the_link(
    changes: dict[str, object], gigabytes: float
) -> None:
    rates = dataclasses.replace(with_link(0.1), both=0.1e9)
    assert step_parts(MISTRAL, step(**changes), rates, 4096).up * 0.1 == pytest.approx(
        gigabytes, rel=0.002
    )


def test_an_optimizer_moves_its_gradients_weights_and_companions() -> None:
    def update(optimizer: OptimizerName, sum_bytes: int) -> float:
        form = step(optimizer=optimizer, sum_bytes=sum_bytes)
        return step_parts(MISTRAL, form, H200, 700).vocabulary * H200.memory

    parameters = 2 * MISTRAL.vocabulary_parameters
    assert update("adafactor", 2) == pytest.approx(10 * parameters)
    assert update("adafactor", 4) == pytest.approx(16 * parameters)
    assert update("adamw", 2) == pytest.approx(24 * parameters)
    assert update("adamw_8bit", 2) == pytest.approx(12 * parameters)


def test_a_window_in_some_blocks_saves_its_share_of_attention() -> None:
    whole = dataclasses.replace(MISTRAL, sliding_window=None)
    half = dataclasses.replace(MISTRAL, sliding_window=1024, sliding_blocks=(True, False) * 16)
    every = dataclasses.replace(half, sliding_blocks=None)
    costs = [forward_flop_per_token(facts, 8192) for facts in (whole, half, every)]
    assert costs[0] - costs[1] == costs[1] - costs[2] > 0
    assert [facts.sliding_fraction for facts in (whole, half, every)] == [0.0, 0.5, 1.0]
    seconds = [step_seconds(facts, step(), H200, 8192) for facts in (whole, half, every)]
    assert seconds[0] > seconds[1] > seconds[2]


@pytest.mark.parametrize(
    "changes",
    [{"biased": ("q", "k", "v")}, {"biased": ("down",)}, {"query_key_norm": True}],
    ids=str,
)
def test_biases_and_norms_of_heads_move_memory_and_little_else(changes: dict[str, Any]) -> None:
    more = step_seconds(dataclasses.replace(MISTRAL, **changes), step(), H200, 700)
    assert 1 < more / step_seconds(MISTRAL, step(), H200, 700) < 1.03


def test_what_is_kept_need_not_be_computed_again() -> None:
    full, selective, none = (
        step_seconds(MISTRAL, step(selective_blocks=some, kept_blocks=kept), H200, 700)
        for some, kept in ((0, 0), (32, 0), (0, 32))
    )
    assert none < selective < full
    # 11.3 GFLOP per token at what the products reach.
    assert full - none > 16384 * 11e9 / H200.products


@given(
    streamed=st.integers(0, 32),
    selective=st.integers(0, 32),
    pinned=st.booleans(),
    slots=st.sampled_from([2, 3]),
    gbps=st.floats(0.5, 100),
)
def test_streaming_more_is_never_faster(
    streamed: int, selective: int, pinned: bool, slots: int, gbps: float
) -> None:
    form = step(
        streamed_blocks=streamed, selective_blocks=selective, pinned_records=pinned, slots=slots
    )
    rates = with_link(gbps)
    fewer = dataclasses.replace(form, streamed_blocks=max(0, streamed - 1))
    assert step_seconds(MISTRAL, fewer, rates, 700) <= step_seconds(MISTRAL, form, rates, 700)
    parts = step_parts(MISTRAL, form, rates, 700)
    assert parts.total == pytest.approx(
        parts.forward + parts.head + parts.backward + parts.vocabulary + parts.copies + parts.other
    )
