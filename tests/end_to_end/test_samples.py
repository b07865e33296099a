"""A run that is asked what it has learned so far: events, lines, TensorBoard."""

import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.end_to_end.conftest import SMALL, Workplace, lines_of, outcome_of, wait_until
from workbench.runs.layout import RunFolder

pytestmark = pytest.mark.end_to_end

# One row at a time, hundreds of tokens each: half a minute of talk behind the first step.
TALKATIVE = [
    "data.max_length=256",
    "batch.train=1",
    "evaluation.every_steps=0",
    "samples.prompts=[a, b, c, d, e, f, g, h, i, j, k, l]",
    "samples.every_steps=1",
    "samples.max_tokens=4096",
    "samples.temperature=1",
]


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


@pytest.mark.parametrize(
    ("command", "state"), [(["stop"], "stopped"), (["abort", "--force"], "aborted")]
)
def test_a_model_that_talks_is_stopped_and_aborted_like_one_that_trains(
    workplace: Workplace, command: list[str], state: str
) -> None:
    verb, *options = command
    ended = workplace.workbench(
        "train", "-t", "demo.yaml", "--output-dir", f"output/talks-{verb}", "--detach", *TALKATIVE
    )
    assert ended.status == 0, ended.stderr
    run = workplace.run_folder(f"talks-{verb}")

    def is_talking() -> bool:
        return any(event.get("state") == "evaluating" for event in lines_of(run.events))

    wait_until(is_talking, "the first prompt")
    begin = time.monotonic()
    steered = workplace.workbench("control", verb, f"talks-{verb}", *options)
    assert steered.status == 0, steered.stderr
    assert time.monotonic() - begin < 15.0
    outcome = outcome_of(run)
    assert (outcome.state, outcome.step) == (state, 1)
    assert not [event for event in lines_of(run.events) if event["event"] == "sample"]
