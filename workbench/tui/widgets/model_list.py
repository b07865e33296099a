"""The checkpoints one can talk to: the newest complete one of each run, and model folders."""

from dataclasses import dataclass
from pathlib import Path

from textual.content import Content

from workbench.tui import keys, words
from workbench.tui.widgets.line_list import LineList


@dataclass(frozen=True)
class ModelRow:
    """A checkpoint: the folder that is served, and what is known of it."""

    path: Path
    run: str
    checkpoint: str
    said: str


class ModelList(LineList[ModelRow]):
    """Checkpoints under a cursor."""

    KEY_SCOPES = ("models",)
    BINDINGS = keys.bindings("models")

    def draw(self, row: ModelRow, width: int) -> Content:
        """Give run, checkpoint, and what is known of it."""
        run_width = max((len(each.run) for each in self.rows), default=8)
        name_width = max((len(each.checkpoint) for each in self.rows), default=8)
        return Content.assemble(
            words.shorten(row.run, 40).ljust(min(run_width, 40)),
            "  ",
            (row.checkpoint.ljust(name_width), "bold"),
            "  ",
            (row.said, "$quiet"),
        ).truncate(width, ellipsis=True)

    def key_of(self, row: ModelRow) -> object:
        """A checkpoint is known by its path."""
        return row.path
