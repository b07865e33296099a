"""The program: its screens as late-imported functions, its theme, its dispatch of keys.

Importing this module and drawing the first frame loads neither torch nor numpy; numpy comes with
the first chart. Nothing here knows what a screen shows. Invariant: a key that is refused says why.
"""

import contextlib
import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import App, SystemCommand
from textual.css.query import NoMatches
from textual.dom import DOMNode
from textual.message import Message
from textual.screen import Screen

from workbench.errors import WorkbenchError
from workbench.tui import keys
from workbench.tui.keys import KeyState
from workbench.tui.remembered import read_remembered, write_remembered
from workbench.tui.screens.frame import Dialog, WorkbenchScreen
from workbench.tui.surroundings import Surroundings
from workbench.tui.themes import DEFAULTS, WB_DARK, WB_LIGHT
from workbench.tui.widgets.message_row import MessageRow, Said, Severity
from workbench.tui.widgets.too_small import MIN_HEIGHT, MIN_WIDTH
from workbench.tui.widgets.top_bar import Badge, Tab, TopBar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workbench.control.messages import CommandName
    from workbench.tui.job_events import CommandSaid, Watches
    from workbench.tui.job_index import JobIndex, KnownRun

logger = logging.getLogger(__name__)

SECONDS_OF_A_MESSAGE = 3.0


def _configs() -> Screen[Any]:
    from workbench.tui.screens.configs import ConfigsScreen

    return ConfigsScreen()


def _jobs() -> Screen[Any]:
    from workbench.tui.screens.jobs import JobsScreen

    return JobsScreen()


def _chat() -> Screen[Any]:
    from workbench.tui.screens.chat import ChatScreen

    return ChatScreen()


def _checkpoints() -> Screen[Any]:
    from workbench.tui.screens.checkpoints import CheckpointsScreen

    return CheckpointsScreen()


SCREENS: tuple[tuple[str, str, str, str], ...] = (
    # mode, id of its key, name, name at 80 columns
    ("configs", "show_configs", "Configs", "Conf"),
    ("jobs", "show_jobs", "Jobs", "Jobs"),
    ("chat", "show_chat", "Chat", "Chat"),
    ("checkpoints", "show_checkpoints", "Checkpoints", "Ckpt"),
)


class WorkbenchApp(App[None], inherit_bindings=False):
    """The workbench in a terminal."""

    CSS_PATH = Path(__file__).with_name("app.tcss")
    TITLE = "workbench"
    BINDINGS = keys.bindings("global")
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "configs": _configs,
        "jobs": _jobs,
        "chat": _chat,
        "checkpoints": _checkpoints,
    }
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = keys.BY_ID["palette"].keys[-1]
    ESCAPE_TO_MINIMIZE = False

    def __init__(self, surroundings: Surroundings | None = None, *, screen: str = "") -> None:
        self.surroundings = surroundings or Surroundings()
        # Without colour the terminal's own are used from the start: only then does Textual choose
        # the filter that takes every colour code out of the output.
        super().__init__(ansi_color=None if self.surroundings.colour else True)
        if self.surroundings.ascii:
            from workbench.tui.ascii import AsciiFilter

            self._filters.append(AsciiFilter())
        self.register_theme(WB_DARK)
        self.register_theme(WB_LIGHT)
        self.remembered = read_remembered(self.surroundings.state_folder)
        if not self.surroundings.colour:
            self.theme = "ansi-dark"
        else:
            wanted = self.remembered.theme or ("wb-light" if self.surroundings.light else "wb-dark")
            self.theme = wanted if wanted in self.available_themes else "wb-dark"
        self.first_screen = screen
        self.history: list[Said] = []
        self._index: JobIndex | None = None
        self._watches: Watches | None = None
        self.under_way: dict[Path, list[CommandName]] = {}
        self.wanted_job: Path | None = None
        self._looked_at: Path | None = None
        self.parting: list[str] | None = None
        self._said: Said | None = None
        self._said_timer: Any = None
        self._detach_pressed_at = float("-inf")

    # ---- start and end -----------------------------------------------------------------

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Give our colour names a meaning under every theme."""
        return DEFAULTS

    @property
    def index(self) -> "JobIndex":
        """The jobs and runs that are known; its module is imported when it is first asked for."""
        if self._index is None:
            from workbench.tui.job_index import JobIndex

            self._index = JobIndex(self.surroundings)
        return self._index

    def on_mount(self) -> None:
        """Show the screen of last time, and begin to look for jobs."""
        wanted = self.first_screen or self.remembered.screen
        # A conversation does not outlive the program, so nobody begins there unasked.
        if wanted not in self.MODES or (wanted == "chat" and not self.first_screen):
            wanted = "jobs" if self.index.has_entries() else "configs"
        self.switch_mode(wanted)
        self.app_resume_signal.subscribe(self, self._draw_anew)
        self.call_after_refresh(self._begin_to_look)

    def _draw_anew(self, _: object) -> None:
        """Draw every cell: the terminal has forgotten them while the shell had it."""
        for screen in self.screen_stack:
            screen.refresh(layout=True)

    def _begin_to_look(self) -> None:
        self.index.begin(self._runs_were_read)
        self.set_interval(1 / self.surroundings.frames_per_second, self._tell_changes)
        if not self.surroundings.still:
            self.set_interval(1.0, self._tick)

    def _tick(self) -> None:
        self.refresh_frame()
        for screen in self.screen_stack:
            if isinstance(screen, WorkbenchScreen):
                screen.clock_ticked()

    async def on_unmount(self) -> None:
        """Let go of every job, and keep the choices for the next start."""
        self.index.end()
        if self._watches is not None:
            await self._watches.end()
        self.remembered.screen = self.current_mode
        self.remembered.theme = "" if not self.surroundings.colour else self.theme
        try:
            write_remembered(self.surroundings.state_folder, self.remembered)
        except OSError as error:
            logger.warning("choices are not remembered: %s", error)

    # ---- jobs --------------------------------------------------------------------------

    @property
    def watches(self) -> "Watches":
        """The runs that are followed; its module is imported when it is first asked for."""
        if self._watches is None:
            from workbench.tui.job_events import Watches

            self._watches = Watches(self.surroundings)
        return self._watches

    def _runs_were_read(self, runs: "tuple[KnownRun, ...]") -> None:
        """Take a list from the reading thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program has ended
            self.call_later(self._take_runs, runs)

    def _take_runs(self, runs: "tuple[KnownRun, ...]") -> None:
        from workbench.tui.job_events import RunsListed

        just_ended = self.index.take(runs)
        self.follow_jobs(None)
        for run in just_ended:
            if run.state in ("failed", "lost"):
                reason = f": {run.summary.message}" if run.summary and run.summary.message else ""
                self.say(f"{run.name} {run.state}{reason}", "error")
            else:
                self.say(f"{run.name} {run.state}")
        self._tell(RunsListed(runs))
        self.refresh_frame()

    def follow_jobs(self, selected: "Path | None") -> None:
        """Follow every running job and the one that is looked at, and no other."""
        if selected is not None:
            self._looked_at = selected
        wanted = {run.path: run for run in self.index.running()}
        if self._looked_at is not None and (run := self.index.find(self._looked_at)) is not None:
            wanted[run.path] = run
        self.watches.forget_all_but(wanted)
        for run in wanted.values():
            self.watches.follow(run.path, run.name, run.attempt)

    def _tell_changes(self) -> None:
        """Tell the screen what has changed since the last frame."""
        if self._watches is None:
            return
        while self._watches.faults:
            name, fault = self._watches.faults.pop()
            self.say(f"{name} ended: {type(fault).__name__}: {fault}", "error")
        changed = self._watches.take_dirty()
        if changed:
            from workbench.tui.job_events import JobsChanged

            if any("state" in parts for parts in changed.values()):
                self.index.look_soon()
            self._tell(JobsChanged(changed))

    def _tell(self, message: Message) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, WorkbenchScreen):
                screen.post_message(message)

    def send_command(self, path: "Path", name: "CommandName", **fields: bool) -> None:
        """Send a command to a job; what becomes of it is said when it is known."""
        self.under_way.setdefault(path, []).append(name)
        self.run_worker(
            self.watches.command(path, name, self._command_said, **fields),
            group="commands",
            exit_on_error=False,
        )

    def _command_said(self, said: "CommandSaid") -> None:
        severity: Severity = "working"
        if said.phase != "accepted":
            severity = "done" if said.phase == "done" else "error"
            names = self.under_way.get(said.path, [])
            if said.name in names:
                names.remove(said.name)
        self.say(said.text, severity)
        self._tell(said)

    def shown_path(self, path: "Path") -> str:
        """Write a path as seen from the project."""
        try:
            return str(path.relative_to(self.surroundings.project))
        except ValueError:
            return str(path)

    # ---- keys --------------------------------------------------------------------------

    async def on_event(self, event: events.Event) -> None:
        """Drop keys that reach a dialog before it can have been seen."""
        if isinstance(event, (events.Key, events.Paste)) and not event.is_forwarded:
            screen = self.screen
            if isinstance(screen, Dialog) and screen.ignores_keys:
                return
        await super().on_event(event)

    def action_press(self, row_id: str) -> None:
        """Carry out a row of the key table, or say why it is refused."""
        row = keys.BY_ID[row_id]
        reason = row.refusal(self.key_state())
        if reason is not None:
            self.say(f"{row.shown} {row.label.rstrip('…')}: {reason}", "note")
            return
        node: DOMNode | None = self.focused or self.screen
        while node is not None:
            method = getattr(node, f"do_{row_id}", None)
            if method is not None and method() is not NotImplemented:
                return
            node = node.parent

    def key_state(self) -> KeyState:
        """Give what the keys of the screen on top depend on."""
        screen = self.screen
        if isinstance(screen, (WorkbenchScreen, Dialog)):
            return screen.key_state()
        return KeyState(readonly=self.surroundings.readonly)

    def do_show_configs(self) -> None:
        """Show the configs."""
        self.show("configs")

    def do_show_jobs(self) -> None:
        """Show the jobs."""
        self.show("jobs")

    def do_show_chat(self) -> None:
        """Show the chat."""
        self.show("chat")

    def do_show_checkpoints(self) -> None:
        """Show the checkpoints."""
        self.show("checkpoints")

    def talk_to(self, path: "Path", name: str) -> None:
        """Show the chat, and let it load a model."""
        from workbench.tui.screens.chat import ChatScreen

        self.show("chat")
        screen = self.screen
        if isinstance(screen, ChatScreen):
            screen.load(path, name)

    def show(self, mode: str) -> None:
        """Switch to a screen; what lies on top of the present one stays there."""
        if not isinstance(self.screen, Dialog) and mode != self.current_mode:
            self.switch_mode(mode)

    def do_next_screen(self) -> None:
        """Show the next screen."""
        self._turn(1)

    def do_previous_screen(self) -> None:
        """Show the screen before this one."""
        self._turn(-1)

    def _turn(self, by: int) -> None:
        modes = [mode for mode, *_ in SCREENS]
        self.show(modes[(modes.index(self.current_mode) + by) % len(modes)])

    def do_focus_next(self) -> None:
        """Move to the next pane."""
        self.screen.focus_next()

    def do_focus_previous(self) -> None:
        """Move to the pane before."""
        self.screen.focus_previous()

    def do_back(self) -> None:
        """Leave what lies on top; never the program."""
        if len(self.screen_stack) > 1:
            self.screen.dismiss(None)

    def do_messages(self) -> None:
        """Show past messages."""
        if not isinstance(self.screen, Dialog):
            from workbench.tui.screens.messages import MessagesDialog

            self.push_screen(MessagesDialog(self.history))

    def do_help(self) -> None:
        """Show the keys of the focused pane; a row can be run."""
        screen = self.screen
        if isinstance(screen, WorkbenchScreen):
            from workbench.tui.screens.help import HelpDialog

            self.push_screen(HelpDialog(screen), self._run_from_help)

    def _run_from_help(self, row_id: object) -> None:
        if isinstance(row_id, str):
            self.call_later(self.action_press, row_id)

    def do_palette(self) -> None:
        """Find any action by name."""
        if isinstance(self.screen, WorkbenchScreen):
            self.action_command_palette()

    def get_system_commands(self, screen: Screen[Any]) -> "Iterable[SystemCommand]":
        """Offer every row of the table that works here, jobs by name, and the themes."""
        if isinstance(screen, WorkbenchScreen):
            state = screen.key_state()
            for row in keys.alive((*screen.key_scopes(), "global")):
                if row.scope == "list" or row.id == "palette":
                    continue
                reason = row.refusal(state)
                command = self._command_line(row.command, state)
                says = f"{row.help} · {command}" if command else row.help
                name = f"{screen.label_of(row).rstrip('…')}  ({row.shown})"
                yield SystemCommand(
                    name,
                    f"not now: {reason}" if reason else says,
                    lambda row_id=row.id: self.call_later(self.action_press, row_id),
                )
            if self.remembered.config and "configs" in screen.key_scopes():
                for command, tells in keys.ON_A_CONFIG:
                    line = self._command_line(command, state)
                    yield SystemCommand(
                        f"Copy {line}",
                        f"{tells[0].upper()}{tells[1:]}.",
                        lambda line=line: self._copy_line(line),
                    )
            yield SystemCommand(
                "demo",
                "Open the launch preview of the small CPU run. · workbench train -t demo",
                self._preview_demo,
            )
        if self.surroundings.colour:
            for theme in ("wb-dark", "wb-light", "ansi-dark", "ansi-light"):
                yield SystemCommand(
                    f"Theme {theme}",
                    "Change the colours.",
                    lambda name=theme: self._set_theme(name),
                )

    def _command_line(self, command: str, state: KeyState) -> str:
        """Name the selected job, config and checkpoint in a row's command line."""
        names = {"JOB": state.job, "CONFIG": self.remembered.config, "CHECKPOINT": state.checkpoint}
        for word, name in names.items():
            if name:
                command = re.sub(rf"\b{word}\b", shlex.quote(name).replace("\\", r"\\"), command)
        return command

    def _copy_line(self, line: str) -> None:
        self.copy_to_clipboard(line)
        self.say(f"copied: {line}")

    def _preview_demo(self) -> None:
        from workbench.tui.screens.launch_preview import LaunchPreview

        self.push_screen(LaunchPreview("demo"))

    def _set_theme(self, name: str) -> None:
        self.theme = name

    def do_interrupt(self) -> None:
        """Copy a selection, else say how to leave: no job ever sees this key."""
        selected = self.screen.get_selected_text()
        if selected:
            self.copy_to_clipboard(selected)
            self.say("copied", "done")
            return
        now = self.surroundings.stopwatch()
        if now - self._detach_pressed_at < SECONDS_OF_A_MESSAGE:
            self.do_detach()
            return
        self._detach_pressed_at = now
        self.say(f"{keys.hint('interrupt')} again detaches; jobs keep running", "note")

    def do_detach(self) -> None:
        """Leave and say what keeps running."""
        running = self.index.running() if self._index is not None else []
        self.exit()
        self.parting = [job.name for job in running]

    def do_suspend(self) -> None:
        """Go back to the shell; its ``fg`` comes back here."""
        self.action_suspend_process()

    # ---- messages ----------------------------------------------------------------------

    def say(self, text: str, severity: Severity = "done", detail: str = "") -> None:
        """Show a line above the footer: errors stay until the next one, the rest three seconds."""
        said = Said(self.surroundings.clock(), severity, text, detail)
        self.history.append(said)
        del self.history[:-500]
        self._show_said(said)
        if self._said_timer is not None:
            self._said_timer.stop()
            self._said_timer = None
        if severity != "error":
            self._said_timer = self.set_timer(SECONDS_OF_A_MESSAGE, lambda: self._show_said(None))

    def say_error(self, prefix: str, error: WorkbenchError | OSError) -> None:
        """Say a mistake: what and what to do in the row, where in the history."""
        if isinstance(error, WorkbenchError):
            self.say(f"{prefix}{error.what}; {error.remedy}", "error", f"in {error.where}")
        else:
            self.say(f"{prefix}{error}", "error")

    def clear_said(self) -> bool:
        """Dismiss the message that is shown; False where there is none."""
        if self._said is None:
            return False
        self._show_said(None)
        return True

    def _show_said(self, said: Said | None) -> None:
        self._said = said
        for screen in self.screen_stack:
            for row in screen.query(MessageRow):
                row.said = said

    # ---- header, footer, size ----------------------------------------------------------

    def refresh_frame(self) -> None:
        """Bring header and footer of the visible screen up to date."""
        for screen in self.screen_stack:
            if not isinstance(screen, WorkbenchScreen):
                continue
            try:
                top = screen.query_one("#top", TopBar)
                said = screen.query_one("#said", MessageRow)
            except NoMatches:
                continue  # not composed yet
            top.tabs = self._tabs()
            config = f" · {self.remembered.config}" if self.remembered.config else ""
            top.place = f"{self.surroundings.project.name}{config} · {self.surroundings.host}"
            top.now = self.surroundings.clock() // 60 * 60
            said.said = self._said
            screen.refresh_keys()

    def _tabs(self) -> tuple[Tab, ...]:
        badges: tuple[Badge, ...] = ()
        if self._index is not None:
            num_running = len(self._index.running())
            num_unseen = self._index.num_unseen_failures
            badges = (
                *((Badge("●", num_running, "$good"),) if num_running else ()),
                *((Badge("✗", num_unseen, "$bad"),) if num_unseen else ()),
            )
        return tuple(
            Tab(row_id, name, short, mode == self.current_mode, badges if mode == "jobs" else ())
            for mode, row_id, name, short in SCREENS
        )

    def jobs_in_a_line(self) -> str:
        """Say the running jobs in one line, for a window too small for anything else."""
        return self.index.in_a_line() if self._index is not None else ""

    def on_resize(self, event: events.Resize) -> None:
        """Show one sentence instead of a screen that does not fit."""
        is_too_small = event.size.width < MIN_WIDTH or event.size.height < MIN_HEIGHT
        for screen in self.screen_stack:
            screen.set_class(is_too_small, "-too-small")
