"""Rules between keys, and what this version does not start."""

from dataclasses import replace

import pytest

from workbench.config import checks
from workbench.config.load import at_origins, parse_overrides, resolve
from workbench.config.model_facts import ModelFacts
from workbench.config.problems import ConfigProblems

READY = ["model.path=/m", "data.sources.poems.path=/p.json"]


def refused(*texts: str) -> list[str]:
    config = resolve("base/training", overrides=parse_overrides([*READY, *texts])).config
    return [problem.key for problem in checks.refused_at_start(config)]


@pytest.mark.parametrize(
    ("texts", "key"),
    [
        (["training.engine=pipeline"], "training.engine"),
        (["pipeline.replicas=2"], "pipeline.replicas"),
        (["checkpoints.save_on_each_node=true"], "checkpoints.save_on_each_node"),
        (["model.path=null"], "model.path"),
    ],
)
def test_a_start_that_would_not_do_what_it_says_is_refused(texts: list[str], key: str) -> None:
    assert refused(*texts) == [key]


@pytest.mark.parametrize(
    "text",
    [
        "memory.resident_fraction=1",
        "memory.resident_fraction=0.5",
        "memory.resident_fraction=0",
        "memory.recompute=full",
        "memory.recompute=selective",
        "memory.recompute=none",
        "memory.block_inputs=gpu",
        "memory.block_inputs=pinned",
        "optimizer.rounding=nearest",
        "optimizer.rounding=exact",
        "optimizer.name=adamw",
        "optimizer.name=adamw_8bit",
        "optimizer.name=adamw_4bit",
        "model.attention=varlen",
        "model.attention=flex",
        "model.compile=true",
        "model.weights=random",
        "training.device=cpu",
        "samples.prompts=[hello]",
    ],
)
def test_what_this_version_does_is_started(text: str) -> None:
    assert refused(text) == []


def test_a_config_without_data_or_model_resolves_but_does_not_start() -> None:
    resolved = resolve("base/training")
    problems = at_origins(checks.refused_at_start(resolved.config), resolved)
    assert [problem.key for problem in problems] == ["model.path", "data.sources"]
    assert all("training.yaml:" in problem.place for problem in problems)
    assert "--model" in problems[0].remedy


@pytest.mark.parametrize(
    ("texts", "key"),
    [
        (["data.split_at=[0.9, 0.8]"], "data.split_at"),
        (["data.split_at=[0, 0.8]"], "data.split_at"),
        (["data.split_at=[0.9, 1.1]"], "data.split_at"),
        (["data.split_at=[0.9, 0.9]"], "evaluation.every_steps"),
        (
            ["optimizer.warmup_steps=6", "optimizer.cooldown_steps=5", "training.max_steps=10"],
            "optimizer.cooldown_steps",
        ),
        (["batch.microbatches=9"], "batch.microbatches"),
        (["optimizer.clip_by=exact_norm"], "optimizer.clip_by"),
        (["pipeline.ranks=2"], "pipeline.ranks"),
        (["optimizer.rounding=exact", "model.dtype=float32"], "optimizer.rounding"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(texts: list[str], key: str) -> None:
    with pytest.raises(ConfigProblems) as caught:
        resolve("base/training", overrides=parse_overrides(texts))
    (problem,) = caught.value.problems
    assert problem.key == key
    assert problem.place


@pytest.mark.parametrize(
    "texts",
    [
        # A trial of ten steps ends within the warm-up of its config.
        ["training.max_steps=10", "optimizer.warmup_steps=50"],
        ["data.split_at=[0.9, 0.9]", "evaluation.every_steps=0"],
        ["data.split_at=[1, 1]", "evaluation.every_steps=0"],
        ["optimizer.clip_by=exact_norm", "training.engine=pipeline"],
        ["batch.microbatches=8"],
    ],
)
def test_what_only_looks_like_a_contradiction_resolves(texts: list[str]) -> None:
    assert resolve("base/training", overrides=parse_overrides(texts))


def test_rows_longer_than_the_model_takes_are_refused() -> None:
    config = resolve("base/training").config
    facts = ModelFacts(
        family="llama",
        num_layers=1,
        hidden_size=8,
        intermediate_size=8,
        num_heads=1,
        num_key_value_heads=1,
        head_size=8,
        vocabulary_size=8,
        max_positions=2048,
        sliding_window=None,
        tied=False,
    )
    (problem,) = checks.check_model(config, facts)
    assert problem.key == "data.max_length"
    assert "2048" in problem.remedy
    # Scaled positions reach further than the base was made for.
    assert not list(checks.check_model(config, replace(facts, longest_document=4096)))
