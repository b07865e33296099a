"""Lists every file of a checkpoint and asks for its step to be typed before they go."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static

from workbench.runs.checkpoint_facts import CheckpointFacts
from workbench.runs.discard import DiscardPlan
from workbench.tui import keys, words
from workbench.tui.screens.frame import Dialog


class StepField(Input, inherit_bindings=False):
    """Where the step is typed."""

    KEY_SCOPES = ("delete",)
    TAKES_TEXT = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.bindings("delete"),
        *keys.without_banned(Input.BINDINGS),
    ]


class DeletePrompt(Dialog):
    """Gives back True once the checkpoint's step was typed and confirmed."""

    SCOPES = ("form", "dialog")
    BINDINGS = keys.bindings("form", "dialog")

    def __init__(self, plan: DiscardPlan, facts: CheckpointFacts) -> None:
        super().__init__()
        self._plan, self._facts = plan, facts

    def compose(self) -> ComposeResult:
        """Draw what goes, what is lost with it, and the field."""
        facts = self._facts
        files = [each for held in self._plan.files.values() for each in held.items()]
        files.sort(key=lambda each: -each[1])
        with Vertical(classes="box delete") as box:
            box.border_title = Content(f"Delete {self._plan.run.name}/{facts.path.name}?")
            box.border_subtitle = f"{keys.hint('close')} keep it"
            with VerticalScroll(id="doomed", can_focus=False):
                yield Static(
                    Content("\n").join(
                        Content.assemble(
                            (f"{size:>16,} ", "$quiet"), str(path.relative_to(facts.path))
                        )
                        for path, size in files
                    )
                )
            total = f"{words.number_of(len(files), 'file')}, {self._plan.bytes:,} bytes"
            yield Static(
                Content.assemble(
                    (f"{total} ({words.size(self._plan.bytes)})", "bold"), " go for good."
                )
            )
            yield Static(Content("\n".join(self._notes())))
            yield Static(Content(f"Type its step ({facts.step}): checkpoint-"), id="asked")
            field = StepField(id="step", compact=True, max_length=len(str(facts.step)) + 4)
            field.cursor_blink = False
            yield field
            yield Static(self._match_text(False), id="match")

    def _notes(self) -> list[str]:
        facts, notes = self._facts, []
        if facts.is_best:
            notes.append("It is the best of its run; no other is marked so afterwards.")
        if facts.is_newest:
            notes.append("It is the newest: its run would go on from the one before it.")
        return [*notes, "Config, events, metrics and logs of the run stay."]

    def on_mount(self) -> None:
        """Begin to count, and take the typing."""
        super().on_mount()
        self.query_one("#step").focus()

    @property
    def _matches(self) -> bool:
        return self.query_one("#step", Input).value.strip() == str(self._facts.step)

    @staticmethod
    def _match_text(matches: bool) -> Content:
        if matches:
            return Content.assemble(
                (f"It matches: {keys.hint('delete_now')} deletes now.", "bold $bad")
            )
        return Content.assemble(("Nothing happens until it matches.", "$quiet"))

    @on(Input.Changed)
    def _typed(self) -> None:
        self.query_one("#match", Static).update(self._match_text(self._matches))

    def do_next_field(self) -> None:
        """Show more of the files."""
        self.query_one("#doomed").scroll_down(animate=False)

    def do_previous_field(self) -> None:
        """Show the files before."""
        self.query_one("#doomed").scroll_up(animate=False)

    def do_delete_now(self) -> None:
        """Delete, if the step is right; else nothing."""
        if self._matches:
            self.dismiss(True)
