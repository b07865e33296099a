"""A run that is asked what it has learned so far: events, lines, TensorBoard."""

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.end_to_end.conftest import SMALL, Workplace
from workbench.runs.layout import RunFolder


def test_what_the_model_says_is_told_wherever_a_run_is_followed(workplace: Workplace) -> None:
    run = RunFolder(workplace.path / "asked")
    ended = workplace.workbench(
        "--batch", "-t", "demo", *SMALL, f"training.output_dir={run.path}",
        "training.max_steps=5", 'samples.prompts=["Who are you?", "Hi\\e[2J"]',
        "samples.every_steps=2", "samples.max_tokens=4",
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    samples = [record for record in ended.records if record.get("event") == "sample"]
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [
        (step, prompt) for step in (2, 4, 5) for prompt in ("Who are you?", "Hi\x1b[2J")
    ]
    assert all(sample["tokens"] <= 4 for sample in samples)
    assert any(sample["reply"] for sample in samples)
    written = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert [each for each in written if each["event"] == "sample"] == samples
    narrated = [line for line in ended.stderr.splitlines() if "'Who are you?' → " in line]
    assert len(narrated) == 3
    assert "\x1b" not in ended.stderr, "what a prompt or a model says cannot steer the terminal"
    assert ended.stderr.count("'Hi\\x1b[2J' → ") == 3

    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    texts = board.Tensors("samples/text_summary")
    assert [text.step for text in texts] == [2, 4, 5]
    assert "> Who are you?" in texts[-1].tensor_proto.string_val[0].decode()
