"""The ways to end a job, each with what it costs; abort asks for the job's number to be typed."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static

from workbench.tui import keys, words
from workbench.tui.job_picture import JobPicture
from workbench.tui.keys import KeyState
from workbench.tui.screens.frame import Dialog


def cost(picture: JobPicture) -> str:
    """Say what ending without a save loses, in steps and time."""
    steps = picture.steps_since_save
    if steps == 0:
        return "loses nothing"
    seconds = picture.seconds_since_save
    took = f" ({words.duration(seconds)})" if seconds is not None else ""
    return f"loses {steps} step{'s' if steps != 1 else ''}{took}"


class StopMenu(Dialog):
    """Gives back save, discard, pause or abort; None keeps the job running."""

    SCOPES = ("stop_menu", "dialog")
    BINDINGS = keys.bindings("stop_menu", "dialog")

    def __init__(self, picture: JobPicture) -> None:
        super().__init__()
        self._picture = picture

    def compose(self) -> ComposeResult:
        """Draw a line for each way."""
        picture = self._picture
        with Vertical(classes="box") as box:
            total = f"/{picture.max_steps}" if picture.max_steps else ""
            box.border_title = Content(f"Stop {picture.name} · {picture.step}{total}")
            yield Static(Content("\n").join(self._lines()))

    def _lines(self) -> list[Content]:
        picture = self._picture
        lost = cost(picture)
        saved = picture.last_checkpoint
        took = f", then ≈ {words.duration(saved.seconds)} to save" if saved else ""
        said = {
            "stop_save": f"at the next step{took}",
            "stop_discard": lost,
            "stop_pause": "keeps its memory",
            "stop_abort": f"kills, {lost}",
        }
        state = self.key_state()
        lines = []
        if picture.state == "stopping":
            lines += [
                Content.assemble(
                    ("◐ ", "$busy"), "A stop was accepted; the job ends at its next step boundary."
                ),
                Content(""),
            ]
        for row in keys.rows(("stop_menu",)):
            refused = row.refusal(state)
            lines.append(
                Content.assemble(
                    (f" {row.shown} ", "$quiet" if refused else "bold $primary"),
                    (f" {row.label:<21}", "$quiet" if refused else ""),
                    (f" {refused or said[row.id]}", "$quiet"),
                )
            )
        lines += [
            Content(""),
            Content.assemble((f" {keys.hint('close')}", "bold $primary"), "  Keep running"),
            Content(""),
            Content.assemble((f"Same as: workbench control stop {picture.name}", "$quiet")),
        ]
        return lines

    def key_state(self) -> KeyState:
        """Say what the job allows."""
        return KeyState(
            readonly=self.workbench.surroundings.readonly,
            job=self._picture.name,
            job_state=self._picture.state,
            link=self._picture.link,
        )

    def do_stop_save(self) -> None:
        """Save, then stop."""
        self.dismiss("save")

    def do_stop_discard(self) -> None:
        """Stop without saving."""
        self.dismiss("discard")

    def do_stop_pause(self) -> None:
        """Pause instead."""
        self.dismiss("pause")

    def do_stop_abort(self) -> None:
        """Ask for the number, then abort."""
        self.app.push_screen(AbortPrompt(self._picture), self._abort_answered)

    def _abort_answered(self, typed_it: object) -> None:
        if typed_it is True:
            self.dismiss("abort")


def number_of(name: str) -> str:
    """Give what has to be typed to abort a job: its number, or its whole name without one."""
    number = name.rpartition("-")[2]
    return number if number.isdigit() else name


class NumberField(Input, inherit_bindings=False):
    """Where the number is typed."""

    KEY_SCOPES = ("abort",)
    TAKES_TEXT = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.bindings("abort"),
        *keys.without_banned(Input.BINDINGS),
    ]


class AbortPrompt(Dialog):
    """Gives back True once the job's number was typed and confirmed."""

    BINDINGS = keys.bindings("dialog")

    def __init__(self, picture: JobPicture) -> None:
        super().__init__()
        self._picture = picture

    def compose(self) -> ComposeResult:
        """Draw what will be lost, and the field."""
        picture = self._picture
        wanted = number_of(picture.name)
        before = picture.name.removesuffix(wanted)
        with Vertical(classes="box") as box:
            box.border_title = Content(f"Abort {picture.name}?")
            box.border_subtitle = f"{keys.hint('close')} keep running"
            saved = picture.last_checkpoint
            since = f" since checkpoint-{saved.step}" if saved else ", nothing is saved"
            yield Static(
                f"It {cost(picture)}{since}.\n"
                "Stacks go to the log; then SIGTERM, and SIGKILL after 10 s\n"
                "to every process of this job. Other jobs are not touched.\n\n"
                f"Type the job's number ({wanted}): {before}"
            )
            field = NumberField(id="number", compact=True, max_length=len(wanted) + 4)
            field.cursor_blink = False
            yield field
            yield Static(
                Content.assemble(("Nothing happens until it matches.", "$quiet")), id="match"
            )

    def on_mount(self) -> None:
        """Begin to count, and take the typing."""
        super().on_mount()
        self.query_one("#number").focus()

    @on(Input.Changed)
    def _typed(self) -> None:
        matches = self.query_one("#number", Input).value.strip() == number_of(self._picture.name)
        text = (
            Content.assemble((f"It matches: {keys.hint('abort_now')} aborts now.", "bold $bad"))
            if matches
            else Content.assemble(("Nothing happens until it matches.", "$quiet"))
        )
        self.query_one("#match", Static).update(text)

    def do_abort_now(self) -> None:
        """Abort, if the number is right; else nothing."""
        if self.query_one("#number", Input).value.strip() == number_of(self._picture.name):
            self.dismiss(True)
