"""Checkpoints under the names of their runs, and models: one line each, in columns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from textual.content import Content
from textual.widget import Widget

from workbench.tui import keys, words
from workbench.tui.widgets.line_list import LineList

_NAME_WIDTHS = (14, 44)
_STATE_WIDTHS = (12, 22)
# In the order in which they are missed least.
_DROPPED = ("loss", "holds", "age", "eval")
_WIDTHS = {"eval": 8, "loss": 8, "size": 10, "holds": 18, "age": 6}
_IS_RIGHT = ("eval", "loss", "size", "age")


@dataclass(frozen=True)
class CheckpointRow:
    """A line of the list.

    Attributes:
        kind: a run, one of its checkpoints, the heading of the models, a model.
        path: of the folder; for the heading of the models it says nothing.
        name: what stands in front.
        state: in a word or two.
        mark: before the state.
        colour: of mark and state.
        eval_loss, loss: None where not known.
        size: in words, "" where there is none.
        holds: what can be done with it, in words.
        age: since it was saved, in words.
        tags: best, newest, and the user's; for a run how many it has.
        said: why it cannot be used; stands in place of the tags.
        is_folded: of a run: its checkpoints are hidden.
    """

    kind: Literal["run", "checkpoint", "models", "model"]
    path: Path
    name: str
    state: str = ""
    mark: str = " "
    colour: str = "$quiet"
    eval_loss: float | None = None
    loss: float | None = None
    size: str = ""
    holds: str = ""
    age: str = ""
    tags: str = ""
    said: str = ""
    is_folded: bool = False

    @property
    def is_heading(self) -> bool:
        """Whether others are listed below it."""
        return self.kind in ("run", "models")


@dataclass(frozen=True)
class _Columns:
    """Names and widths of the columns that fit; the last takes what is left."""

    name: int
    between: tuple[tuple[str, int], ...]
    state: int


class CheckpointList(LineList[CheckpointRow]):
    """Checkpoints under a cursor."""

    BINDINGS = keys.bindings("checkpoints")
    KEY_SCOPES = ("checkpoints", "filterable", "pane")

    def key_of(self, row: CheckpointRow) -> object:
        """A row is known by its folder."""
        return row.kind, row.path

    def _columns(self, width: int) -> _Columns:
        names = [_name(row) for row in self.rows]
        name = min(max([_NAME_WIDTHS[0], *map(len, names)]), _NAME_WIDTHS[1])
        states = [len(row.state) + 2 for row in self.rows]
        state = min(max([_STATE_WIDTHS[0], *states]), _STATE_WIDTHS[1])
        # Of the models' long ones the end may be missing; those of checkpoints are read.
        tags = max([14, *(len(row.tags) for row in self.rows if row.kind == "checkpoint")])
        between = dict(_WIDTHS)
        for dropped in _DROPPED:
            if name + sum(between.values()) + state + min(tags, 24) + 4 <= width:
                break
            del between[dropped]
        return _Columns(name, tuple(between.items()), state)

    def column_names(self, width: int) -> Content:
        """Give the line of names above the columns."""
        columns = self._columns(width)
        parts = ["   " + "run / checkpoint".ljust(columns.name - 2)]
        parts += [_placed(key, key, wide) for key, wide in columns.between]
        parts += ["  " + "state".ljust(columns.state), " tags"]
        return Content.assemble(("".join(parts), "$quiet")).truncate(width + 1, ellipsis=True)

    def draw(self, row: CheckpointRow, width: int) -> Content:
        """Give a row in its columns."""
        columns = self._columns(width)
        values = {
            "eval": "" if row.is_heading else words.loss(row.eval_loss),
            "loss": "" if row.is_heading else words.loss(row.loss),
            "size": row.size,
            "holds": row.holds,
            "age": row.age,
        }
        name = words.shorten(_name(row), columns.name).ljust(columns.name)
        line = Content.assemble((name, "bold" if row.is_heading else ""))
        for key, wide in columns.between:
            quiet = row.is_heading or key in ("loss", "holds", "age") or values[key] == "–"
            line = line.append(
                Content.assemble((_placed(key, values[key], wide), "$quiet" if quiet else ""))
            )
        state = words.shorten(row.state, columns.state - 2)
        line = line.append(
            Content.assemble(
                "  ", (f"{row.mark} ", f"bold {row.colour}"), (f"{state:<{columns.state - 2}}", "")
            )
        )
        return line.append(_tags(row)).truncate(width, ellipsis=True)


class ColumnNames(Widget, can_focus=False):
    """The names of a list's columns, drawn for the width there is."""

    DEFAULT_CSS = """
    ColumnNames { height: 1; }
    """

    def __init__(self, of: CheckpointList, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._of = of

    def render(self) -> Content:
        """Draw the names, or nothing above an empty list."""
        width = self._of.size.width
        return self._of.column_names(width - 2) if self._of.rows and width > 2 else Content("")


def _name(row: CheckpointRow) -> str:
    if row.is_heading:
        return f"{'▸' if row.is_folded else '▾'} {row.name}"
    return f"    {row.name}"


def _tags(row: CheckpointRow) -> Content:
    """Draw the last column: why it cannot be used, else the tags, the best standing out."""
    if row.said:
        return Content.assemble(" ", (row.said, "$note"))
    if row.is_heading or row.kind == "model":
        return Content.assemble(" ", (row.tags, "$quiet"))
    words_of = row.tags.split()
    styled = [(f" {word}", "$good" if word == "best" else "") for word in words_of]
    return Content.assemble(*styled)


def _placed(key: str, value: str, width: int) -> str:
    if key in _IS_RIGHT:
        return f"{value:>{width}}"
    return f"  {value:<{width - 2}}"
