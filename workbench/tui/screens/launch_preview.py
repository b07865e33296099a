"""The launch preview, the only way to start: checks as they finish, flags, plan, exact command.

Knows ``jobs.preflight`` and ``jobs.launch`` and repeats nothing of them. Invariants: nothing is
written before enter; what is started is what the command line shown would start; an error found by
a check keeps it from starting, a warning asks.
"""

import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from textual import events, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from workbench.errors import ConfigError, WorkbenchError
from workbench.tui import keys, words
from workbench.tui.keys import KeyRow, KeyState
from workbench.tui.marks import CHECK_MARKS
from workbench.tui.screens.frame import Section, WorkbenchScreen
from workbench.tui.screens.launch_plan import Planned, plan, plan_facts
from workbench.tui.widgets.origin_table import value_text

if TYPE_CHECKING:
    from workbench.config.load import ResolvedConfig
    from workbench.jobs.data_worker import Progress
    from workbench.jobs.preflight import Check


FORECAST = "time"
"""The check that belongs to the plan."""

# Of the names of the plan's facts.
_NAME_CELLS = 10


class Look(Protocol):
    """Looks at everything before a launch: ``jobs.preflight``."""

    def __call__(
        self, resolved: "ResolvedConfig", *, project: Path
    ) -> "Iterator[Check | Progress]":
        """Give one check after the other, and how far preparing the data is."""


class FlagsField(Input, inherit_bindings=False):
    """Where flags and keys are typed."""

    KEY_SCOPES = ("flags",)
    TAKES_TEXT = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.bindings("flags"),
        *keys.without_banned(Input.BINDINGS),
    ]


class LaunchPreview(WorkbenchScreen):
    """Checks · flags · plan · command."""

    CSS_PATH = "launch_preview.tcss"
    SCOPES = ("launch",)
    BINDINGS = keys.bindings("launch", "pane")
    SECTIONS = (
        Section("checks", "Checks"),
        Section("plan", "Plan"),
        Section("flags", "Flags"),
        Section("command", "Command"),
    )

    def __init__(
        self,
        config: str,
        *,
        typed: Sequence[str] = (),
        can_launch: bool = True,
        again: str = "",
        look: "Look | None" = None,
    ) -> None:
        super().__init__()
        self._look = look
        self._config = config
        self._typed = list(typed)
        self._can_launch = can_launch
        self._again = again
        self._planned: Planned | None = None
        self._mistake = ""
        self._checks: list[Check] = []
        self._progress: Progress | None = None
        self._is_checking = True
        self._checking_since = 0.0
        self._is_launching = False

    @classmethod
    def of_run(cls, run: Path) -> Self:
        """Preview one more attempt of a run: its own config, in its own folder."""
        return cls(str(run / "config.yaml"), typed=[f"training.output_dir={run}"], again=run.name)

    def compose_body(self) -> ComposeResult:
        """Lay out the panes."""
        yield Static(id="headline")
        with Container(id="launch-top", classes="holder"):
            with VerticalScroll(id="checks", classes="pane"):
                yield Static(id="check-lines")
            with VerticalScroll(id="plan", classes="pane"):
                yield Static(id="plan-lines")
        with VerticalScroll(id="flags", classes="pane"):
            yield Static(id="flag-lines")
            yield FlagsField(id="flag-field", compact=True, select_on_focus=False)
        with VerticalScroll(id="command", classes="pane"):
            yield Static(id="command-lines")

    def on_mount(self) -> None:
        """Begin to check."""
        field = self.query_one("#flag-field", FlagsField)
        field.cursor_blink = False
        field.value = shlex.join(self._typed)
        field.display = False
        self.show_panes()
        self.query_one("#checks").focus()
        self._begin()

    # ---- checking ----------------------------------------------------------------------

    def _begin(self) -> None:
        """Resolve with what was typed, then check, off the loop."""
        self._checks, self._is_checking, self._mistake = [], True, ""
        self._progress = None
        self._checking_since = self.workbench.surroundings.stopwatch()
        self._show()
        self.check()

    @work(thread=True, exclusive=True, group="preflight", exit_on_error=False)
    def check(self) -> None:
        """Resolve and check; every finding goes to the screen at once.

        Progress comes several times a second, so a screen that is closed ends its data worker.
        """
        from workbench.jobs.data_worker import Progress
        from workbench.jobs.preflight import preflight

        look = self._look or preflight
        worker = get_current_worker()
        project = self.workbench.surroundings.project
        try:
            planned = plan(self._config, self._typed, project)
        except ConfigError as error:
            if not worker.is_cancelled:
                self.from_thread(self._take_mistake, str(error))
            return
        if worker.is_cancelled:
            return
        self.from_thread(self._take_plan, planned)
        for found in look(planned.resolved, project=project):
            if worker.is_cancelled:
                return
            if isinstance(found, Progress):
                self.from_thread(self._take_progress, found)
            else:
                self.from_thread(self._take_check, found)
        if not worker.is_cancelled:
            self.from_thread(self._take_end)

    def worker_failed(self, name: str, text: str) -> None:
        """A check that broke keeps the run from starting, as an error would."""
        if self._is_launching:
            self._is_launching = False
            super().worker_failed(name, text)
            self._show()
        else:
            self._take_mistake(f"the checks broke: {text}; a fault of the program: report it")

    def _take_mistake(self, text: str) -> None:
        self._mistake, self._is_checking = text, False
        self._show()

    def _take_plan(self, planned: Planned) -> None:
        self._planned = planned
        self._show()

    def _take_check(self, found: "Check") -> None:
        self._checks.append(found)
        self._show()

    def _take_progress(self, progress: "Progress") -> None:
        if progress != self._progress:
            self._progress = progress
            if self.is_mounted:
                self._show_checks()

    def _take_end(self) -> None:
        self._is_checking = False
        self._show()

    def clock_ticked(self) -> None:
        """Let the age of a slow check grow."""
        if self._is_checking and self.is_mounted:
            self._show_checks()

    # ---- drawing -----------------------------------------------------------------------

    def _show(self) -> None:
        if not self.is_mounted:
            return
        self._show_headline()
        self._show_checks()
        self._show_plan()
        self.query_one("#flag-lines", Static).update(Content("\n").join(self._flag_lines()))
        self.query_one("#command-lines", Static).update(Content("\n").join(self._command_content()))
        self.show_panes()

    def _show_headline(self) -> None:
        target = self._planned.run.folder.name if self._planned and self._planned.run else "…"
        name = f"{self._again}, one more attempt" if self._again else f"{self._config} → {target}"
        left = Content.assemble((" Launch  ", "bold"), name)
        state = "starting…" if self._is_launching else "nothing has been started"
        if not self._can_launch:
            state = f"to look only, {keys.hint('launch')} launches"
        gap = max(self.app.size.width - left.cell_length - len(state) - 1, 1)
        self.query_one("#headline", Static).update(
            left.append(" " * gap).append(Content.assemble((state, "$quiet")))
        )

    def _show_checks(self) -> None:
        lines = []
        for found in self._checks:
            if found.name == FORECAST:  # it stands in the plan
                continue
            mark, colour = CHECK_MARKS[found.state]
            lines.append(
                Content.assemble((f"{mark} ", f"bold {colour}"), self._short(found.message))
            )
            if found.remedy:
                lines.append(Content.assemble(("  → ", "$primary"), self._short(found.remedy)))
        if self._mistake:
            for number, line in enumerate(self._short(self._mistake).splitlines()):
                lines.append(Content.assemble(("✗ " if number == 0 else "  ", "bold $bad"), line))
        if self._is_checking:
            age = self.workbench.surroundings.stopwatch() - self._checking_since
            word = self._word_of_progress()
            if age > 2:
                word = f"{word or 'still checking'}, {words.duration(age)}"
            lines.append(Content.assemble(("◌ ", "$busy"), (word or "checking…", "$quiet")))
        self.query_one("#check-lines", Static).update(Content("\n").join(lines))

    def _word_of_progress(self) -> str:
        """Say how far preparing the data is; "" where no number is known."""
        progress = self._progress
        if progress is None or not progress.total:
            return ""
        return f"{progress.stage} {progress.done:,} of {progress.total:,}"

    def _short(self, text: str) -> str:
        return words.from_project(text, self.workbench.surroundings.project)

    def _show_plan(self) -> None:
        if self.is_mounted:
            widget = self.query_one("#plan-lines", Static)
            lines = self._plan_lines(widget.size.width)
            widget.update(Content("\n").join(lines))

    def on_resize(self, event: events.Resize) -> None:
        """Break long facts of the plan at its new width; the frame hears of it too."""
        del event
        self.call_after_refresh(self._show_plan)

    def _plan_lines(self, width: int) -> list[Content]:
        """Give the plan, and its forecast below, in lines of at most ``width``."""
        if self._planned is None:
            return []
        facts = plan_facts(self._planned)
        facts += [(check.name, check.message) for check in self._checks if check.name == FORECAST]
        rest = max(width - _NAME_CELLS, 20)
        lines = []
        for name, text in facts:
            for number, line in enumerate(textwrap.wrap(self._short(text), rest)):
                told = name if number == 0 else ""
                lines.append(Content.assemble((told.ljust(_NAME_CELLS), "$quiet"), line))
        return lines

    def _flag_lines(self) -> list[Content]:
        if self._planned is None:
            return []
        resolved = self._planned.resolved
        value_width = 14 if self.is_narrow else 24
        lines = []
        for flag in resolved.flags:
            leaf = resolved.leaves.get(flag.path)
            value = leaf.value if leaf else flag.default
            text = words.shorten(self._short(value_text(value)), value_width)
            is_set = leaf is not None and leaf.origin.source.startswith(("flag", "key="))
            spelled = "/".join(filter(None, (flag.short, flag.name)))
            lines.append(
                Content.assemble(
                    words.shorten(spelled, 26).ljust(26),
                    (text.ljust(value_width), "bold" if is_set else ""),
                    ("● " if is_set else "  ", "$accent"),
                    (flag.help, "$quiet"),
                ).truncate(max(self.app.size.width - 6, 20), ellipsis=True)
            )
        if not resolved.flags:
            lines.append(
                Content.assemble(
                    ("This config offers no flags; any key can be set as key=value.", "$quiet")
                )
            )
        others = [
            key
            for key, leaf in resolved.leaves.items()
            if leaf.origin.source == "key=value"
            and key not in {flag.path for flag in resolved.flags}
        ]
        for key in others:
            value = value_text(resolved.leaves[key].value)
            lines.append(Content.assemble(f"{key}=", (value, "bold"), ("  ●", "$accent")))
        return lines

    @property
    def command_line(self) -> str:
        """The command that does the same."""
        parts = ["workbench", "train", "-t", self._config]
        project = self.workbench.surroundings.project
        if project != Path.cwd():
            parts += ["-p", str(project)]
        return shlex.join([*parts, *self._typed])

    def _command_content(self) -> list[Content]:
        lines = [Content.assemble((self.command_line, "bold"))]
        if self._planned and self._planned.torchrun:
            # For the eye: what is pasted is the line above.
            torchrun = self._short(self._planned.torchrun.replace(sys.executable, "python"))
            lines.append(Content.assemble((f"→ supervisor → {torchrun}", "$quiet")))
        return lines

    def title_of(self, section_id: str) -> Content:
        """Count what the checks found."""
        if section_id == "checks":
            return Content(f"Checks{self._counts()}")
        if section_id == "command":
            return Content(f"Exact command · {keys.hint('copy_command')} copies")
        if section_id == "flags":
            return Content(f"Flags this config offers · {keys.hint('edit_flags')} edit")
        return Content("Plan")

    def note_of(self, section_id: str) -> Content:
        """Count what the checks found, behind the tabs."""
        return Content(self._counts().strip(" ·")) if section_id == "checks" else Content("")

    def _counts(self) -> str:
        counts = []
        for state, (mark, _) in CHECK_MARKS.items():
            number = sum(found.state == state and found.name != FORECAST for found in self._checks)
            number += state == "error" and bool(self._mistake)
            if number:
                counts.append(f"{mark}{number}")
        return " · " + " ".join(counts) if counts else ""

    # ---- keys --------------------------------------------------------------------------

    def key_state(self) -> KeyState:
        """Refuse to start what would not."""
        return KeyState(
            readonly=self.workbench.surroundings.readonly,
            refused=(("start_run", reason),) if (reason := self._why_not()) else (),
        )

    def _why_not(self) -> str | None:
        errors = [found for found in self._checks if found.state == "error"]
        if not self._can_launch:
            return f"opened to look only; {keys.hint('launch')} opens it to launch"
        if self._is_launching:
            return "it is being started"
        if self._mistake:
            return self._mistake.splitlines()[0]
        if errors:
            return (
                f"{errors[0].message}; {errors[0].remedy}"
                if errors[0].remedy
                else errors[0].message
            )
        if self._is_checking:
            return "the checks are not through yet"
        return None

    def label_of(self, row: KeyRow) -> str:
        """Say that warnings are asked about."""
        num = sum(found.state == "warning" for found in self._checks)
        if row.id == "start_run" and num:
            return f"Launch ({num} warning{'s' if num > 1 else ''}: asks)"
        return row.label

    def do_start_run(self) -> None:
        """Start, after asking about warnings."""
        warnings = [found for found in self._checks if found.state == "warning"]
        if not warnings:
            self._start()
            return
        from workbench.tui.screens.confirm import Confirm

        lines = [f"! {found}" for found in warnings]
        self.app.push_screen(Confirm("Launch in spite of this?", lines), self._confirmed)

    def _confirmed(self, answer: object) -> None:
        if answer is True:
            self._start()

    def _start(self) -> None:
        if self._planned is None or self._is_launching:
            return
        self._is_launching = True
        self._show_headline()
        self.refresh_keys()
        self.workbench.say("starting: waiting for the supervisor's hello", "working")
        self.start_job(self._planned.resolved)

    @work(thread=True, exclusive=True, group="launch", exit_on_error=False)
    def start_job(self, resolved: "ResolvedConfig") -> None:
        """Make the run folder and start the job."""
        from workbench.jobs.launch import launch

        try:
            run, job = launch(resolved, project=self.workbench.surroundings.project)
        except WorkbenchError as error:
            self.from_thread(self._take_failure, error)
            return
        self.from_thread(self._take_start, run.path, job.job)

    def _take_failure(self, error: WorkbenchError) -> None:
        self._is_launching = False
        self.workbench.say_error("not started: ", error)
        self._show_headline()
        self.refresh_keys()

    def _take_start(self, run: Path, job: str) -> None:
        self.workbench.wanted_job = run
        self.workbench.index.look_now()
        self.dismiss(None)
        self.workbench.say(f"{run.name} started as job {job}")
        self.workbench.show("jobs")

    def do_edit_flags(self) -> None:
        """Type flags and keys."""
        if self.is_narrow:
            self.section = "flags"
        field = self.query_one("#flag-field", FlagsField)
        field.display = True
        field.placeholder = "--flag VALUE  section.key=value"
        # What is there already, a run's folder say, is added to and not typed over.
        field.cursor_position = len(field.value)
        field.focus()

    def do_accept_flags(self) -> None:
        """Take what was typed and check again."""
        field = self.query_one("#flag-field", FlagsField)
        try:
            self._typed = shlex.split(field.value)
        except ValueError as error:
            self.workbench.say(f"{field.value}: {error}; close the quotation", "error")
            return
        self._close_field()
        self.section = ""
        self._begin()

    def do_leave_flags(self) -> None:
        """Leave what was typed before."""
        self.query_one("#flag-field", FlagsField).value = shlex.join(self._typed)
        self._close_field()

    def _close_field(self) -> None:
        self.query_one("#flag-field").display = False
        self.focus_pane("flags")

    def do_check_again(self) -> None:
        """Run every check again."""
        self._begin()

    def do_copy_command(self) -> None:
        """Copy the command line."""
        self.app.copy_to_clipboard(self.command_line)
        self.workbench.say("command copied")
