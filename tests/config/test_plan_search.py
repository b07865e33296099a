"""The plan of a step: what must come out on an H200, and what more memory may never do."""

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workbench.config.host_parts import host_bytes
from workbench.config.known_models import KNOWN_MODELS
from workbench.config.memory_parts import (
    GIB,
    StepForm,
    device_bytes,
    needed_bytes,
)
from workbench.config.plan_search import (
    ABOUT_AS_FAST,
    Choice,
    Wishes,
    choose_plan_form,
    most_of_host,
    smallest_form,
)
from workbench.config.rates import Rates, rates_of
from workbench.config.time_plan import step_seconds

H200 = Rates(
    products=700e12, attention=350e12, memory=4.08e12, up=51e9, down=51e9, both=51e9, basis="seen"
)


def chosen(
    model: str,
    gib: float | None,
    rows: int,
    row: int,
    *,
    host_gib: float | None = None,
    rates: Rates = H200,
    wishes: Wishes | None = None,
    **form: Any,  # noqa: ANN401
) -> Choice:
    return choose_plan_form(
        KNOWN_MODELS[model],
        StepForm(rows=rows, row_length=row, microbatches=1, **form),
        wishes or Wishes(),
        rates,
        seen_tokens=min(700, row),
        budget_bytes=None if gib is None else int(gib * GIB),
        host_limit=None if host_gib is None else int(host_gib * GIB),
    )


@pytest.mark.parametrize(
    ("model", "budget", "rows", "row", "most_gib", "least_tokens_per_second"),
    [
        ("mistral-7b", 22.8, 4, 4096, 18.0, 11_000),
        ("llama-2-7b", 22.8, 4, 4096, 22.0, 11_000),
        ("mistral-7b", 15.2, 4, 4096, 14.5, 10_500),
        ("mistral-7b", 7.2, 4, 4096, 5.0, 10_000),
        ("mistral-7b", 7.2, 8, 4096, 5.0, 10_000),
        ("llama-2-7b", 7.2, 4, 4096, 5.0, 10_000),
        ("llama-30b", 11.0, 4, 4096, 8.5, 2_350),
        ("llama-2-70b", 22.8, 4, 4096, 16.0, 900),
        ("mistral-7b", 22.8, 1, 131_072, 22.0, 1_000),
        ("llama-2-7b", 22.8, 1, 131_072, 22.0, 1_000),
    ],
)
def test_targets_are_within_reach_of_the_plan(
    model: str, budget: float, rows: int, row: int, most_gib: float, least_tokens_per_second: int
) -> None:
    found = chosen(model, budget, rows, row)
    assert found.fits
    assert found.needed <= budget * GIB
    assert found.device.reserved <= most_gib * GIB
    assert found.form.step_tokens / found.seconds.total >= least_tokens_per_second


def test_a_card_with_room_keeps_everything() -> None:
    found = chosen("mistral-7b", 139.0, 4, 4096)
    assert found.form.kept_blocks == 32
    assert found.form.streamed_blocks == 0
    assert found.form.vocabulary_resident
    assert not found.form.pinned_records
    assert found.host.pinned == 0
    assert found.form.step_tokens / found.seconds.total >= 13_000


def test_a_small_card_streams_every_block_at_about_no_loss() -> None:
    small, large = chosen("mistral-7b", 7.2, 4, 4096), chosen("mistral-7b", 22.8, 4, 4096)
    assert (small.form.streamed_blocks, large.form.streamed_blocks) == (32, 0)
    assert small.form.slots == 3
    assert small.seconds.total <= 1.04 * large.seconds.total


@pytest.mark.parametrize("model", ["mistral-7b", "llama-2-7b"])
def test_the_smallest_plan_of_a_7b_stays_below_3_gib(model: str) -> None:
    found = smallest_form(
        KNOWN_MODELS[model],
        StepForm(rows=16, row_length=2048, microbatches=1),
        Wishes(),
        H200,
        seen_tokens=700,
    )
    assert found.device.reserved <= 3.0 * GIB
    assert (found.form.slots, found.form.vocabulary_resident) == (2, False)
    assert found.form.pinned_records


MODELS = st.sampled_from(
    ["mistral-7b", "llama-30b", "smollm2-135m", "qwen3-0.6b", "llama-3.1-8b", "tinyllama-1.1b"]
)
SHAPES = st.tuples(st.integers(1, 12), st.sampled_from([256, 1024, 4096]))
RATES = st.sampled_from(
    [H200, rates_of(gpu_name="NVIDIA GeForce RTX 4090"), rates_of(gpu_name="RTX 3090")]
)
OPTIMIZERS = st.sampled_from(["adafactor", "adamw", "adamw_8bit"])


@settings(max_examples=40, deadline=None)
@given(
    model=MODELS,
    shape=SHAPES,
    rates=RATES,
    optimizer=OPTIMIZERS,
    exact=st.booleans(),
    budget=st.floats(1.5, 40.0),
    more=st.floats(0.01, 40.0),
    host=st.none() | st.floats(8.0, 300.0),
)
def test_more_memory_is_never_slower(
    model: str,
    shape: tuple[int, int],
    rates: Rates,
    optimizer: str,
    exact: bool,
    budget: float,
    more: float,
    host: float | None,
) -> None:
    def plan(gib: float) -> Choice:
        return chosen(
            model, gib, *shape, rates=rates, host_gib=host, optimizer=optimizer, exact=exact
        )

    less = plan(budget)
    assume(less.fits)
    # The smaller of what is about as fast is taken: within that, time may go either way.
    assert plan(budget + more).seconds.total <= less.seconds.total * (1 + ABOUT_AS_FAST) + 1e-9
    assert plan(budget + more).fits


@settings(max_examples=40, deadline=None)
@given(model=MODELS, shape=SHAPES, optimizer=OPTIMIZERS, budget=st.floats(0.8, 60.0))
def test_a_plan_takes_no_more_than_it_may_and_what_it_says(
    model: str, shape: tuple[int, int], optimizer: str, budget: float
) -> None:
    facts = KNOWN_MODELS[model]
    found = chosen(model, budget, *shape, host_gib=120.0, optimizer=optimizer)
    assert found.device == device_bytes(facts, found.form)
    assert found.host == host_bytes(facts, found.form)
    seconds = step_seconds(facts, found.form, H200, min(700, shape[1]))
    assert found.seconds.total == pytest.approx(seconds)
    if found.fits:
        assert needed_bytes(found.device, found.host.pinned) <= budget * GIB
        assert found.host.total <= 120.0 * GIB
    else:
        assert found.needed > budget * GIB or found.host.total > 120.0 * GIB


@settings(max_examples=30, deadline=None)
@given(model=MODELS, shape=SHAPES, optimizer=OPTIMIZERS)
def test_a_refusal_names_a_budget_that_is_accepted(
    model: str, shape: tuple[int, int], optimizer: str
) -> None:
    refused = chosen(model, 0.8, *shape, optimizer=optimizer)
    assume(not refused.fits)
    again = chosen(model, refused.needed / GIB, *shape, optimizer=optimizer)
    assert again.fits
    assert not chosen(model, refused.needed / GIB - 0.01, *shape, optimizer=optimizer).fits


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"resident_fraction": 0.5}, {"streamed_blocks": 16}),
        ({"block_inputs": "gpu"}, {"pinned_records": False}),
        ({"block_inputs": "pinned"}, {"pinned_records": True}),
        ({"recompute": "full"}, {"selective_blocks": 0, "kept_blocks": 0}),
        ({"recompute": "selective"}, {"selective_blocks": 32}),
        ({"recompute": "none"}, {"kept_blocks": 32}),
        ({"microbatches": 2}, {"microbatches": 2}),
        ({"sum_dtype": "float32"}, {"sum_bytes": 4}),
    ],
)
def test_what_a_config_fixes_stays(wish: dict[str, Any], expected: dict[str, object]) -> None:
    for gib in (22.8, 100.0):
        found = chosen("mistral-7b", gib, 4, 4096, wishes=Wishes(**wish))
        assert found.fits
        assert {name: getattr(found.form, name) for name in expected} == expected


def test_host_memory_bounds_what_waits_there() -> None:
    free, bound = (chosen("mistral-7b", 7.2, 4, 4096, host_gib=gib) for gib in (None, 24.0))
    assert bound.fits
    assert bound.host.total <= 24.0 * GIB < free.host.total
    assert bound.seconds.total > free.seconds.total
    assert not chosen("mistral-7b", 7.2, 4, 4096, host_gib=10.0).fits


@pytest.mark.parametrize(("host_gib", "left_gib"), [(24, 3.0), (32, 4.0), (64, 4.0), (128, 6.4)])
def test_a_plan_leaves_host_memory_to_other_programs(host_gib: float, left_gib: float) -> None:
    found = chosen("mistral-7b", 7.2, 4, 4096, host_gib=host_gib)
    assert found.fits
    assert found.host.total <= (host_gib - left_gib) * GIB


def test_where_nothing_else_fits_less_is_left_to_other_programs() -> None:
    wishes = Wishes(resident_fraction=0.0, microbatches=8)
    found = chosen("mistral-7b", 7.0, 8, 2048, host_gib=22.0, wishes=wishes)
    assert found.fits
    assert 22.0 * (1 - 0.125) * GIB < found.host.total <= most_of_host(22 * GIB)
    assert not chosen("mistral-7b", 7.0, 8, 2048, host_gib=21.0, wishes=wishes).fits


def test_slow_links_are_not_crossed_without_need() -> None:
    slow = dataclasses.replace(H200, up=4e9, down=4e9, both=4e9)
    found = chosen("mistral-7b", 26.0, 4, 4096, rates=slow)
    assert found.form.streamed_blocks == 0
    assert not found.form.pinned_records


def test_the_cpu_takes_microbatches_of_at_most_8192_tokens() -> None:
    cpu = rates_of(gpu_name=None, is_gpu=False)
    found = chosen("mistral-7b", None, 16, 2048, rates=cpu, weight_bytes=4, is_gpu=False)
    assert (found.form.microbatches, found.form.sum_bytes) == (4, 4)
    assert found.form.kept_blocks == 0
    small = chosen("smollm2-135m", None, 1, 256, rates=cpu, weight_bytes=4, is_gpu=False)
    assert small.form.kept_blocks == KNOWN_MODELS["smollm2-135m"].num_layers
