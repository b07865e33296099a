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
        steps = f"{row.step:,}".replace(",", "") if row.step or row.max_steps else "–"
        if row.max_steps:
            steps = f"{row.step}/{row.max_steps}"
        name_width = min(
            max((len(each.name) for each in self.rows), default=8), max(width - 38, 12)
        )
        parts: list[Content | str | tuple[str, str]] = [
            (f"{mark} ", f"bold {colour}"),
            (f"{word:<11}", colour),
            words.shorten(row.name, name_width).ljust(name_width),
            f" {steps:>11}",
        ]
        is_over = row.state in END_STATES
        tail: list[Content | str | tuple[str, str]] = []
        if row.said:
            tail.append((f"  {row.said}", "$quiet" if is_over else "$busy"))
        else:
            tail.append(f"  {words.loss(row.loss) if row.loss is not None else '     –':>7} ")
            if not is_over:
                tail.append((row.trend, "$quiet"))
                if row.eta_seconds is not None:
                    tail.append((f"  ETA {words.brief(row.eta_seconds)}", "$quiet"))
        if width >= 72 and row.max_steps and not is_over:
            parts.append((f" {100 * row.step // row.max_steps:>4} %", "$quiet"))
        elif width >= 72:
            parts.append("       ")
        return Content.assemble(*parts, *tail).truncate(width, ellipsis=True)

    def key_of(self, row: JobRow) -> object:
        """A job is known by its run folder."""
        return row.path
