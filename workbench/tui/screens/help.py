"""Help: every key that works here, searchable; a row can be run."""

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content

from workbench.tui import keys
from workbench.tui.fuzzy import score
from workbench.tui.keys import KeyRow
from workbench.tui.screens.frame import Dialog, WorkbenchScreen
from workbench.tui.widgets.filter_field import FilterField
from workbench.tui.widgets.line_list import LineList


class HelpList(LineList[tuple[KeyRow, str, str | None]]):
    """Keys with what they do; a refused one says why."""

    def draw(self, row: tuple[KeyRow, str, str | None], width: int) -> Content:
        """Give keys, label, and help or the reason of a refusal."""
        key, label, refused = row
        names = " ".join(keys.shown(each) for each in key.keys)
        says = f"not now: {refused}" if refused else key.help
        if key.command and not refused and width > 110:
            says += f"  [{key.command}]"
        return Content.assemble(
            (f"{names:<14}", "bold $primary" if not refused else "$quiet"),
            f"{label:<20}",
            (says, "$quiet"),
        ).truncate(width, ellipsis=True)

    def key_of(self, row: tuple[KeyRow, str, str | None]) -> object:
        """A row is known by its id."""
        return row[0].id


class HelpDialog(Dialog):
    """Gives back the id of a row to run, or None."""

    BINDINGS = keys.bindings("dialog", "filterable")
    SCOPES = ("dialog",)

    def __init__(self, of: WorkbenchScreen) -> None:
        super().__init__()
        state = of.key_state()
        self._rows = [
            (row, of.label_of(row), row.refusal(state))
            for row in keys.alive((*of.key_scopes(), "global"))
        ]

    def compose(self) -> ComposeResult:
        """Draw the list and its field."""
        with Vertical(classes="box help") as box:
            box.border_title = Content(f"Keys here · {len(self._rows)}")
            box.border_subtitle = (
                f"{keys.hint('filter')} search · {keys.hint('open_row')} run · "
                f"{keys.hint('close')} close"
            )
            yield FilterField(id="help-filter")
            yield HelpList(id="help-list")

    def on_mount(self) -> None:
        """Show all rows."""
        super().on_mount()
        self._fill("")
        self.query_one("#help-list").focus()

    def _fill(self, query: str) -> None:
        scored = [(score(query, f"{row[1]} {row[0].help}"), row) for row in self._rows]
        found = [(points, row) for points, row in scored if points is not None]
        # Stable: without a query, and among equals, the order of the table stays.
        rows = [row for _, row in sorted(found, key=lambda pair: -pair[0])]
        self.query_one("#help-list", HelpList).set_rows(rows)

    def do_filter(self) -> None:
        """Search."""
        self.query_one("#help-filter", FilterField).open()

    @on(FilterField.Typed)
    def _typed(self, event: FilterField.Typed) -> None:
        self._fill(event.text)

    @on(FilterField.Left)
    def _left(self) -> None:
        self.query_one("#help-list").focus()

    @on(LineList.Opened)
    def _opened(self, event: LineList.Opened) -> None:
        self.dismiss(event.row[0].id)
