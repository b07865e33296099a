"""A dialog that asks for a few values, does one long piece of work with them, and tells of its end.

A subclass says what is asked for, what the work is and what it has found. Invariants: nothing is
written before enter; leaving while it works ends the work, and of what is not complete nothing is
left; the command line that is shown does the same.
"""

import logging
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static
from textual.worker import Worker, WorkerState

from workbench.config.inherit import expand
from workbench.errors import ConfigError, WorkbenchError
from workbench.tui import keys, words
from workbench.tui.keys import KeyState
from workbench.tui.screens.frame import Dialog
from workbench.tui.widgets.bars import progress_bar
from workbench.tui.widgets.form import ChoiceField, FormField, FormLine

logger = logging.getLogger(__name__)

Phase = Literal["form", "working", "done", "failed"]
_BAR_WIDTH = 24
_NAME_WIDTH = 11


class WorkDialog(Dialog):
    """Gives back the folder that was made, None where none was."""

    SCOPES = ("work", "form", "dialog")
    BINDINGS = keys.bindings("work", "form", "dialog")

    def __init__(self, title: str) -> None:
        super().__init__()
        self._heading = title
        self.phase: Phase = "form"
        self._stages: dict[str, tuple[int, int]] = {}
        self._notes: list[str] = []
        self._error: WorkbenchError | None = None
        self._asks_to_leave = False
        self._stage_since = 0.0
        self.made: Path | None = None

    # ---- what a subclass says ----------------------------------------------------------

    def facts(self) -> Sequence[tuple[str, str]]:
        """Say what the work starts from, as names and values."""
        return ()

    def fields(self) -> Iterable[FormLine]:
        """Give the fields of the form."""
        return ()

    def command_line(self) -> str:
        """Give the command line that does the same as what is chosen."""
        raise NotImplementedError

    def objection(self) -> str | None:
        """Say why the work cannot begin with what is typed, None where it can."""
        return None

    def begin_work(self) -> None:
        """Begin the work in a thread."""
        raise NotImplementedError

    def findings(self) -> Sequence[tuple[str, str]]:
        """Say what came out, once it is done, as names and values."""
        return ()

    # ---- layout ------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Lay out facts, form, progress and command."""
        with Vertical(classes="box work") as box:
            box.border_title = Content(self._heading)
            yield Static(Content("\n").join(_named(self.facts())), id="work-facts")
            with Vertical(id="work-form"):
                yield from self.fields()
            yield Static(id="work-objection")
            with VerticalScroll(id="work-progress", can_focus=False):
                yield Static(id="work-lines")
            yield Static(id="work-command")

    def on_mount(self) -> None:
        """Begin to count, and show the form."""
        super().on_mount()
        self.query("#work-form FormField").first().focus()
        self.show()
        if not self.workbench.surroundings.still:
            self.set_interval(1.0, self._tick)

    def _tick(self) -> None:
        """Let the age of a slow stage grow."""
        if self.phase == "working":
            self.show()

    def text_of(self, field_id: str) -> str:
        """Give what was typed into a field."""
        return self.query_one(f"#{field_id}", FormField).value.strip()

    def choice_of(self, field_id: str) -> str:
        """Give what is chosen in a field."""
        return self.query_one(f"#{field_id}", ChoiceField).value

    def destination(self) -> Path:
        """Give the folder to make: what was typed, seen from the project.

        Raises:
            ConfigError: nothing was typed, or a variable in it is not known.
        """
        typed = self.text_of("destination")
        expanded, trouble = expand(typed)
        if trouble or not typed:
            raise ConfigError(
                trouble or "no folder is named", where="destination", remedy="name a folder to make"
            )
        return self.workbench.surroundings.project / expanded

    @on(Input.Changed)
    @on(ChoiceField.Changed)
    def _changed(self) -> None:
        if self.phase == "form" and self.is_mounted:
            self.show()

    def show(self) -> None:
        """Draw what the phase asks for."""
        if not self.is_mounted:
            return
        box = self.query_one(".box")
        is_form = self.phase == "form"
        self.query_one("#work-form").display = is_form
        objection = self.objection() if is_form else None
        line = self.query_one("#work-objection", Static)
        line.display = is_form
        line.update(
            Content.assemble(("! ", "bold $note"), objection)
            if objection
            else Content.assemble(("Nothing is written before you begin.", "$quiet"))
        )
        self.query_one("#work-progress").display = not is_form
        self.query_one("#work-lines", Static).update(Content("\n").join(self._lines()))
        self.query_one("#work-command", Static).update(
            Content.assemble(("Same as: ", "$quiet"), (self._command(), "bold"))
        )
        box.border_subtitle = self._subtitle()

    def _command(self) -> str:
        try:
            return self.command_line()
        except WorkbenchError:
            return "…"

    def _subtitle(self) -> str:
        begin, close = keys.hint("begin"), keys.hint("close")
        copy = f"{keys.hint('copy_work')} copy command"
        match self.phase:
            case "form":
                return f"{begin} begin · {keys.hint('next_field')} next · {close} close"
            case "working":
                ends = "again ends it" if self._asks_to_leave else "ends it"
                if self.made is not None:
                    return f"{close} close, the model is made · {copy}"
                return f"{close} {ends}, nothing is left · {copy}"
            case _:
                return f"{begin} close · {copy}"

    def _lines(self) -> list[Content]:
        lines = []
        names = list(self._stages)
        if self.phase == "done":
            # What has been done needs one line; the room is for what came out.
            lines.append(Content.assemble(("✓ ", "bold $good"), (" · ".join(names), "$quiet")))
            names = []
        for name in names:
            done, total = self._stages[name]
            is_over = name != names[-1]
            mark = ("✓ ", "bold $good") if is_over else ("◌ ", "bold $busy")
            if self.phase == "failed" and name == names[-1]:
                mark = ("✗ ", "bold $bad")
            line = Content.assemble(mark, f"{name:<24}")
            if total and not is_over:
                line = line.append(progress_bar(done / total, _BAR_WIDTH))
                line = line.append(f" {words.percent(done, total)}")
            elif self.phase == "working" and not is_over:
                line = line.append(Content.assemble((self._age(), "$quiet")))
            lines.append(line)
        if self.phase == "working" and not names:
            start = Content.assemble(("◌ ", "bold $busy"), f"{'starting the worker':<24}")
            lines.append(start.append(Content.assemble((self._age(), "$quiet"))))
        for note in self._notes:
            lines.append(Content.assemble(("! ", "bold $note"), note))
        if self._error is not None:
            lines.append(Content.assemble(("✗ ", "bold $bad"), self._error.what))
            lines.append(Content.assemble(("  → ", "$primary"), self._error.remedy))
            lines.append(Content.assemble((f"  {self._error.where}", "$quiet")))
        if self.phase == "done":
            lines.append(Content(""))
            lines.extend(self._found())
        return lines

    def _found(self) -> Iterator[Content]:
        """Draw what came out: what needs several lines goes on below its beginning."""
        width = self.query_one("#work-progress").size.width or self.app.size.width - 10
        for name, said in self.findings():
            rows = textwrap.wrap(said, max(width - _NAME_WIDTH - 1, 20)) or [""]
            for number, row in enumerate(rows):
                first = name if number == 0 else ""
                yield Content.assemble((f"{first:<{_NAME_WIDTH}}", "$quiet"), row)

    def _age(self) -> str:
        """Say how long a stage has taken, once that is long."""
        seconds = self.workbench.surroundings.stopwatch() - self._stage_since
        return words.duration(seconds) if seconds >= 2 else ""

    # ---- what the work tells -----------------------------------------------------------

    def tell_stage(self, stage: str, done: int, total: int) -> None:
        """Note how far a stage is; one that comes again stays where it stood."""
        if stage not in self._stages:
            self._stage_since = self.workbench.surroundings.stopwatch()
        self._stages[stage] = (done, total)
        self.show()

    def tell_note(self, text: str) -> None:
        """Note something that whoever does this should know."""
        self._notes.append(text)
        self.show()

    def fail(self, error: WorkbenchError) -> None:
        """Say why nothing was made."""
        self._error = error
        self.phase = "failed"
        self.show()

    def finish(self, made: Path) -> None:
        """Say that a folder was made."""
        self.made = made
        self.phase = "done"
        self.show()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """A fault of our own ends the work as a refusal would."""
        if event.state is WorkerState.ERROR:
            fault = event.worker.error
            logger.error("%s failed", event.worker.name, exc_info=fault)
            self.fail(
                WorkbenchError(
                    f"{type(fault).__name__}: {fault}",
                    where=event.worker.name,
                    remedy="a fault of the program: report it",
                )
            )

    # ---- keys --------------------------------------------------------------------------

    def key_state(self) -> KeyState:
        """Refuse to begin what cannot be."""
        return KeyState(readonly=self.workbench.surroundings.readonly)

    def do_next_field(self) -> None:
        """Move to the next field; once it works, show what stands further below."""
        if self.phase == "form":
            self.focus_next()
        else:
            self.query_one("#work-progress").scroll_down(animate=False)

    def do_previous_field(self) -> None:
        """Move to the field before; once it works, show what stands further above."""
        if self.phase == "form":
            self.focus_previous()
        else:
            self.query_one("#work-progress").scroll_up(animate=False)

    def do_begin(self) -> None:
        """Begin the work; after its end, close."""
        if self.phase in ("done", "failed"):
            self.dismiss(self.made)
            return
        if self.phase != "form" or self.objection() is not None:
            return
        self.phase = "working"
        self._stage_since = self.workbench.surroundings.stopwatch()
        self.set_focus(None)
        self.show()
        self.begin_work()

    def do_copy_work(self) -> None:
        """Copy the command line."""
        self.app.copy_to_clipboard(self._command())
        self.workbench.say("command copied")

    def do_close(self) -> None:
        """Close; while the work goes on, ask for a second press first."""
        if self.phase == "working" and self.made is None and not self._asks_to_leave:
            self._asks_to_leave = True
            self.show()
            return
        self.dismiss(self.made)


def _named(facts: Iterable[tuple[str, str]]) -> list[Content]:
    return [Content.assemble((f"{name:<15}", "$quiet"), said) for name, said in facts]
