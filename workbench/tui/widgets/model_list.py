"""The models one can talk to, by run: its newest checkpoint, and on demand the older ones."""

from dataclasses import dataclass
from pathlib import Path

from textual.content import Content

from workbench.tui import keys, words
from workbench.tui.widgets.line_list import LineList

_MOST_CELLS_OF_A_NAME = 40


@dataclass(frozen=True)
class ModelRow:
    """A model: the folder that is served, and what is known of it.

    Attributes:
        path: the folder.
        run: name of the run that it comes from.
        checkpoint: its name inside the run, or of the model that the run began with.
        said: where the run stands, or how old the checkpoint is.
        is_older: it stands below the newest of its run.
        num_older: of the newest one: how many stand below it, or would.
        run_path: folder of the run.
    """

    path: Path
    run: str
    checkpoint: str
    said: str
    is_older: bool = False
    num_older: int = 0
    is_open: bool = False
    run_path: Path | None = None

    @property
    def name(self) -> str:
        """Run and checkpoint, as texts name the model."""
        return f"{self.run}/{self.checkpoint}"


class ModelList(LineList[ModelRow]):
    """Models under a cursor."""

    KEY_SCOPES = ("models",)
    BINDINGS = keys.bindings("models")

    def draw(self, row: ModelRow, width: int) -> Content:
        """Give run, checkpoint, and what is known of it; older ones without their run's name."""
        run_width = min(
            max((len(each.run) for each in self.rows), default=8), _MOST_CELLS_OF_A_NAME
        )
        name_width = max((len(each.checkpoint) for each in self.rows), default=8)
        fold = " " if not row.num_older else "▾" if row.is_open else "▸"
        run = "" if row.is_older else words.shorten(row.run, _MOST_CELLS_OF_A_NAME)
        older = "" if row.is_open or not row.num_older else f"  +{row.num_older} older"
        return Content.assemble(
            (f"{fold} ", "$quiet"),
            run.ljust(run_width),
            "  ",
            (row.checkpoint.ljust(name_width), "" if row.is_older else "bold"),
            "  ",
            (row.said, "$quiet"),
            (older, "$secondary"),
        ).truncate(width, ellipsis=True)

    def key_of(self, row: ModelRow) -> object:
        """A model is known by its path."""
        return row.path
