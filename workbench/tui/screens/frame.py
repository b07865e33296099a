"""What every screen has: header, body, message row, footer; and what every dialog has.

Invariant: a screen shows the same header and footer whatever its body does.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.dom import DOMNode
from textual.reactive import reactive
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.worker import Worker, WorkerState

from workbench.tui import keys
from workbench.tui.keys import KeyRow, KeyState, Scope
from workbench.tui.program import Program
from workbench.tui.widgets.key_bar import KeyBar, KeyItem
from workbench.tui.widgets.message_row import MessageRow
from workbench.tui.widgets.too_small import TooSmall
from workbench.tui.widgets.top_bar import TopBar

logger = logging.getLogger(__name__)


def call_from_thread(
    screen: Screen[Any], callback: Callable[..., object], *arguments: object
) -> None:
    """Have the program call a function for a worker thread, in the order asked, without a wait.

    A thread that waited would hold up the end of a program that ends meanwhile. Nothing is called
    when the program has ended or the screen is gone.
    """

    def call() -> object:
        # A program that ends takes the widgets of its screens away before the screens.
        is_here = screen.app.is_running and screen.is_attached
        return callback(*arguments) if is_here else None

    with contextlib.suppress(RuntimeError):  # its loop is closed
        screen.app.call_later(call)


@dataclass(frozen=True)
class Section:
    """A pane of a screen: the id of its widget, its name among the tabs of the narrow form."""

    id: str
    name: str
    beside: bool = False  # seen in the narrow form only, beside whatever tab is shown
    always: bool = False  # seen in every form


class WorkbenchScreen(Screen[None], inherit_bindings=False):
    """A mode of the program."""

    SCOPES: tuple[Scope, ...] = ()
    SECTIONS: tuple[Section, ...] = ()
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual's form
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-tall")]  # noqa: RUF012 - Textual's form

    @property
    def workbench(self) -> Program:
        """The program, with its own type."""
        return cast(Program, self.app)

    def from_thread(self, callback: Callable[..., object], *arguments: object) -> None:
        """Have the program call a function for a worker thread; see ``call_from_thread``."""
        call_from_thread(self, callback, *arguments)

    @property
    def is_narrow(self) -> bool:
        """Whether the panes are shown one at a time."""
        return self.app.size.width < 100

    def compose(self) -> ComposeResult:
        """Lay out header, body, message row and footer."""
        yield TopBar(id="top")
        with Container(id="body"):
            yield from self.compose_body()
        yield MessageRow(id="said")
        yield KeyBar(id="keys")
        yield TooSmall(self.workbench.jobs_in_a_line)

    def compose_body(self) -> ComposeResult:
        """Give the widgets of the body."""
        yield from ()

    # ---- panes: all at once, one at a time, or one alone -------------------------------

    section: reactive[str] = reactive("")
    zoomed: reactive[str] = reactive("")

    def title_of(self, section_id: str) -> Content:
        """Give the title of a pane."""
        return Content(next(each.name for each in self.SECTIONS if each.id == section_id))

    def watch_section(self) -> None:
        """Show another tab."""
        self.show_panes()

    def watch_zoomed(self) -> None:
        """Give a pane the whole body, or give it back."""
        self.show_panes()

    def on_resize(self, event: events.Resize) -> None:
        """Choose the form for the new size."""
        del event
        self.call_after_refresh(self.show_panes)
        self.show_panes()

    def show_panes(self) -> None:
        """Show the panes that the form, the tab and the zoom ask for; title them."""
        if not self.is_mounted or not self.SECTIONS:
            return
        tabs = self._tabs()
        active = self.section or tabs[0].id
        for each in self.SECTIONS:
            widget = self.query_one(f"#{each.id}")
            if self.zoomed:
                widget.display = each.id == self.zoomed
            else:
                is_shown = each.id in self.panes_of(active) if self.is_narrow else not each.beside
                widget.display = is_shown or each.always or (self.is_narrow and each.beside)
            self.entitle(each.id)
        for holder in reversed(list(self.query("#body .holder"))):
            holder.display = any(child.display for child in holder.children)
        self.set_class(bool(self.zoomed), "-zoomed")
        focused = self.focused
        if focused is not None and not _is_shown(focused, self):
            self.focus_pane(self.zoomed or active)
        self.refresh_keys()

    def _tabs(self) -> list[Section]:
        """Give the panes that the narrow form shows one at a time."""
        return [each for each in self.SECTIONS if not (each.beside or each.always)]

    def panes_of(self, active: str) -> set[str]:
        """Give the panes that the narrow form shows under a tab."""
        return {active}

    def entitle(self, section_id: str) -> None:
        """Write the title of a pane; in the narrow form the names of all tabs stand before it."""
        title = self.title_of(section_id)
        is_tab = section_id == (self.section or next(tab.id for tab in self._tabs()))
        if self.is_narrow and not self.zoomed and is_tab:
            names = [
                (f"[{tab.name}]", "bold") if tab.id == section_id else (tab.name, "$quiet")
                for tab in self._tabs()
            ]
            strip = Content("  ").join([Content.assemble(name) for name in names])
            rest = self.note_of(section_id)
            title = strip.append(Content.assemble(" · ", rest)) if rest.plain else strip
        self.query_one(f"#{section_id}").border_title = title

    def note_of(self, section_id: str) -> Content:
        """Give what stands behind the tabs of the narrow form."""
        del section_id
        return Content("")

    def focus_pane(self, section_id: str) -> None:
        """Give a pane the focus, or the first widget inside it that takes it."""
        widget = self.query_one(f"#{section_id}")
        if widget.focusable:
            widget.focus()
            return
        for child in widget.query("*"):
            if child.focusable and child.display:
                child.focus()
                return

    def pane_of(self, widget: Widget | None) -> str:
        """Give the id of the pane that holds a widget, "" for none."""
        ids = {each.id for each in self.SECTIONS}
        node: DOMNode | None = widget
        while node is not None and node is not self:
            if node.id in ids:
                return str(node.id)
            node = node.parent
        return ""

    def do_next_tab(self) -> None:
        """Show the next tab, or move to the next pane where all are shown."""
        self._turn(1)

    def do_previous_tab(self) -> None:
        """Show the tab before, or move to the pane before where all are shown."""
        self._turn(-1)

    def _turn(self, by: int) -> None:
        tabs = [each.id for each in self._tabs()]
        if not tabs:
            return
        if self.zoomed:
            self.zoomed = (
                tabs[(tabs.index(self.zoomed) + by) % len(tabs)] if self.zoomed in tabs else tabs[0]
            )
            self.focus_pane(self.zoomed)
        elif self.is_narrow:
            self.section = tabs[(tabs.index(self.section or tabs[0]) + by) % len(tabs)]
            self.focus_pane(self.section)
        elif by > 0:
            self.focus_next()
        else:
            self.focus_previous()

    def do_zoom(self) -> None:
        """Give the focused pane the whole body, and back."""
        self.zoomed = "" if self.zoomed else self.pane_of(self.focused)

    def do_back(self) -> object:
        """Leave the zoom, then dismiss the message; the rest is left to the screen."""
        if self.zoomed:
            self.zoomed = ""
            return None
        return None if self.workbench.clear_said() else NotImplemented

    # ---- life --------------------------------------------------------------------------

    def on_screen_resume(self) -> None:
        """Bring header and footer up to date when the screen comes back."""
        self.workbench.refresh_frame()
        self.came_back()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Tell of a fault of our own in a worker; the screen lives on."""
        if event.state is WorkerState.ERROR:
            fault = event.worker.error
            logger.error("%s failed", event.worker.name, exc_info=fault)
            self.worker_failed(event.worker.name, f"{type(fault).__name__}: {fault}")

    def worker_failed(self, name: str, text: str) -> None:
        """Say that a worker of this screen has failed."""
        self.workbench.say(f"{name} failed: {text}", "error", "a fault of the program: report it")

    def clock_ticked(self) -> None:
        """Let ages on the screen grow; called once a second while it is shown."""

    def came_back(self) -> None:
        """Do what a screen does when it is shown again."""

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Show the keys of the pane that has the focus."""
        del event
        self.refresh_keys()

    def key_state(self) -> KeyState:
        """Give what the keys of this screen depend on."""
        return KeyState(readonly=self.workbench.surroundings.readonly)

    def label_of(self, row: KeyRow) -> str:
        """Give the footer's word for a row, where it depends on the state."""
        return "Give back" if row.id == "zoom" and self.zoomed else row.label

    def key_scopes(self) -> tuple[Scope, ...]:
        """Give the scopes whose keys work now: those of the focus and those of the screen."""
        focused = self.focused
        found: list[Scope] = []
        node: Widget | None = focused
        while node is not None and node is not self:
            own = getattr(node, "KEY_SCOPES", ())
            found.extend(scope for scope in own if scope not in found)
            node = cast("Widget | None", node.parent) if isinstance(node.parent, Widget) else None
        return (*found, *(scope for scope in self.SCOPES if scope not in found))

    def refresh_keys(self) -> None:
        """Draw the footer for what is selected and focused now."""
        if not self.is_mounted:
            return
        state = self.key_state()
        is_typing = getattr(self.focused, "TAKES_TEXT", False)
        bar = self.query_one("#keys", KeyBar)
        bar.here = tuple(self._items(keys.alive(self.key_scopes()), state, is_typing))
        bar.everywhere = tuple(self._items(keys.rows(("global",)), state, is_typing))

    def _items(self, rows: Iterable[KeyRow], state: KeyState, is_typing: bool) -> Iterator[KeyItem]:
        for row in rows:
            key = row.shown_while_typing if is_typing else row.shown
            rank = row.footer or (2 if is_typing and row.id == "next_screen" else 0)
            if key and rank:
                yield KeyItem(row.id, key, self.label_of(row), rank, row.refusal(state) is not None)


def _is_shown(widget: Widget, screen: Screen[None]) -> bool:
    node: DOMNode | None = widget
    while node is not None and node is not screen:
        if not node.display:
            return False
        node = node.parent
    return True


class Dialog(ModalScreen[object], inherit_bindings=False):
    """A box above a screen. For its first moments it ignores keys meant for what was there."""

    SCOPES: tuple[Scope, ...] = ("dialog",)
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual's form

    def __init__(self) -> None:
        super().__init__()
        self.opened_at: float | None = None

    @property
    def workbench(self) -> Program:
        """The program, with its own type."""
        return cast(Program, self.app)

    def on_mount(self) -> None:
        """Begin to count the moments in which keys are ignored."""
        self.opened_at = self.workbench.surroundings.stopwatch()

    @property
    def ignores_keys(self) -> bool:
        """Whether the box is too young to have been meant."""
        if self.opened_at is None:
            return True
        surroundings = self.workbench.surroundings
        return surroundings.stopwatch() - self.opened_at < surroundings.guard_seconds

    def key_state(self) -> KeyState:
        """Give what the keys of this box depend on."""
        return KeyState(readonly=self.workbench.surroundings.readonly)

    def from_thread(self, callback: Callable[..., object], *arguments: object) -> None:
        """Have the program call a function for a worker thread; see ``call_from_thread``."""
        call_from_thread(self, callback, *arguments)

    def do_close(self) -> None:
        """Close and change nothing."""
        self.dismiss(None)
