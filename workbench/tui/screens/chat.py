"""Chat: pick a model, load it into a server of this window's own, talk to it, or to two at once.

The server is a child that ends with this program; closing a reply's stream is what stops its
generation. The conversation is ``chat.talk``, the comparison ``chat.compare``; this module
decides which of them is shown. Invariants: a model is loaded once, whoever talks to it; what has
been said with one model is still there after a comparison.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textual import events, on
from textual.app import ComposeResult

from workbench.errors import WorkbenchError
from workbench.jobs.chat_settings import ChatSettings
from workbench.tui import keys
from workbench.tui.chat.chosen_settings import ChosenSettings
from workbench.tui.chat.compare import Compare
from workbench.tui.chat.model_server import ModelServer, spawn
from workbench.tui.chat.picker import Picker
from workbench.tui.chat.settings_form import SettingsForm
from workbench.tui.chat.talk import Talk
from workbench.tui.job_events import RunsListed
from workbench.tui.keys import KeyRow, KeyState, Scope
from workbench.tui.screens.frame import WorkbenchScreen
from workbench.tui.widgets.line_list import LineList
from workbench.tui.widgets.model_list import ModelRow

if TYPE_CHECKING:
    from workbench.jobs.conversation import Conversation
    from workbench.jobs.side_by_side import SideBySide, Start

# What is shown: models to talk to, one conversation, models to compare it with, two conversations.
Part = Literal["models", "talk", "second models", "compare"]

_ROOM_FOR_SETTINGS = 110
_IN_A_CONVERSATION = ("compare", "chat_settings", "lock_seed", "regenerate")


class ChatScreen(WorkbenchScreen):
    """Models to choose from, then one conversation or two."""

    CSS_PATH = "chat.tcss"
    SCOPES = ("conversation",)
    BINDINGS = keys.bindings("conversation")

    def __init__(self, start: "Start" = spawn) -> None:
        super().__init__()
        self._model = ModelServer(start)
        self._chosen = ChosenSettings()
        self._part: Part = "models"
        self._loading: asyncio.Task[None] | None = None
        self._stage = ""
        self._wanted: tuple[Path, str] | None = None
        self._is_composed = False

    def compose_body(self) -> ComposeResult:
        """Lay out the models, the conversation, and the comparison."""
        yield Picker(id="picker")
        yield Talk(self._model, self._chosen, id="conversation")
        yield Compare(self._chosen, id="compare")

    def on_mount(self) -> None:
        """Offer models."""
        self._show_part()
        self._picker.look()
        self._is_composed = True
        if self._wanted is not None:
            self.load(*self._wanted)

    async def on_unmount(self) -> None:
        """Leave no server behind."""
        if self._loading is not None:
            self._loading.cancel()
        await self._model.stop()

    # ---- parts -------------------------------------------------------------------------

    @property
    def _picker(self) -> Picker:
        return self.query_one("#picker", Picker)

    @property
    def _talk(self) -> Talk:
        return self.query_one("#conversation", Talk)

    @property
    def _compare(self) -> Compare:
        return self.query_one("#compare", Compare)

    @property
    def conversation(self) -> "Conversation | None":
        """What has been said with the model that is loaded."""
        return self._talk.conversation

    @property
    def pair(self) -> "SideBySide | None":
        """The two models that are, or were, compared."""
        return None if self._compare.sides is None else self._compare.sides.pair

    @property
    def settings(self) -> ChatSettings:
        """How the next answers are made."""
        return self._chosen.settings

    def _show(self, part: Part) -> None:
        self._part = part
        self._show_part()

    def _show_part(self) -> None:
        self._picker.display = self._part in ("models", "second models")
        self._talk.display = self._part == "talk"
        self._compare.display = self._part == "compare"
        if self._part == "talk":
            self._talk.take_focus()
        elif self._part == "compare":
            self._compare.take_focus()
        else:
            self.query_one("#models").focus()
        self.refresh_keys()

    def key_scopes(self) -> tuple[Scope, ...]:
        """While a model is picked, the keys of a conversation are not shown."""
        scopes = super().key_scopes()
        if self._part in ("models", "second models"):
            return tuple(scope for scope in scopes if scope != "conversation")
        return scopes

    def key_state(self) -> KeyState:
        """Say what can be done now."""
        refused = []
        if self._loading is not None:
            loading = ("load_model", "send", *_IN_A_CONVERSATION)
            what = f"loading: {self._stage}" if self._stage else "one moment"
            refused += [(row, what) for row in loading]
        elif self._picker.current is None:
            refused.append(("load_model", "there is no checkpoint"))
        if self._part == "compare":
            refused += self._compare.refused()
        elif self._part == "talk":
            refused += self._talk.refused()
        else:
            refused += [(row, "pick a model first") for row in _IN_A_CONVERSATION]
        return KeyState(readonly=self.workbench.surroundings.readonly, refused=tuple(refused))

    def label_of(self, row: KeyRow) -> str:
        """Give the footer's word for a row, where it depends on the state."""
        label = None
        if row.id == "lock_seed" and self._chosen.is_locked:
            label = "Unlock seed"
        elif row.id == "regenerate" and self.is_narrow:
            label = "Regen"
        elif row.id == "load_model" and self._part == "second models":
            label = "Compare"
        elif row.id == "leave_models" and self._loading is not None:
            label = "Stop loading"
        elif self._part == "compare":
            label = self._compare.label_of(row)
        elif self._part == "talk":
            label = self._talk.label_of(row)
        return label or super().label_of(row)

    @on(Picker.Changed)
    @on(Talk.Changed)
    @on(Compare.Changed)
    def _keys_changed(self) -> None:
        self.refresh_keys()

    # ---- models ------------------------------------------------------------------------

    @on(RunsListed)
    def _runs_listed(self) -> None:
        if self.is_mounted:
            self._picker.look()

    def came_back(self) -> None:
        """Read what can be picked anew."""
        if self.is_mounted:
            self._picker.look()

    @on(LineList.Opened, "#models")
    def _model_opened(self) -> None:
        self.do_load_model()

    def do_load_model(self) -> None:
        """Load the model under the cursor, or go on talking to it; or compare with it."""
        row = self._picker.current
        if row is None or self._loading is not None:
            return
        if self._part == "second models":
            self._begin(self._compare_with(row))
        else:
            self._open(row)

    def load(self, path: Path, run: str) -> None:
        """Load this model as if its row had been opened, whatever is shown.

        A reply that is being made is stopped; the conversation with another model ends.

        Args:
            path: a checkpoint of a run, or a model.
            run: name of the run, or of what else it stands under.
        """
        if not self._is_composed:
            self._wanted = path, run
            return
        self._wanted = None
        if self._loading is not None:
            self._loading.cancel()
        self._talk.stop()
        self._picker.choose(path)
        self._open(self._picker.row_of(path, run))

    def _open(self, row: ModelRow) -> None:
        if self._part == "compare":
            self._begin(self._leave_comparison_for(row))
        elif self._model.serves(row.path):
            self._show("talk")
        else:
            self._begin(self._load(row))

    async def _leave_comparison_for(self, row: ModelRow) -> None:
        await self._compare.end(self._model)
        if self._model.serves(row.path):
            self._show("talk")
        else:
            await self._load(row)

    async def _load(self, row: ModelRow) -> None:
        self._picker.offer("Talk to")
        self._show("models")
        await self._model.load(row, self._say_stage)
        await self._talk.begin()
        self._show("talk")
        self.workbench.say(f"{row.name} is loaded")

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes a while; what is being loaded meanwhile is said, and can be stopped."""
        before = self._loading
        task = asyncio.create_task(self._guarded(work, before), name="load a model")
        task.add_done_callback(self._work_ended)
        self._loading = task

    def _work_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            self.worker_failed(task.get_name(), f"{type(fault).__name__}: {fault}")

    async def _guarded(
        self, work: Coroutine[Any, Any, None], before: "asyncio.Task[None] | None"
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            await work
        except (WorkbenchError, OSError) as error:
            await self._model.stop()
            self.workbench.say_error("not loaded: ", error)
        except asyncio.CancelledError:
            await self._model.stop()
            raise
        finally:
            work.close()  # where it was cancelled before it had begun
            if self._loading is asyncio.current_task():
                self._loading = None
            if self.is_mounted and self.is_attached:
                if self._model.client is None and self._part == "talk":
                    self._show("models")
                self._say_stage("")

    def _say_stage(self, text: str) -> None:
        self._stage = text
        if self.is_mounted and self.is_attached:
            self._picker.say_stage(text)
            self.refresh_keys()

    def do_leave_models(self) -> None:
        """Stop loading; else go back to the conversation that there is."""
        if self._loading is not None:
            self._loading.cancel()
        elif self._model.client is not None:
            self._show("talk")
        else:
            self.workbench.clear_said()

    def do_stop_reply(self) -> None:
        """Go to the models: nothing is being said, and the field has been left."""
        self._picker.offer("Talk to")
        self._show("models")

    # ---- settings ----------------------------------------------------------------------

    def do_chat_settings(self) -> None:
        """Set how answers are made: at the side where there is room, else in a box."""
        if self._part == "talk" and self.app.size.width >= _ROOM_FOR_SETTINGS:
            self._talk.open_settings()
            self.refresh_keys()
            return
        from workbench.tui.screens.chat_settings import ChatSettingsDialog

        self.app.push_screen(ChatSettingsDialog(self._chosen.settings), self._dialog_closed)

    def _dialog_closed(self, result: object) -> None:
        if isinstance(result, tuple):
            settings, wrong = result
            self._settings_changed(SettingsForm.Changed(settings))
            self._say_wrong(wrong)

    @on(SettingsForm.Changed)
    def _settings_changed(self, event: SettingsForm.Changed) -> None:
        self._chosen.settings = event.settings
        self._show_settings()

    @on(SettingsForm.Left)
    def _settings_left(self, event: SettingsForm.Left) -> None:
        self._talk.close_settings()
        self._say_wrong(event.wrong)
        self.refresh_keys()

    def _say_wrong(self, wrong: tuple[str, ...]) -> None:
        if wrong:
            self.workbench.say(" · ".join(wrong), "note")

    def _show_settings(self) -> None:
        self._talk.show_settings()
        self._compare.show_panes()
        self.refresh_keys()

    def on_resize(self, event: events.Resize) -> None:
        """Close the settings at the side where there is no more room for them."""
        super().on_resize(event)
        if not self.is_mounted:
            return
        if self._talk.is_setting and event.size.width < _ROOM_FOR_SETTINGS:
            self._talk.close_settings()
        if self._part == "talk":
            self._talk.show_about()

    def do_lock_seed(self) -> None:
        """Keep the seed of the last answer, or draw seeds anew again."""
        if self._chosen.is_locked:
            self._chosen.unlock()
            self.workbench.say("each answer has a seed of its own again")
        else:
            part = self._compare if self._part == "compare" else self._talk
            seed = self._chosen.lock(part.last_seed)
            self.workbench.say(f"the next answers are made with seed {seed}")
        self._show_settings()

    # ---- comparing ---------------------------------------------------------------------

    def do_compare(self) -> None:
        """Pick a model to compare with; in a comparison, go back to one model."""
        if self._part == "compare":
            self._begin(self._leave_comparison())
        elif self._part == "talk" and self._model.row is not None:
            first = self._model.row
            self._picker.offer(f"Compare {first.name} with", beside=first)
            self._show("second models")

    def do_stop_side(self) -> None:
        """Go back to one model: neither answers, and the field has been left."""
        self.do_compare()

    async def _compare_with(self, second: ModelRow) -> None:
        conversation = self._talk.conversation
        question = None if conversation is None else conversation.question
        asked = "" if question is None or self.pair is not None else question.text
        await self._compare.begin(
            self._model,
            second,
            system="" if conversation is None else conversation.system,
            message=self._talk.draft or asked,
        )
        self._talk.draft = ""
        self._show("compare")

    async def _leave_comparison(self) -> None:
        draft = self._compare.draft
        first = self._model.row
        is_loaded = await self._compare.end(self._model)
        self._talk.draft = draft
        if not is_loaded and first is not None:
            # Memory held one model at a time, and the other one was the last to answer.
            self._picker.offer("Talk to")
            self._show("models")
            await self._model.load(first, self._say_stage)
        self._show("talk")
