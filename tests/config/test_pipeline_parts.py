"""Bytes of the ranks of a pipeline: cut by cost, sums of whole stages, passes alive, buffers."""

import dataclasses

import pytest

from workbench.config.known_models import KNOWN_MODELS
from workbench.config.memory_parts import GIB, needed_bytes
from workbench.config.pipeline_parts import (
    PipelineForm,
    RankBytes,
    deal_blocks,
    place_sums,
    ranks_bytes,
    worst_rank,
)
from workbench.config.pipeline_twins import saved_bytes_per_token
from workbench.config.schedule_facts import ScheduleName

MISTRAL, BIG = KNOWN_MODELS["mistral-7b"], KNOWN_MODELS["llama-30b"]
BUDGET = int(22.8 * GIB)


def form(schedule: ScheduleName, ranks: int, *, stages: int = 1, rows: int = 8) -> PipelineForm:
    return PipelineForm(
        ranks=ranks,
        stages=stages,
        schedule=schedule,
        rows=rows,
        row_length=1024,
        microbatches=rows,
        recompute="none",
    )


@pytest.mark.parametrize("model", ["mistral-7b", "llama-3.1-8b", "qwen2.5-0.5b", "llama-30b"])
@pytest.mark.parametrize(
    ("schedule", "ranks", "stages"),
    [("1f1b", 2, 1), ("1f1b", 6, 1), ("interleaved_1f1b", 4, 2), ("zbv", 4, 2)],
)
def test_every_parameter_is_on_a_rank(
    model: str, schedule: ScheduleName, ranks: int, stages: int
) -> None:
    facts = KNOWN_MODELS[model]
    found = ranks_bytes(facts, form(schedule, ranks, stages=stages, rows=12))
    assert sum(rank.blocks for rank in found) == facts.num_layers
    assert min(rank.blocks for rank in found) >= stages
    assert [rank.rank for rank in found if rank.has_embedding] == [0]
    assert [rank.rank for rank in found if rank.has_head] == [0 if schedule == "zbv" else ranks - 1]
    assert sum(rank.share for rank in found) == pytest.approx(1.0)
    # A tied head that is not beside the embedding is a second copy.
    copies = facts.vocabulary_parameters if facts.tied and schedule != "zbv" else 0
    assert sum(rank.device.weights for rank in found) == 2 * (facts.num_parameters + copies)


def test_a_large_head_takes_blocks_away_from_its_rank() -> None:
    few, _ = deal_blocks(MISTRAL, form("1f1b", 4))
    many, _ = deal_blocks(KNOWN_MODELS["llama-3.1-8b"], form("1f1b", 4))
    assert few == [8, 8, 8, 8]
    assert many[-1] < many[0]
    _, shares = deal_blocks(KNOWN_MODELS["llama-3.1-8b"], form("1f1b", 4))
    assert max(shares) / min(shares) < 1.15


def test_the_first_rank_keeps_most_passes_of_1f1b() -> None:
    found = ranks_bytes(MISTRAL, form("1f1b", 4))
    assert [rank.alive for rank in found] == [4, 3, 2, 1]
    assert worst_rank(found).rank == 0
    kept = saved_bytes_per_token(MISTRAL) * 1024 * 8
    assert [rank.device.block_inputs for rank in found] == [4 * kept, 3 * kept, 2 * kept, kept]


def test_buffers_are_kept_for_every_microbatch_and_neighbour() -> None:
    found = ranks_bytes(MISTRAL, dataclasses.replace(form("1f1b", 4, rows=16), row_length=4096))
    # 0.5 GiB per neighbour at 16 microbatches of 4,096 tokens.
    assert [rank.device.staging / GIB for rank in found] == [0.5, 1.0, 1.0, 0.5]


def needed(ranks: list[RankBytes]) -> int:
    worst = worst_rank(ranks)
    return needed_bytes(worst.device, worst.host.pinned)


def test_a_30b_on_four_cards_moves_its_sums_to_pinned_memory() -> None:
    wanted = dataclasses.replace(
        form("1f1b", 4, rows=4), row_length=1300, recompute="full", pinned_inputs=True
    )
    together = ranks_bytes(BIG, wanted)
    assert needed(together) > BUDGET
    # 15.1 GiB of weights per rank and as much again for sums of 16 bits.
    assert together[1].device.weights / GIB == pytest.approx(15.1, abs=0.3)
    assert together[1].device.gradient_sums == together[1].device.weights
    moved, found = place_sums(BIG, wanted, BUDGET)
    assert moved.pinned_sums
    assert needed(found) <= BUDGET
    assert found[0].host.gradient_sums == together[0].device.gradient_sums
    assert place_sums(MISTRAL, form("1f1b", 4), BUDGET)[0].pinned_sums is False


def test_every_named_schedule_of_a_7b_fits_its_budget() -> None:
    for schedule, ranks, stages in (
        ("1f1b", 2, 1), ("1f1b", 4, 1), ("interleaved_1f1b", 4, 2), ("zbv", 4, 2),
    ):  # fmt: skip
        found = ranks_bytes(MISTRAL, form(schedule, ranks, stages=stages))  # type: ignore[arg-type]
        assert needed(found) <= BUDGET, schedule


def test_norms_of_heads_are_kept_by_autograd_and_biases_are_not() -> None:
    plain = saved_bytes_per_token(MISTRAL)
    assert saved_bytes_per_token(dataclasses.replace(MISTRAL, biased=("q", "k", "v"))) == plain
    normed = saved_bytes_per_token(dataclasses.replace(MISTRAL, query_key_norm=True))
    assert normed - plain == (4096 + 1024) * (4 + 2 + 2)
