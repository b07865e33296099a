"""The named configs against the tables of the feature reference, B.1, B.2 and B.3, key by key."""

import shlex
from pathlib import Path

import pytest

from tests.short_folder import short_folder
from workbench.cli.main import main
from workbench.config.find import shipped_configs
from workbench.config.load import ResolvedConfig, list_configs, offered_flags, resolve

# B.1: what Samantha's configs share. A row below states only what it changes.
SAMANTHA: dict[str, object] = {
    "model.path": None,
    "model.weights": "load",
    "model.dtype": "bfloat16",
    "model.attention": "auto",
    "model.compile": False,
    "data.sources.samantha.path": "QuixiAI/samantha-data",
    "data.sources.samantha.files": ["samantha-1.1.json"],
    "data.sources.samantha.format": "auto",
    "data.sources.samantha.split": None,
    "data.sources.samantha.weight": 1.0,
    "data.split_at": [0.80, 0.95],
    "data.chat_template": "chatml",
    "data.max_length": 4096,
    "data.pad_to": "longest",
    "data.packing": "none",
    "data.overlong": "truncate",
    "data.targets": "assistant",
    "data.roles": {},
    "data.skip_bad_rows": False,
    "data.shuffle": True,
    "data.num_workers": 1,
    "batch.train": 8,
    "batch.evaluation": 16,
    "batch.microbatches": "auto",
    "optimizer.name": "adafactor",
    "optimizer.learning_rate": 4.0e-6,
    "optimizer.warmup_steps": 50,
    "optimizer.cooldown_steps": 0,
    "optimizer.weight_decay": 1e-3,
    "optimizer.rounding": "stochastic",
    "optimizer.clip_by": "update",
    "optimizer.clip_norm": 1.0,
    "memory.budget_gib": None,
    "memory.resident_fraction": "auto",
    "memory.block_inputs": "auto",
    "memory.recompute": "auto",
    "memory.sum_dtype": "auto",
    "pipeline.ranks": 1,
    "pipeline.schedule": "auto",
    "pipeline.stages_per_rank": "auto",
    "pipeline.replicas": 1,
    "evaluation.every_steps": 50,
    "evaluation.max_batches": 10,
    "logging.every_steps": 10,
    "logging.name": None,
    "checkpoints.save_strategy": "steps",
    "checkpoints.every_steps": 250,
    "checkpoints.keep": 3,
    "checkpoints.resume": "auto",
    "checkpoints.save_on_each_node": False,
    "samples.prompts": [],
    "samples.every_steps": 100,
    "samples.max_tokens": 64,
    "samples.temperature": 0.0,
    "training.engine": "layer_major",
    "training.device": "auto",
    "training.seed": 42,
    "training.epochs": 1.0,
    "training.max_steps": None,
    "training.output_dir": None,
    "training.matmul_precision": "high",
    "training.nonfinite": "stop",
    "training.deterministic": False,
}

# The finetune base below it, for other projects (B.1, last but one line).
TRAINING = {
    key: value for key, value in SAMANTHA.items() if not key.startswith("data.sources.")
} | {
    "data.sources": {},
    "data.chat_template": "auto",
    "optimizer.learning_rate": 5e-6,
    "optimizer.warmup_steps": 200,
    "evaluation.every_steps": 100,
    "evaluation.max_batches": None,
    "checkpoints.every_steps": 1000,
}


def one_gpu(
    context: int,
    padded_to: str,
    batch: tuple[int, int],
    rate: float,
    intervals: tuple[int, int, int, int],
    **others: object,
) -> dict[str, object]:
    """A row of a config for one GPU; ``others`` name keys with __ in place of the dot."""
    row = _row(context, padded_to, batch, rate, intervals)
    return row | {"memory.budget_gib": 22.8} | _keys(others)


def pipeline(
    ranks: int,
    context: int,
    batch: tuple[int, int],
    schedule: tuple[str, int, int],
    **others: object,
) -> dict[str, object]:
    """A row of a pipeline: stages per rank and microbatches stand behind the schedule."""
    name, stages_per_rank, microbatches = schedule
    return (
        _row(context, "context", batch, 4.0e-6, (10, 50, 10, 250))
        | {
            "training.engine": "pipeline",
            "pipeline.ranks": ranks,
            "pipeline.schedule": name,
            "pipeline.stages_per_rank": stages_per_rank,
            "batch.microbatches": microbatches,
            "memory.budget_gib": 22.8,
            "memory.block_inputs": "gpu",
            "memory.recompute": "none",
        }
        | _keys(others)
    )


def packed(
    context: int, budget_gib: float, resident_fraction: float, rows: int, microbatches: int | str
) -> dict[str, object]:
    """A row of B.3 for one GPU."""
    return _row(context, "longest", (rows, 4), 4.0e-6, (2, 30, 10, 130)) | {
        "data.packing": "best_fit",
        "optimizer.warmup_steps": 30,
        "memory.budget_gib": budget_gib,
        "memory.resident_fraction": resident_fraction,
        "batch.microbatches": microbatches,
    }


def _row(
    context: int,
    padded_to: str,
    batch: tuple[int, int],
    rate: float,
    intervals: tuple[int, int, int, int],
) -> dict[str, object]:
    log, evaluate, max_batches, save = intervals
    return {
        "data.max_length": context,
        "data.pad_to": padded_to,
        "batch.train": batch[0],
        "batch.evaluation": batch[1],
        "optimizer.learning_rate": rate,
        "logging.every_steps": log,
        "evaluation.every_steps": evaluate,
        "evaluation.max_batches": max_batches,
        "checkpoints.every_steps": save,
    }


def _keys(keywords: dict[str, object]) -> dict[str, object]:
    return {name.replace("__", "."): value for name, value in keywords.items()}


SEED = (10, 50, 10, 250)
PINNED = {"memory__block_inputs": "pinned"}
RECOMPUTED = PINNED | {"memory__recompute": "auto"}

DEMO: dict[str, object] = {
    **{key: value for key, value in TRAINING.items() if key != "data.sources"},
    "model.path": str(shipped_configs() / "demo/model"),
    "model.weights": "random",
    "model.dtype": "float32",
    "data.sources.demo.path": str(shipped_configs() / "demo/conversations.json"),
    "data.sources.demo.files": [],
    "data.sources.demo.format": "auto",
    "data.sources.demo.split": None,
    "data.sources.demo.weight": 1.0,
    "data.max_length": 256,
    "data.packing": "best_fit",
    "batch.train": 16,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 10,
    "logging.every_steps": 1,
    "evaluation.every_steps": 25,
    "evaluation.max_batches": 4,
    "checkpoints.every_steps": 50,
    "training.epochs": 60.0,
}

# fmt: off
TABLE: dict[str, dict[str, object]] = {
    # B.2                             context  padded     batch    rate     log/eval/max/save
    "1gpu_llama_7b/default":      one_gpu(512,  "longest", (8, 16), 4.0e-6, SEED),
    "1gpu_llama_7b/med_context":  one_gpu(1300, "longest", (8, 16), 4.0e-6, SEED),
    "1gpu_llama_7b/long_context": one_gpu(4096, "longest", (4, 6),  3.5e-6, SEED, **PINNED),
    "1gpu_llama_7b/16gb":         one_gpu(512,  "context", (1, 2), 1.41e-6, (50, 250, 50, 1000),
                                          **PINNED, memory__budget_gib=15.2),
    #                               ranks context batch    schedule, stages per rank, microbatches
    "pipeline_llama_7b/2gpu_1f1b":  pipeline(2, 1024, (8, 16),  ("1f1b", 1, 8)),
    "pipeline_llama_7b/1f1b_4gpu":  pipeline(4, 1300, (8, 16),  ("1f1b", 1, 8)),
    "pipeline_llama_7b/i1f1b_4gpu": pipeline(4, 1500, (8, 16),  ("interleaved_1f1b", 2, 8)),
    "pipeline_llama_7b/zb_4gpu":    pipeline(4, 1300, (8, 8),   ("zbv", 2, 8)),
    "pipeline_llama_30b/1f1b_4gpu": pipeline(4, 1300, (4, 4),   ("1f1b", 1, 4),  **RECOMPUTED),
    "pipeline_llama_7b/i1f1b_6gpu": pipeline(6, 1300, (12, 12), ("interleaved_1f1b", 2, 12)),
    "pipeline_llama_7b/zb_6gpu":    pipeline(6, 1300, (12, 12), ("zbv", 2, 12)),
    "pipeline_llama_30b/1f1b_6gpu": pipeline(6, 1300, (12, 24), ("1f1b", 1, 12), **RECOMPUTED),
    # B.3                        context budget resident rows per step, microbatches
    "1gpu_llama_7b/packed": packed(4096, 22.8, 1.0, 4, "auto"),
    "1gpu_llama_7b/8gb":    packed(2048, 7.2,  0.0, 8, 8),
    "1gpu_llama_30b/24gb":  packed(4096, 22.8, 0.0, 4, 4),
    "1gpu_llama_30b/12gb":  packed(4096, 11.0, 0.0, 4, 4),
    "1gpu_llama_70b/24gb":  packed(4096, 22.8, 0.0, 4, 4),
    "pipeline_llama_7b/2gpu_slow_link": pipeline(2, 1024, (16, 16), ("link_aware", 1, 16)),
}
# fmt: on
EXPECTED: dict[str, dict[str, object]] = {name: SAMANTHA | row for name, row in TABLE.items()} | {
    "base/training": TRAINING,
    "base/samantha": SAMANTHA,
    "demo": DEMO,
    "demo_pipeline": DEMO
    | {
        "training.engine": "pipeline",
        "training.device": "cpu",
        "batch.microbatches": 4,
        "pipeline.ranks": 2,
        "pipeline.schedule": "1f1b",
        "pipeline.stages_per_rank": 1,
    },
}

PIPELINES = [name for name, row in EXPECTED.items() if row["training.engine"] == "pipeline"]


def values_of(resolved: ResolvedConfig) -> dict[str, object]:
    return {key: leaf.value for key, leaf in resolved.leaves.items() if key != "description"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_named_config_has_the_values_of_the_reference(name: str) -> None:
    assert values_of(resolve(name)) == EXPECTED[name]


def test_the_configs_of_the_reference_are_listed_and_no_others() -> None:
    listed = {each.name: each for each in list_configs(None)}
    assert set(listed) == {name for name in EXPECTED if not name.startswith("base/")}
    for name, row in EXPECTED.items():
        if name in listed:
            assert listed[name].problem is None
            assert listed[name].context == row["data.max_length"]
            on_cpu = row["training.device"] == "cpu"
            assert listed[name].num_gpus == (0 if on_cpu else row["pipeline.ranks"])


def test_every_listed_config_says_in_one_short_line_of_its_own_what_it_is() -> None:
    descriptions = [each.description for each in list_configs(None)]
    assert len(set(descriptions)) == len(descriptions) > 15
    assert all(0 < len(each) <= 90 and "\n" not in each for each in descriptions)


def test_the_list_is_in_the_order_of_the_sizes() -> None:
    names = [each.name for each in list_configs(None)]
    assert names.index("1gpu_llama_7b/8gb") < names.index("1gpu_llama_7b/16gb")
    assert names.index("1gpu_llama_7b/packed") < names.index("1gpu_llama_30b/12gb")


def test_the_description_of_the_16_gb_config_shows_the_recommended_flags() -> None:
    """Eight rows as microbatches of one, at the rate that goes with eight rows (B.2)."""
    description = resolve("1gpu_llama_7b/16gb").config.description
    for setting in ("batch.train=8", "batch.microbatches=8", "--lr 4e-6"):
        assert setting in description


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_named_config_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "-t", name]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "budget_gib:" in told.out


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_named_config_offers_the_flags_of_the_reference(name: str) -> None:
    offered = {spelling for flag in offered_flags(name) for spelling in flag.spellings}
    assert offered == {
        "--model", "-M", "--model-id-or-path", "--chat-template", "-C", "--max-steps",
        "--train-epochs", "--save-strategy", "-S", "--output-dir", "--resume-from-checkpoint",
        "--save-on-each-node", "--lr", "--warmup-steps", "--log-name",
    }  # fmt: skip


def test_a_config_states_a_memory_budget_and_never_the_name_of_a_card() -> None:
    files = sorted(shipped_configs().rglob("*.yaml"))
    assert len(files) > 20
    for file in files:
        text = file.read_text().lower()
        for card in ("rtx", "4090", "3090", "h100", "h200", "a100", "nvidia"):
            assert card not in text, f"{file} names a card: {card}"


def test_a_dry_run_of_a_pipeline_config_gives_its_command_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with short_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        assert main(["train", "-t", "demo_pipeline", "--dry-run"]) == 0
    told = capsys.readouterr()
    (line,) = told.out.splitlines()
    words = shlex.split(line)
    assert words[words.index("--nproc-per-node") + 1] == "2"
    run = tmp_path / "output" / "demo_pipeline-1"
    assert words[-2:] == ["workbench.training", str(run)]
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "origins.json", "command.json"}
    assert "! config" in told.err
    assert "the pipeline engine is not in this version" in told.err
    assert "nothing was started" in told.err


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_config_is_refused_at_its_start_before_any_process(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = sorted(tmp_path.rglob("*"))
    model = shipped_configs() / "demo/model"
    assert main(["train", "-t", name, "-M", str(model), "model.weights=random"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "training.engine: the pipeline engine is not in this version" in told.err
    assert "--dry-run" in told.err
    assert sorted(tmp_path.rglob("*")) == before
