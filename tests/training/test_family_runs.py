"""A run of every family: trained, resumed under another plan, loaded by transformers."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.inference.tiny_model import CHATML
from tests.model.family_folders import write_family_folder
from tests.model.model_folders import transformers_logits
from tests.model.tiny import KINDS, our_logits, relative_difference
from workbench.config.family_table import FAMILIES
from workbench.config.load import dump_config
from workbench.config.schema.config import Config
from workbench.model.decoder import parameter_shapes
from workbench.model.families import read_dimensions
from workbench.model.weights import read_weights
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.training.rank import run_rank

DEMO = Path(__file__).parents[2] / "configs" / "demo"
TRAINED = {
    "llama, llama3": "float32",
    "llama, linear": "bfloat16",
    "llama, dynamic": "float32",
    "llama, yarn with mscale": "bfloat16",
    "llama, biases": "float32",
    "llama, uneven sizes": "bfloat16",
    "mistral, window": "bfloat16",
    "mistral, window and yarn": "float32",
    "ministral, mixed": "float32",
    "qwen2, uneven sizes, one key head": "float32",
    "qwen2, last blocks slide": "bfloat16",
    "qwen3, mixed and llama3": "bfloat16",
    "smollm3": "bfloat16",
    "cwm": "float32",
    "iquestcoder": "bfloat16",
    "internlm3, biases, dynamic": "bfloat16",
    "seed_oss, all biases": "float32",
}
"""Kind to the dtype it is trained in."""
PLANS: tuple[dict[str, object], ...] = (
    {"resident_fraction": 1.0, "block_inputs": "gpu", "recompute": "none"},
    {"resident_fraction": 0.0, "block_inputs": "pinned", "recompute": "full"},
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORKBENCH_JOB", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def run_folder(path: Path, model: Path, dtype: str) -> RunFolder:
    run = RunFolder(path)
    run.path.mkdir()
    run.chat_template.write_text(CHATML)
    go_on(run, model, dtype, PLANS[0], max_steps=4)
    return run


def go_on(
    run: RunFolder, model: Path, dtype: str, plan: dict[str, object], *, max_steps: int
) -> None:
    sections: dict[str, Any] = {
        "model": {"path": str(model), "dtype": dtype},
        "data": {
            "sources": {"demo": {"path": str(DEMO / "conversations.json")}},
            "max_length": 192,
            "packing": "best_fit",
            "num_workers": 0,
        },
        "batch": {"train": 4, "evaluation": 2, "microbatches": 2},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "memory": plan,
        "evaluation": {"every_steps": 2, "max_batches": 1},
        "samples": {"prompts": ["Who are you?"], "every_steps": 2, "max_tokens": 3},
        "logging": {"every_steps": 1},
        "checkpoints": {"every_steps": 2},
        "training": {"device": "cpu", "max_steps": max_steps},
    }
    run.config.write_text(dump_config(msgspec.convert(sections, Config)))


def losses_of(run: RunFolder) -> list[float]:
    return [json.loads(line.content)["loss"] for line in read_lines(run.metrics)[0]]


def test_every_family_is_trained() -> None:
    assert {KINDS[kind][0] for kind in TRAINED} == set(FAMILIES)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_run_of_any_family_goes_on_under_another_plan_and_loads_in_transformers(
    tmp_path: Path, kind: str
) -> None:
    dtype = TRAINED[kind]
    model = write_family_folder(tmp_path / "model", kind, getattr(torch, dtype))
    source = {path.name: path.read_bytes() for path in model.iterdir()}
    run = run_folder(tmp_path / "run", model, dtype)
    assert run_rank(run) == 0
    go_on(run, model, dtype, PLANS[1], max_steps=6)
    assert run_rank(run) == 0
    straight = run_folder(tmp_path / "straight", model, dtype)
    go_on(straight, model, dtype, PLANS[1], max_steps=6)
    assert run_rank(straight) == 0
    assert len(losses_of(run)) == 6
    assert losses_of(run) == losses_of(straight)
    first, second = (load_file(each.latest / "model.safetensors") for each in (run, straight))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    dims = read_dimensions(model)
    assert read_dimensions(run.latest) == dims
    head = {"lm_head.weight"} if dims.tied else set()
    assert first.keys() == parameter_shapes(dims).keys() - head, "names of Hugging Face, no other"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == source
    _, report = AutoModelForCausalLM.from_pretrained(run.latest, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.manual_seed(5)
    ids = torch.randint(dims.vocabulary_size, (2, 150))
    theirs = transformers_logits(run.latest, ids)
    ours = our_logits(read_weights(run.latest, dims, torch.float32), dims, ids, [[0], [0]])
    assert relative_difference(ours, theirs) < 1e-5
    assert relative_difference(theirs, transformers_logits(model, ids)) > 1e-3, "it has learned"
