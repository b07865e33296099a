"""Will it fit: verdicts, levers and proposals, each estimated again."""

import dataclasses
from typing import Any

import pytest

from workbench.config.known_models import KNOWN_MODELS, known_model, known_name
from workbench.config.load import parse_overrides, resolve
from workbench.config.memory_fit import Counts, Machine, fit
from workbench.config.memory_levers import as_planned, levers, with_overrides
from workbench.config.memory_parts import GIB, MARGIN, StepForm, outside_bytes
from workbench.config.memory_plan import (
    Estimate,
    MeasuredRun,
    basis_words,
    estimate,
    total_words,
)
from workbench.config.pipeline_parts import PipelineForm
from workbench.config.schema.config import Config
from workbench.errors import RunError

MISTRAL = KNOWN_MODELS["mistral-7b"]
PACKED = ["data.packing=best_fit", "data.max_length=4096", "batch.train=4"]


def config_of(name: str, *texts: str) -> Config:
    return resolve(name, overrides=parse_overrides(texts)).config


def estimated(
    gib: float | None, *texts: str, model: str = "mistral-7b", name: str = "base/1gpu"
) -> Estimate:
    config = config_of(name, "data.packing=best_fit", *texts)
    return estimate(config, KNOWN_MODELS[model], machine=Machine(budget_gib=gib))


@pytest.mark.parametrize(
    ("gib", "verdict", "streamed"),
    [(80, "fits", 0), (22.8, "fits", 0), (7.2, "fits", 32), (4, "fits", 32), (3.1, "tight", 32),
     (2.5, "will_not_fit", 32)],
)  # fmt: skip
def test_the_verdict_follows_the_budget(gib: float, verdict: str, streamed: int) -> None:
    found = estimated(gib, "data.max_length=4096", "batch.train=4")
    form = found.fit.form
    assert isinstance(form, StepForm)
    assert (found.verdict, form.streamed_blocks) == (verdict, streamed)
    assert found.margin_bytes is not None
    assert (found.margin_bytes < 0) == (verdict == "will_not_fit")
    assert sum(part.num_bytes for part in found.fit.worst.parts) == found.total
    assert bool(found.levers) == (verdict == "tight"), "at 2.5 GiB nothing alone is enough"
    assert (found.hardware is not None) == (verdict == "will_not_fit")
    assert found.fit.is_measured_form
    assert found.fit.step_parts is not None
    assert found.fit.step_parts.total == pytest.approx(found.fit.seconds)


def test_a_plan_that_fills_its_budget_is_no_tighter_than_one_that_cannot_do_with_less() -> None:
    found = estimated(18.0, *PACKED, "optimizer.rounding=exact")
    assert found.margin_bytes is not None
    assert found.margin_bytes < 0.1 * 18 * GIB
    assert found.verdict == "fits"
    assert found.fit.least is not None
    fixed = estimated(16.0, *PACKED, "memory.resident_fraction=1.0")
    assert fixed.verdict == "tight"


def test_without_a_budget_nothing_is_promised() -> None:
    config = config_of("base/training", "training.device=cuda")
    found = estimate(config, MISTRAL)
    assert (found.verdict, found.fit.budget_bytes, found.margin_bytes) == ("unknown", None, None)
    assert "no budget is known" in total_words(found)


def test_what_is_free_on_the_gpu_is_the_budget_of_a_config_that_states_none() -> None:
    machine = Machine(gpu_name="NVIDIA H200", gpu_free_bytes=140 * GIB)
    found = estimate(config_of("base/training"), MISTRAL, machine=machine)
    assert (found.verdict, found.fit.budget_source) == ("fits", "free on the GPU")


FIXED = ("memory.block_inputs=gpu", "memory.resident_fraction=1.0")


def test_every_lever_takes_off_what_it_says() -> None:
    config = config_of("base/1gpu", *PACKED, *FIXED)
    machine = Machine(budget_gib=19.0)
    now = fit(config, MISTRAL, machine)
    found = levers(config, MISTRAL, machine, None, now)
    assert len(found) >= 6
    for lever in found:
        is_planned_anew = "batch.train" in lever.overrides or "auto" in lever.overrides.values()
        base = config if is_planned_anew else as_planned(config, now)
        there = fit(with_overrides(base, lever.overrides), MISTRAL, machine)
        assert now.worst.total - there.worst.total == lever.saved_bytes > 0
        assert there.verdict == lever.verdict
        assert lever.can_start
    changes = [lever.changes_training for lever in found]
    assert changes == sorted(changes)
    words = {lever.words for lever in found}
    assert {"keep block inputs in pinned RAM", "let the plan choose", "stream 8 of 32 blocks",
            "rows of 2,048 tokens in place of 4,096"} <= words  # fmt: skip


@pytest.mark.parametrize("gib", [2.0, 2.5, 7.2, 15.0, 17.5])
@pytest.mark.parametrize("model", ["mistral-7b", "llama-2-7b", "qwen3-8b"])
def test_a_proposal_fits_when_it_is_estimated_again(gib: float, model: str) -> None:
    config = config_of("base/1gpu", *PACKED, *FIXED)
    machine, facts = Machine(budget_gib=gib), KNOWN_MODELS[model]
    found = estimate(config, facts, machine=machine)
    assert found.verdict == "will_not_fit"
    for proposal in found.proposals:
        again = fit(with_overrides(config, proposal.overrides), facts, machine)
        assert again.verdict == proposal.found.verdict in ("fits", "tight")
        assert again.worst.total == proposal.found.worst.total <= gib * GIB
        for key in proposal.overrides:
            fewer = {other: value for other, value in proposal.overrides.items() if other != key}
            less = fit(with_overrides(config, fewer), facts, machine)
            is_slower = less.seconds / less.step_tokens > 1.05 * again.seconds / again.step_tokens
            assert less.verdict == "will_not_fit" or is_slower, "each change is needed"
        assert proposal.can_start == facts.is_trainable
    if gib > 7:
        assert not found.proposals[0].changes_training
        assert set(found.proposals[0].overrides.values()) == {"auto"}
    assert found.proposals or gib < 3


@pytest.mark.parametrize("gib", [7.2, 12.0, 17.5])
def test_each_way_alone_is_enough_when_it_is_estimated_again(gib: float) -> None:
    config, machine = config_of("base/1gpu", *PACKED, *FIXED), Machine(budget_gib=gib)
    found = estimate(config, MISTRAL, machine=machine)
    assert found.verdict == "will_not_fit"
    assert found.levers
    for way in found.levers:
        again = fit(with_overrides(config, way.overrides), MISTRAL, machine)
        assert again.verdict == way.verdict in ("fits", "tight")
        assert (again.worst.total, again.host_needed) == (way.total, way.host_bytes)
    keys = [tuple(way.overrides) for way in found.levers]
    assert len(keys) == len(set(keys)), "of one key's values the fastest"


def test_host_memory_that_is_short_is_helped_by_what_takes_less_of_it() -> None:
    config = config_of("1gpu_llama_30b/24gb", "optimizer.rounding=exact", "data.max_length=2048")
    machine, facts = Machine(budget_gib=22.8, host_gib=100), KNOWN_MODELS["llama-30b"]
    found = estimate(config, facts, machine=machine)
    assert found.verdict == "will_not_fit"
    assert found.margin_bytes is not None
    assert found.margin_bytes > 0, "the GPU has room"
    assert [dict(way.overrides) for way in found.levers] == [{"optimizer.rounding": "stochastic"}]
    assert found.hardware is not None
    assert found.hardware.host_bytes is not None
    enough = found.hardware.host_bytes / GIB
    for gib, verdict in ((enough, "fits"), (enough - 1, "will_not_fit")):
        held = dataclasses.replace(machine, host_gib=gib)
        assert estimate(config, facts, machine=held).verdict == verdict


def test_all_of_a_card_is_used_before_anything_is_trained_otherwise() -> None:
    config, facts = config_of("1gpu_llama_30b/12gb"), KNOWN_MODELS["llama-30b"]
    found = estimate(config, facts, machine=Machine(meant_gpu="RTX 4090", host_gib=64))
    assert found.verdict == "will_not_fit"
    assert dict(found.proposals[0].overrides) == {
        "memory.resident_fraction": "auto", "memory.budget_gib": 22.7,
    }  # fmt: skip
    assert not found.proposals[0].changes_training
    # Who states a budget means that one.
    stated = Machine(meant_gpu="RTX 4090", host_gib=64, budget_gib=11)
    found = estimate(config, facts, machine=stated)
    assert all("memory.budget_gib" not in each.overrides for each in found.proposals)


def test_host_memory_that_is_short_is_counted_with_all_that_the_gpu_has_room_for() -> None:
    config, facts = config_of("1gpu_llama_30b/24gb"), KNOWN_MODELS["llama-30b"]
    found = estimate(config, facts, machine=Machine(budget_gib=22.8, host_gib=64))
    assert found.verdict == "will_not_fit"
    assert found.hardware is None, "a change that leaves training as it is makes it fit"
    assert found.fit.host_room is not None
    # Weights are streamed as the config says; block inputs stay on the GPU.
    assert found.fit.worst.host.block_inputs == 0
    assert 60 * GIB < found.fit.host_needed < 66 * GIB


def test_a_gpu_and_a_host_that_both_lack_are_named_together() -> None:
    config, facts = config_of("1gpu_llama_70b/24gb"), KNOWN_MODELS["llama-2-70b"]
    machine = Machine(meant_gpu="RTX 4060", host_gib=64)
    hardware = estimate(config, facts, machine=machine).hardware
    assert hardware is not None
    assert hardware.host_bytes is None
    assert hardware.both_bytes is not None
    card, host = (each / GIB for each in hardware.both_bytes)
    larger = Machine(budget_gib=card, host_gib=host)
    assert fit(config, facts, larger).verdict == "tight"
    assert fit(config, facts, dataclasses.replace(larger, budget_gib=card - 1)).verdict == (
        "will_not_fit"
    )


def test_less_is_seen_only_where_nothing_else_is_left() -> None:
    found = estimated(2.6, *PACKED)
    (proposal,) = found.proposals
    assert proposal.changes_training
    assert proposal.overrides["data.max_length"] < 4096  # type: ignore[operator]


def test_a_family_that_cannot_be_trained_is_offered_nothing_to_start() -> None:
    facts = dataclasses.replace(MISTRAL, family="gemma")
    config = config_of("base/1gpu", *PACKED, *FIXED)
    found = estimate(config, facts, machine=Machine(budget_gib=19.0))
    assert not facts.is_trainable
    assert found.proposals
    assert not any(proposal.can_start for proposal in found.proposals)
    assert not any(lever.can_start for lever in found.levers)


def test_fp32_on_the_cpu_is_held_against_host_memory() -> None:
    config = config_of("base/training", "training.device=cpu", "model.dtype=float32")
    small = KNOWN_MODELS["smollm2-135m"]
    for host_gib, verdict in ((64, "fits"), (2, "will_not_fit")):
        found = estimate(config, small, machine=Machine(host_bytes=host_gib * GIB))
        assert (found.verdict, found.fit.is_gpu) == (verdict, False)
        assert found.fit.host_needed == found.total
    assert found.fit.budget_source == "host memory"


STREAMED = ("memory.resident_fraction=0", "memory.block_inputs=pinned")


def test_streamed_weights_need_host_memory_where_the_gpu_is() -> None:
    config = config_of("base/1gpu", *PACKED, *STREAMED)
    here = Machine(gpu_name="RTX 4090", gpu_free_bytes=24 * GIB, host_bytes=8 * GIB)
    assert estimate(config, MISTRAL, machine=here).verdict == "will_not_fit"
    assert "host memory does not hold it" in total_words(estimate(config, MISTRAL, machine=here))
    elsewhere = Machine(host_bytes=8 * GIB)
    found = estimate(config, MISTRAL, machine=elsewhere)
    assert found.verdict == "fits"
    assert any("this one, which has no GPU, has 8.0" in note for note in found.fit.notes)
    stated = Machine(host_bytes=8 * GIB, host_gib=12.0)
    found = estimate(config, MISTRAL, machine=stated)
    assert found.verdict == "will_not_fit"
    assert found.fit.host_available == 12 * GIB
    assert not any("no GPU" in note for note in found.fit.notes)


def test_a_host_that_a_plan_would_fill_does_not_fit() -> None:
    config = config_of("1gpu_llama_7b/8gb")
    full, enough = (estimate(config, MISTRAL, machine=Machine(host_gib=gib)) for gib in (17, 24))
    assert (full.verdict, enough.verdict) == ("will_not_fit", "fits")
    # What it takes without block inputs would be there, and nothing for anybody else.
    assert enough.fit.host_needed - enough.fit.worst.host.block_inputs < 17 * GIB


def test_a_budget_is_cut_to_what_is_free() -> None:
    config = config_of("1gpu_llama_7b/packed", "memory.resident_fraction=auto")

    def held_against(**machine: Any) -> tuple[int | None, str]:  # noqa: ANN401
        found = estimate(config, MISTRAL, machine=Machine(host_bytes=64 * GIB, **machine))
        assert found.total <= (found.fit.budget_bytes or 0)
        return found.fit.budget_bytes, found.fit.budget_source

    card = {"gpu_name": "RTX 4090"}
    assert held_against(gpu_free_bytes=23 * GIB, **card) == (int(22.8 * GIB), "memory.budget_gib")
    screen = held_against(gpu_free_bytes=12 * GIB, **card)
    assert screen == (12 * GIB, "free on the GPU, less than memory.budget_gib (22.8)")
    # Another card is asked about.
    assert held_against(gpu_free_bytes=12 * GIB, budget_gib=20.0, **card) == (20 * GIB, "--gpu-gib")


def test_host_memory_that_is_known_bounds_the_plan() -> None:
    config = config_of("base/1gpu", *PACKED)
    small, large = (
        estimate(config, MISTRAL, machine=Machine(budget_gib=7.2, host_gib=gib))
        for gib in (24.0, 128.0)
    )
    assert (small.verdict, large.verdict) == ("fits", "fits")
    assert small.fit.host_needed <= 24 * GIB < large.fit.host_needed
    assert small.seconds_per_step >= large.seconds_per_step


@pytest.mark.parametrize("model", ["llama-30b", "llama-2-70b"])
def test_where_nothing_is_known_of_the_host_it_is_said_what_is_assumed(model: str) -> None:
    found = estimated(22.8, *PACKED, model=model)
    assert found.verdict == "fits"
    (note,) = (note for note in found.fit.notes if "host memory taken to be" in note)
    assumed = float(note.split("taken to be ")[1].split(" ")[0].replace(",", ""))
    assert found.fit.host_needed <= assumed * GIB
    weights = 2 * KNOWN_MODELS[model].num_parameters
    assert weights < found.fit.host_needed < 2 * weights


def test_what_a_config_leaves_open_is_chosen_and_said() -> None:
    config = config_of("1gpu_llama_7b/8gb")
    found = estimate(config, MISTRAL)
    form = found.fit.form
    assert isinstance(form, StepForm)
    assert form.streamed_blocks == 32
    assert form.pinned_records
    keys = ("block_inputs", "recompute")
    for key in keys:
        assert any(f"memory.{key}: auto gives" in note for note in found.fit.notes)
    assert "the engine's own buffers" in basis_words(found)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("1gpu_llama_7b/default", "mistral-7b"),
        ("1gpu_llama_7b/med_context", "mistral-7b"),
        ("1gpu_llama_7b/long_context", "mistral-7b"),
        ("1gpu_llama_7b/packed", "llama-2-7b"),
        ("1gpu_llama_7b/16gb", "llama-2-7b"),
        ("1gpu_llama_7b/8gb", "mistral-7b"),
        ("1gpu_llama_30b/24gb", "llama-30b"),
        ("1gpu_llama_30b/12gb", "llama-30b"),
        ("1gpu_llama_70b/24gb", "llama-2-70b"),
        ("pipeline_llama_7b/2gpu_1f1b", "mistral-7b"),
        ("pipeline_llama_7b/1f1b_4gpu", "mistral-7b"),
        ("pipeline_llama_7b/i1f1b_4gpu", "llama-2-7b"),
        ("pipeline_llama_7b/zb_4gpu", "mistral-7b"),
        ("pipeline_llama_7b/zb_6gpu", "mistral-7b"),
        ("pipeline_llama_30b/1f1b_4gpu", "llama-30b"),
        ("pipeline_llama_30b/1f1b_6gpu", "llama-30b"),
    ],
)
def test_every_shipped_config_fits_the_budget_it_states(name: str, model: str) -> None:
    found = estimate(config_of(name), KNOWN_MODELS[model])
    assert found.verdict in ("fits", "tight"), (found.total / GIB, found.fit.notes)
    assert found.seconds_per_step > 0
    if isinstance(found.fit.form, PipelineForm):
        assert len(found.fit.ranks) == found.fit.form.ranks > 1
        assert {rank.rank for rank in found.fit.ranks} == set(range(found.fit.form.ranks))
        assert found.fit.worst.total == max(rank.total for rank in found.fit.ranks)


def test_a_30b_over_four_cards_says_what_must_move() -> None:
    found = estimate(config_of("pipeline_llama_30b/1f1b_4gpu"), KNOWN_MODELS["llama-30b"])
    assert any("the sums must go to pinned RAM" in note for note in found.fit.notes)


@pytest.mark.parametrize("model", KNOWN_MODELS)
def test_every_known_model_has_an_estimate(model: str) -> None:
    found = estimated(22.8, *PACKED, model=model)
    assert found.verdict in ("fits", "tight")
    assert found.total + found.fit.host_needed > 2 * KNOWN_MODELS[model].num_parameters


def test_prepared_data_says_how_long_rows_are_and_how_many_steps() -> None:
    config = config_of("1gpu_llama_7b/default", "data.max_length=4096")
    unknown = estimate(config, MISTRAL)
    assert not unknown.row_is_certain
    assert unknown.steps_per_epoch is None
    assert any("rows taken to be" in note for note in unknown.fit.notes)
    counts = Counts(longest_row=700, steps_per_epoch=100, seen_tokens=350.0)
    known = estimate(config, MISTRAL, counts=counts)
    assert known.row_is_certain
    assert (known.fit.form.row_length, known.steps_per_epoch) == (700, 100)
    assert known.total < unknown.total


def test_a_measured_run_comes_before_the_formula() -> None:
    config = config_of("base/1gpu", *PACKED)
    machine = Machine(budget_gib=22.8)
    plain = estimate(config, MISTRAL, machine=machine)
    outside = outside_bytes(plain.fit.worst.host.pinned)
    planned = int((plain.total - outside) / (1 + MARGIN))
    run = MeasuredRun(
        name="mine-3",
        gpu_reserved_bytes=planned - GIB,
        predicted_bytes=planned,
        host_peak_bytes=3 * GIB,
        tokens_per_second=4096.0,
    )
    found = estimate(config, MISTRAL, machine=machine, measured=run)
    assert found.total == planned - GIB + outside < plain.total
    assert found.verdict == "fits"
    assert found.seconds_per_step == pytest.approx(16384 / 4096)
    assert basis_words(found).startswith(f"measured run mine-3: {planned / GIB - 1:.2f} GiB, ")
    cut_otherwise = dataclasses.replace(run, microbatches=found.fit.form.microbatches + 1)
    on_the_cpu = dataclasses.replace(run, gpu_reserved_bytes=None)
    planned_otherwise = dataclasses.replace(run, predicted_bytes=planned * 2)
    for other in (cut_otherwise, on_the_cpu, planned_otherwise):
        assert estimate(config, MISTRAL, machine=machine, measured=other) == plain
    larger = dataclasses.replace(run, gpu_reserved_bytes=23 * GIB)
    assert estimate(config, MISTRAL, machine=machine, measured=larger).verdict == "will_not_fit"


def test_a_model_is_found_by_the_name_people_type() -> None:
    assert known_model("/somewhere/Mistral_7B") == ("mistral-7b", MISTRAL)
    with pytest.raises(RunError) as caught:
        known_model("mistral-8b")
    assert "did you mean mistral-7b" in caught.value.remedy
    assert "workbench estimate --known" in caught.value.remedy


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [
        ("mistralai/Mistral-7B-v0.1", "mistral-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"), ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"), ("facebook/cwm", "cwm-32b"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo-12b"),
        ("codellama/CodeLlama-7b-hf", None), ("mistralai/Mistral-7B-v0.4", None),
        ("Qwen/Qwen2.5-7B-Instruct-1M", None),
    ],
)  # fmt: skip
def test_a_model_is_known_by_its_id_on_the_hub(hub_id: str, name: str | None) -> None:
    assert known_name(hub_id) == name


def test_a_known_model_counts_what_its_family_has() -> None:
    qwen2, qwen3 = KNOWN_MODELS["qwen2.5-7b"], KNOWN_MODELS["qwen3-8b"]
    assert (qwen2.biased, qwen2.query_key_norm) == (("q", "k", "v"), False)
    assert (qwen3.biased, qwen3.query_key_norm) == ((), True)
    without = dataclasses.replace(qwen2, biased=())
    assert qwen2.num_parameters - without.num_parameters == 28 * (3584 + 2 * 512)
    assert KNOWN_MODELS["mistral-7b"].sliding_window == 4096
    assert KNOWN_MODELS["mistral-7b-v0.3"].sliding_window is None


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mistral-7b", 7.242), ("llama-2-7b", 6.738), ("llama-3.1-8b", 8.030),
        ("llama-30b", 32.53), ("llama-2-70b", 68.98), ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-7b", 7.616), ("qwen2.5-14b", 14.77), ("qwen2.5-32b", 32.76),
        ("qwen2.5-72b", 72.71), ("qwen3-0.6b", 0.596), ("qwen3-8b", 8.191),
        ("qwen3-32b", 32.76), ("tinyllama-1.1b", 1.100), ("smollm2-135m", 0.1345),
        ("smollm2-1.7b", 1.711), ("llama-3.2-1b", 1.236), ("llama-3.2-3b", 3.213),
        ("llama-3.3-70b", 70.55), ("mistral-nemo-12b", 12.25), ("mistral-small-24b", 23.57),
        ("qwen2.5-3b", 3.086), ("qwen3-1.7b", 1.721), ("qwen3-4b", 4.022), ("qwen3-14b", 14.77),
        ("internlm3-8b", 8.804), ("seed-oss-36b", 36.15), ("cwm-32b", 32.58),
        ("smollm3-3b", 3.075),
    ],
)  # fmt: skip
def test_known_models_have_the_parameters_that_were_published(name: str, billions: float) -> None:
    assert KNOWN_MODELS[name].num_parameters / 1e9 == pytest.approx(billions, rel=1e-3)
