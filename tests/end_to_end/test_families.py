"""The whole way of a family: a model of transformers, two real jobs, published, talked to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.end_to_end.conftest import SMALL, Workplace, lines_of, losses_of
from tests.model.family_folders import write_family_folder
from tests.model.model_folders import transformers_logits
from tests.model.tiny import our_logits, relative_difference
from workbench.model.families import read_dimensions
from workbench.model.weights import read_weights

pytestmark = pytest.mark.end_to_end

PROMPT = "Hello, what is your name?"
NUM_TOKENS = 200
RESIDENT = ["memory.resident_fraction=1.0", "memory.block_inputs=gpu"]
STREAMED = ["memory.resident_fraction=0.0", "memory.block_inputs=pinned"]


def generated(folder: Path) -> tuple[str, int]:
    """What transformers says greedily, and its number of tokens."""
    auto: Any = AutoTokenizer
    tokenizer = auto.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False
    )[0, ids.shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=True), len(made)


def _ascii(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


@pytest.mark.parametrize(
    ("kind", "dtype", "plans"),
    [
        ("ministral, mixed", "float32", (STREAMED, RESIDENT)),
        ("qwen2, tied, yarn", "float32", (RESIDENT, STREAMED)),
        ("smollm3", "bfloat16", (STREAMED, RESIDENT)),
    ],
)
def test_a_model_is_trained_resumed_published_and_talked_to(
    workplace: Workplace, kind: str, dtype: str, plans: tuple[list[str], list[str]]
) -> None:
    family = kind.partition(",")[0]
    model = write_family_folder(workplace.path / family, kind, getattr(torch, dtype))
    run = workplace.run_folder(f"of-{family}")
    for num_steps, plan in zip((3, 6), plans, strict=True):
        ended = workplace.workbench(
            "--batch", "-t", "demo.yaml", "-M", str(model), "--output-dir", str(run.path), *SMALL,
            "model.weights=load", f"model.dtype={dtype}", "--max-steps", str(num_steps), *plan,
            "data.max_length=192", "evaluation.every_steps=3", "evaluation.max_batches=1",
            "checkpoints.every_steps=3", "samples.prompts=[Hi]", "samples.max_tokens=4",
            "samples.every_steps=3",
        )  # fmt: skip
        assert ended.status == 0, ended.stderr
    assert list(losses_of(run)) == [1, 2, 3, 4, 5, 6]
    events = lines_of(run.events)
    for kind_of_event in ("evaluation", "sample", "checkpoint"):
        steps = [event["step"] for event in events if event["event"] == kind_of_event]
        assert steps == [3, 6], kind_of_event

    dims = read_dimensions(run.latest)
    torch.manual_seed(5)
    ids = torch.randint(dims.vocabulary_size, (1, 150))  # beyond windows and original contexts
    theirs = transformers_logits(run.latest, ids)
    ours = our_logits(read_weights(run.latest, dims, torch.float32), dims, ids, [[0]])
    assert relative_difference(ours, theirs) < 1e-5

    published = workplace.path / f"published-{family}"
    ended = workplace.workbench("finalize", str(run.path), str(published))
    assert ended.status == 0, ended.stderr
    ended = workplace.workbench(
        "chat", "-m", str(published), "--message", PROMPT, "--json", "--temperature", "0",
        "--max-tokens", str(NUM_TOKENS),
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    said = json.loads(ended.stdout)
    text, num_tokens = generated(published)
    assert said["usage"]["completion_tokens"] == num_tokens
    assert num_tokens == NUM_TOKENS or said["finish_reason"] == "stop"
    # Random models say bytes that are no text; how they are shown is another matter.
    assert _ascii(said["reply"]) == _ascii(text)
    assert len(set(text)) > 5, "a model that repeats itself tells little"
