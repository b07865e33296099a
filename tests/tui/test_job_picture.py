"""What a picture of a job makes of what it is told."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tui.scripted_supervisor import NOW, metrics_record
from workbench.control.messages import Status
from workbench.control.states import JobState
from workbench.runs.events import CheckpointEvent, EvaluationEvent, SampleEvent
from workbench.tui.job_lines import detail_lines
from workbench.tui.job_picture import JobPicture, clean_line
from workbench.tui.widgets.job_table import JobRow, JobTable


def status(state: JobState, idle: float | None = 1.0) -> Status:
    return Status(
        id=1,
        state=state,
        since=NOW - 60,
        step=50,
        max_steps=100,
        attempt=1,
        idle_seconds=idle,
        pending=[],
        checkpoint=None,
        offsets={},
    )


def evaluation(step: int, loss: float | None, attempt: int = 1) -> EvaluationEvent:
    return EvaluationEvent(
        time=NOW,
        attempt=attempt,
        step=step,
        loss=loss,
        perplexity=None,
        accuracy=None,
        target_tokens=10,
        seconds=1.0,
    )


def trained(num_steps: int = 50) -> JobPicture:
    picture = JobPicture("quick-1")
    for step in range(1, num_steps + 1):
        picture.take_metrics(metrics_record(step, 2.0))
    return picture


def test_a_later_attempt_takes_the_place_of_what_it_repeats() -> None:
    picture = trained(50)
    picture.take_event(evaluation(20, 1.5))
    picture.take_event(evaluation(40, 1.4))
    for step in range(31, 61):
        picture.take_metrics(metrics_record(step, 1.0, attempt=2))
    assert picture.curves is not None
    assert picture.curves.loss.raw.x.tolist() == [float(step) for step in range(1, 61)]
    assert picture.curves.loss.raw.y[29:32].tolist() == [2.0, 1.0, 1.0]
    assert picture.curves.eval_loss.x.tolist() == [20.0]
    assert next(each for each in picture.happenings if each.letter == "A").x == 31


def test_time_left_is_the_pace_of_the_last_windows() -> None:
    picture = trained(50)
    picture.take_status(status("training"), NOW)
    assert picture.eta_seconds == pytest.approx(50.0)
    picture.take_status(status("paused"), NOW)
    assert picture.eta_seconds is None


@pytest.mark.parametrize(
    ("idle", "is_silent"), [(1.0, False), (119.0, False), (121.0, True), (None, False)]
)
def test_silence_is_told_from_two_minutes_on(idle: float | None, is_silent: bool) -> None:
    picture = trained(50)
    picture.take_status(status("training", idle), NOW)
    assert picture.is_silent(NOW) is is_silent


def test_idle_time_grows_while_nobody_says_anything() -> None:
    picture = trained(50)
    picture.take_status(status("training", 1.0), NOW)
    assert picture.idle(NOW + 200) == pytest.approx(201.0)
    assert picture.is_silent(NOW + 200)


def test_what_a_stop_would_lose_is_counted_from_the_last_checkpoint() -> None:
    picture = trained(50)
    assert picture.steps_since_save == 50
    picture.take_event(
        CheckpointEvent(
            time=NOW, attempt=1, step=45, path="checkpoints/checkpoint-45", bytes=1, seconds=1.0
        )
    )
    assert picture.steps_since_save == 5
    assert picture.seconds_since_save == pytest.approx(5.0)


def test_the_best_evaluation_is_the_lowest_finite_one() -> None:
    picture = trained(50)
    for step, loss in ((10, 2.0), (20, 1.2), (30, None), (40, 1.3)):
        picture.take_event(evaluation(step, loss))
    assert picture.best_evaluation is not None
    assert picture.best_evaluation.step == 20
    lines = "\n".join(line.plain for line in detail_lines(picture, NOW, 80, ""))
    assert "eval 1.3000 @40 (best 1.2000 @20)" in lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[default0]:hello", "hello"),
        ("[default0]:10%\r50%\r100%", "100%"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\tb", "a   b"),
        ("\x1b]0;title\x07text", "text"),
        ("bell\x07", "bell"),
        ("[not a rank] text", "[not a rank] text"),
        ("größer", "größer"),
    ],
)
def test_a_line_of_the_log_is_made_fit_for_the_eye(line: str, expected: str) -> None:
    assert clean_line(line) == expected


@given(st.text(max_size=200))
def test_no_control_character_reaches_the_screen(text: str) -> None:
    cleaned = clean_line(text.replace("\n", " "))
    assert not any(ord(character) < 32 or ord(character) == 127 for character in cleaned)


@given(st.integers(0, 200))
def test_the_lines_of_a_job_fit_every_width(width: int) -> None:
    picture = trained(5)
    picture.take_status(status("training"), NOW)
    assert detail_lines(picture, NOW, width, "output/quick-1")


def test_a_column_of_the_job_table_is_there_whole_or_not_at_all() -> None:
    table = JobTable()
    row = JobRow(
        Path("quick-1"), "quick-1", "training", step=76, max_steps=240, loss=1.6, trend="▼",
        eta_seconds=1200.0, learning_rate=3.5e-6, started=NOW,
    )  # fmt: skip
    table.rows = (row,)
    wide = table.draw(row, 100).plain
    columns = ("1.6000", "▼", "ETA 20m", "31 %", "lr 3.5e-6", "started ")
    assert all(column in wide for column in columns)
    for width in range(40, 100):
        drawn = table.draw(row, width).plain
        assert len(drawn) <= width
        assert "…" not in drawn
        assert wide.startswith(drawn)


def test_numbers_about_a_job_go_to_the_next_line_before_they_are_cut() -> None:
    lines = [line.plain for line in detail_lines(trained(), NOW, 40, "")]
    assert all(len(line) <= 40 for line in lines if "supervisor" not in line)
    assert any("tokens" in line for line in lines)


def test_the_shares_of_the_last_timed_step_stay_until_the_next_one() -> None:
    picture = trained(50)
    untimed = msgspec.structs.replace(
        metrics_record(51, 2.0), compute_share=None, transfer_share=None,
        waiting_share=None, optimizer_share=None,
    )  # fmt: skip
    picture.take_metrics(untimed)
    lines = [line.plain for line in detail_lines(picture, NOW, 80, "")]
    assert "compute 96  copies 31  waiting 2  optimizer 2 %" in lines


def sample(
    step: int, prompt: str, reply: str, attempt: int = 1, *, cut: bool = False
) -> SampleEvent:
    return SampleEvent(
        time=NOW, attempt=attempt, step=step, prompt=prompt, reply=reply, tokens=3, cut=cut
    )


def detail_of(picture: JobPicture, width: int = 60) -> list[str]:
    return [line.plain for line in detail_lines(picture, NOW, width, "")]


def test_what_the_model_said_last_is_told_and_all_of_it_is_in_the_log() -> None:
    picture = trained(50)
    assert not any("said" in line for line in detail_of(picture))
    for step in (20, 40):
        picture.take_event(sample(step, "Who are you?", f"I am {step}."))
        picture.take_event(sample(step, "Who made you?", "A small group", cut=True))
    lines = detail_of(picture)
    assert "said @40  Who are you? → I am 40." in lines
    assert "said @40  Who made you? → A small group …" in lines
    assert not any("@20" in line for line in lines)
    told = [line.text for line in picture.log]
    assert sum("at step 20 Who are you? → I am 20." in line for line in told) == 1
    picture.take_event(sample(40, "Who are you?", "I am 40."))
    picture.take_event(sample(20, "Who are you?", "I am 20."))
    assert detail_of(picture) == lines, "records come twice and late"
    picture.take_event(sample(30, "Who are you?", "Again.", attempt=2))
    assert [each.reply for each in picture.samples] == ["Again."]


def test_what_was_said_keeps_to_the_width_and_cannot_draw() -> None:
    picture = trained(5)
    picture.take_event(sample(5, "a [red]prompt[/]\nof two lines", "word " * 400 + "\x1b[2J"))
    for number in range(4):
        picture.take_event(sample(5, f"prompt {number}", ""))
    lines = detail_of(picture, 40)
    said = [line for line in lines if line.startswith("said @5")]
    assert said[0].startswith("said @5  a [red]prompt[/] of two lines")
    assert "prompt 0 → (nothing)" in said[1]
    assert len(said) == 3
    assert "and 2 more in the log" in lines
    assert max(len(line) for line in lines[lines.index(said[0]) :]) <= 40
    assert not any("\x1b" in line for line in lines)
    assert sum("word" in line for line in lines) <= 2
