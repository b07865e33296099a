"""The table of jobs: state as mark and word, name, step, loss and its trend, time left."""

from dataclasses import dataclass
from pathlib import Path

from textual.content import Content

from workbench.control.states import END_STATES, JobState
from workbench.tui import words
from workbench.tui.marks import mark_of
from workbench.tui.widgets.line_list import LineList


@dataclass(frozen=True)
class JobRow:
    """A job as the table shows it.

    Attributes:
        path: the run folder.
        name: its name.
        state: what was last said, None while its folder is being read.
        silent_seconds: how long nothing has happened, None unless that is remarkable.
        step: steps done.
        max_steps: steps in all, None where nobody said.
        loss: of the newest record.
        trend: ▼ ▲ ▬ or blank.
        eta_seconds: time left, None where it cannot be said.
        said: what is to be known instead: a command under way, the reason of a failure, the host.
        learning_rate: of the newest record, None where it is not known.
        started: when its last attempt began, epoch seconds.
    """

    path: Path
    name: str
    state: JobState | None
    silent_seconds: float | None = None
    step: int = 0
    max_steps: int | None = None
    loss: float | None = None
    trend: str = " "
    eta_seconds: float | None = None
    said: str = ""
    learning_rate: float | None = None
    started: float | None = None


def _steps(row: JobRow) -> str:
    if row.max_steps:
        return f"{row.step}/{row.max_steps}"
    return f"{row.step}" if row.step else "–"


def _further(row: JobRow) -> list[str]:
    """Give the columns behind the loss, each as wide in every row."""
    is_over = row.state in END_STATES
    eta = "" if is_over or row.eta_seconds is None else f"ETA {words.brief(row.eta_seconds)}"
    percent = f"{words.percent(row.step, row.max_steps)}" if row.max_steps and not is_over else ""
    rate = "" if row.learning_rate is None else f"lr {words.learning_rate(row.learning_rate)}"
    started = "" if row.started is None else f"started {words.clock(row.started)}"
    trend = " " if is_over else row.trend
    return [f" {trend}", f"  {eta:<7}", f"  {percent:>5}", f"  {rate:<10}", f"  {started:<13}"]


class JobTable(LineList[JobRow]):
    """Jobs under a cursor; columns drop by width."""

    KEY_SCOPES = ("filterable", "pane")

    def draw(self, row: JobRow, width: int) -> Content:
        """Give a job as one line."""
        if row.state is None:
            return Content.assemble(("◌ reading    ", "$quiet"), row.name)
        mark, colour = mark_of("silent" if row.silent_seconds is not None else row.state)
        word = (
            f"silent {words.brief(row.silent_seconds)}"
            if row.silent_seconds is not None
            else row.state
        )
        steps_width = max(9, *(len(_steps(each)) for each in self.rows))
        fixed = 2 + len(f"{word:<11}") + 1 + steps_width + 9
        longest = max(len(each.name) for each in self.rows)
        name_width = min(longest, max(width - fixed, 12))
        line = Content.assemble(
            (f"{mark} ", f"bold {colour}"),
            (f"{word:<11}", colour),
            words.shorten(row.name, name_width).ljust(name_width),
            f" {_steps(row):>{steps_width}}",
        )
        if row.said:
            is_over = row.state in END_STATES
            line = line.append(
                Content.assemble((f"  {row.said}", "$quiet" if is_over else "$busy"))
            )
            return line.truncate(width, ellipsis=True)
        loss = words.loss(row.loss) if row.loss is not None else "–"
        line = line.append(f"  {loss:>7}")
        # The further columns in the order in which they are missed; one is there whole or not.
        for text in _further(row):
            if line.cell_length + len(text) > width:
                break
            line = line.append(Content.assemble((text, "$quiet")))
        return line.truncate(width, ellipsis=True)

    def key_of(self, row: JobRow) -> object:
        """A job is known by its run folder."""
        return row.path
