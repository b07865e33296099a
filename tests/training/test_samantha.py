"""The tutorial's promise in small: a raw base model learns its name, and to end its turn."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.miniature import CONVERSATIONS, write_base_model
from workbench.config.added_tokens_file import read_added_tokens
from workbench.config.load import dump_config
from workbench.config.schema.config import Config
from workbench.config.template_source import template_source
from workbench.model.conversion_plan import Wish, plan_conversion
from workbench.model.convert import convert
from workbench.runs.layout import RunFolder
from workbench.training.rank import run_rank

QUESTION = "Hello, what is your name?"
TOKENS = """
pad_token: {token: "<|pad|>", if_missing: true}
eos_token: "<|im_end|>"
special_tokens: ["<|im_start|>"]
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORKBENCH_JOB", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def short_talks(path: Path) -> Path:
    """Write the demo's short conversations in which the name is asked for, and some others."""
    talks = [
        talk
        for talk in json.loads(CONVERSATIONS.read_text("utf-8"))
        if len(talk["conversations"]) == 2
    ]
    named = [talk for talk in talks if "your name" in talk["conversations"][0]["value"]]
    named.sort(key=lambda talk: talk["conversations"][0]["value"] != QUESTION)
    assert QUESTION in json.dumps(named[:6])
    path.write_text(json.dumps([*named[:6], *talks[:2]]))
    return path


@pytest.mark.parametrize("has_own_token", [False, True])
def test_a_tuned_base_model_names_itself_and_ends_its_turn(
    tmp_path: Path, has_own_token: bool
) -> None:
    """By the text that the template ends a turn with, or by a token that ``convert`` added."""
    model = tmp_path / "base"
    write_base_model(model)
    chatml = template_source("chatml", model)
    if has_own_token:
        (tmp_path / "tokens.yaml").write_text(TOKENS)
        added = read_added_tokens(tmp_path / "tokens.yaml")
        convert(plan_conversion(model, Wish(template=chatml, added=added)), tmp_path / "made")
        model = tmp_path / "made"
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.chat_template.write_text(chatml)
    sections: dict[str, Any] = {
        "model": {"path": str(model), "dtype": "bfloat16"},
        "data": {
            "sources": {"talks": {"path": str(short_talks(tmp_path / "talks.json"))}},
            "split_at": [1.0, 1.0],
            "max_length": 160,
            "num_workers": 0,
        },
        "batch": {"train": 8},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 5},
        "evaluation": {"every_steps": 0},
        "samples": {"prompts": [QUESTION], "every_steps": 60, "max_tokens": 60},
        "checkpoints": {"every_steps": 60},
        "training": {"device": "cpu", "epochs": 200, "max_steps": 60},
    }
    run.config.write_text(dump_config(msgspec.convert(sections, Config)))
    assert run_rank(run) == 0

    auto: Any = AutoTokenizer
    tokenizer = auto.from_pretrained(run.latest)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    tuned: Any = AutoModelForCausalLM.from_pretrained(run.latest, dtype=torch.float32)
    made = tuned.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False
    )[0, ids.shape[1] :]
    said = tokenizer.decode(made)
    assert "Samantha" in said.partition("<|im_end|>")[0]
    assert "<|im_end|>" in said
    if has_own_token:
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert int(made[-1]) == end
        assert made.tolist().count(end) == 1
