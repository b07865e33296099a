"""What was said in the chat is trained on: saved as the chat saves it, read by the real trainer."""

import math
from pathlib import Path

import pytest

from tests.end_to_end.conftest import SMALL, Workplace, losses_of, outcome_of
from workbench.jobs.conversation import STOPPED, Conversation
from workbench.jobs.transcripts import save

pytestmark = pytest.mark.end_to_end


def talk(path: Path) -> None:
    """Save a conversation with two branches; an answer of one of them was stopped."""
    conversation = Conversation("You are kind.")
    for message, reply in (("Who are you?", "I am Samantha."), ("And who am I?", "A friend.")):
        answer = conversation.begin_answer(conversation.say(message), model="demo")
        answer.text, answer.ended = reply, "stop"
    assert conversation.question is not None
    other = conversation.begin_answer(conversation.question, model="demo")
    other.text, other.ended = "Somebody who", STOPPED
    assert save(conversation, path, all_branches=True) == 2


def test_a_saved_conversation_is_previewed_and_trained_on(workplace: Workplace) -> None:
    (workplace.path / "output").mkdir(exist_ok=True)
    (workplace.path / "configs").mkdir(exist_ok=True)
    talk(workplace.path / "output" / "chat.jsonl")
    (workplace.path / "configs" / "talks.yaml").write_text(
        "extends: demo.yaml\n"
        "data:\n"
        "  sources:\n"
        "    demo: null\n"
        "    talks: {path: ../output/chat.jsonl}\n"
        "  split_at: [1.0, 1.0]\n"
    )
    seen = workplace.workbench("data", "preview", "-t", "talks", "evaluation.every_steps=0")
    assert seen.status == 0, seen.stderr
    lines = seen.stdout.splitlines()
    under = {line.strip(): lines[at + 1].strip() for at, line in enumerate(lines[:-1])}
    assert set(under["A friend.<|im_end|>⏎"]) == {"~"}
    assert not set(under["Somebody who<|im_end|>⏎"]) & {"~"}, "what was cut off is not learned"

    run = workplace.run_folder("talks")
    ended = workplace.workbench(
        "--batch", "-t", "talks", *SMALL, f"training.output_dir={run.path}",
        "training.max_steps=3", "batch.train=2",
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    assert outcome_of(run).state == "finished"
    losses = losses_of(run)
    assert list(losses) == [1, 2, 3]
    assert all(math.isfinite(loss) for loss in losses.values())
    assert (run.checkpoint(3) / "config.json").exists()
