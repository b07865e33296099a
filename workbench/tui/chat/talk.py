"""Talking to one model: the conversation, what is known of the model, the field.

Invariants: a message that could not be sent is back in the field; a reply that was stopped keeps
what came; what was being written is back in the field once something else has been written there.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, cast

from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Static

from workbench.errors import WorkbenchError
from workbench.tui import keys, words
from workbench.tui.chat.chosen_settings import ChosenSettings
from workbench.tui.chat.settings_form import SettingsForm
from workbench.tui.keys import KeyRow
from workbench.tui.program import Program
from workbench.tui.widgets.prompt import Prompt
from workbench.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from workbench.jobs.conversation import Conversation, Turn
    from workbench.tui.chat.model_server import ModelServer

# What enter in the field does: send a message, set the instruction, or say a message otherwise.
Aim = Literal["message", "system prompt", "edit message"]
# What is done to the last message, and so needs one that is not being answered.
# Cells inside the pane at the side.
_ABOUT_WIDTH = 32
_OF_LAST = ("regenerate", "edit_message", "drop_exchange", "save_chat")


class Talk(Container):
    """One conversation with the model that is loaded.

    Args:
        model: what is loaded; another one may be loaded later.
        chosen: how answers are made.
    """

    KEY_SCOPES = ("transcript",)
    BINDINGS = keys.bindings("transcript")

    class Changed(Message):
        """What can be done has changed."""

    def __init__(self, model: "ModelServer", chosen: ChosenSettings, *, id: str) -> None:
        super().__init__(id=id)
        self._model = model
        self._chosen = chosen
        self._replying: asyncio.Task[None] | None = None
        self._drawing: Timer | None = None
        self._conversation: Conversation | None = None
        self._aim: Aim = "message"
        self._draft = ""

    def compose(self) -> ComposeResult:
        """Lay out the conversation, what is known of the model, the field."""
        with Container(id="talk"):
            yield Transcript(id="transcript", classes="pane")
            yield Static(id="about", classes="pane")
            with Vertical(id="settings", classes="pane"):
                yield SettingsForm(self._chosen.settings, id="settings-form")
        with Vertical(id="message", classes="pane"):
            yield Prompt(id="prompt")

    def on_mount(self) -> None:
        """Title the panes."""
        self.query_one("#message").border_title = "message"
        self.query_one("#about").border_title = "model"
        pane = self.query_one("#settings")
        pane.border_title = "settings"
        pane.border_subtitle = f"{keys.hint('chat_settings')} close"
        pane.display = False

    async def on_unmount(self) -> None:
        """Answer no more."""
        if self._replying is not None:
            self._replying.cancel()

    # ---- what the screen asks for ------------------------------------------------------

    @property
    def conversation(self) -> "Conversation | None":
        """What has been said with the model that is loaded."""
        return self._conversation

    @property
    def is_answering(self) -> bool:
        """The model is at it."""
        return self._replying is not None

    @property
    def draft(self) -> str:
        """What stands in the field as the next message."""
        return self.query_one("#prompt", Prompt).text if self._aim == "message" else self._draft

    @draft.setter
    def draft(self, text: str) -> None:
        if self._aim == "message":
            self._put_into_field(text)
        else:
            self._draft = text

    async def begin(self) -> None:
        """Begin a conversation with the model that has been loaded; the instruction stays."""
        from workbench.jobs.conversation import Conversation

        system = "" if self._conversation is None else self._conversation.system
        clock = self._workbench.surroundings.clock
        self._conversation = Conversation(system, clock=clock)
        await self.query_one("#transcript", Transcript).show(self._conversation)
        self.show_about()

    def stop(self) -> None:
        """Stop a reply that is being made."""
        if self._replying is not None:
            self._replying.cancel()

    def take_focus(self) -> None:
        """Let the field be written into."""
        self.query_one("#prompt").focus()
        self.show_about()

    @property
    def last_seed(self) -> int | None:
        """The seed of the answer that is shown last."""
        question = self._question
        return None if question is None or question.next is None else question.next.seed

    def refused(self) -> list[tuple[str, str]]:
        """Say which keys do nothing now, and why."""
        if self._conversation is None:
            return [("set_system", "no checkpoint is loaded")]
        if self._replying is not None:
            rows = ("send", "compare", *_OF_LAST)
            return [(row, "the model is answering") for row in rows]
        if self._question is None:
            return [(row, "nothing was asked yet") for row in _OF_LAST]
        return []

    def label_of(self, row: KeyRow) -> str | None:
        """Give the footer's word for a row where it depends on what is going on."""
        if row.id == "stop_reply":
            if self._replying is not None:
                return "Stop"
            if self._aim != "message":
                return "Cancel"
            return "Leave" if self.query_one("#prompt").has_focus else "Models"
        if row.id == "send" and self._aim == "system prompt":
            return "Set"
        return None

    def show_about(self) -> None:
        """Name what is talked to, above the transcript and, where there is room, beside it."""
        ready, row = self._model.ready, self._model.row
        if ready is None or row is None:
            return
        transcript = self.query_one("#transcript", Transcript)
        is_narrow = self.app.size.width < 100
        brief = f" · {self._chosen.brief()}" if is_narrow else ""
        transcript.border_title = Content(row.name + brief)
        usage = None if self._conversation is None else self._conversation.usage
        used = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
        transcript.border_subtitle = f"context {used:,} / {ready.context:,}"
        self._show_aim()
        system = "" if self._conversation is None else self._conversation.system
        model = [
            ("run", row.run),
            ("weights", row.checkpoint),
            ("device", ready.device),
            ("numbers", ready.dtype),
            ("context", f"{used:,} of {ready.context:,}"),
            *(("stops at" if number == 0 else "", text) for number, text in enumerate(ready.stop)),
            *([("system", system)] if system else []),
        ]
        heading = _heading("settings", keys.hint("chat_settings"))
        self.query_one("#about", Static).update(
            Content("\n").join(
                [*map(_line, model), Content(""), heading, *map(_line, self._chosen.lines())]
            )
        )

    # ---- settings at the side ----------------------------------------------------------

    @property
    def is_setting(self) -> bool:
        """The settings are open at the side."""
        return bool(self.query_one("#settings").display)

    def open_settings(self) -> None:
        """Put the fields in the place of what is known of the model."""
        self.query_one("#settings").display = True
        self.query_one("#about").display = False
        self.query_one(SettingsForm).begin(self._chosen.settings)

    def close_settings(self) -> None:
        """Give the place back."""
        was_typing = self.query_one("#settings").has_focus_within
        self.query_one("#settings").display = False
        self.query_one("#about").display = True
        if was_typing:
            self.query_one("#prompt").focus()

    def show_settings(self) -> None:
        """Show what is set by now."""
        self.query_one(SettingsForm).show_seed(self._chosen.settings)
        self.show_about()

    # ---- the field ---------------------------------------------------------------------

    def _show_aim(self) -> None:
        """Say above the field what is written there, and below it what enter does."""
        pane = self.query_one("#message")
        pane.border_title = self._aim
        does = "set" if self._aim == "system prompt" else "send"
        pane.border_subtitle = f"{keys.hint('send')} {does} · {keys.hint('newline')} new line"

    def _put_into_field(self, text: str) -> None:
        prompt = self.query_one("#prompt", Prompt)
        prompt.text = text
        prompt.move_cursor(prompt.document.end)

    def _write(self, aim: Aim, text: str) -> None:
        """Let the field take something else than the next message, which is kept meanwhile."""
        prompt = self.query_one("#prompt", Prompt)
        if self._aim == "message":
            self._draft = prompt.text
        self._aim = aim
        self._put_into_field(text)
        prompt.focus()
        self._show_aim()
        self.post_message(self.Changed())

    def _write_message(self) -> None:
        """Give the field back to the next message."""
        self._aim = "message"
        draft, self._draft = self._draft, ""
        self._put_into_field(draft)
        self._show_aim()
        self.post_message(self.Changed())

    # ---- talking -----------------------------------------------------------------------

    @property
    def _workbench(self) -> Program:
        return cast(Program, self.app)

    @property
    def _question(self) -> "Turn | None":
        return None if self._conversation is None else self._conversation.question

    async def _send(self, message: str) -> None:
        assert self._conversation is not None
        question = self._conversation.say(message)
        await self.query_one("#transcript", Transcript).add(self._conversation, question)
        await self._answer(question)

    async def _send_edited(self, question: "Turn", message: str) -> None:
        assert self._conversation is not None
        edited = self._conversation.edit(question, message)
        await self.query_one("#transcript", Transcript).show(self._conversation)
        await self._answer(edited)

    def do_send(self) -> None:
        """Send what is written; or set the system prompt, where that was written."""
        prompt = self.query_one("#prompt", Prompt)
        text = prompt.text.strip()
        question = self._question
        if self._conversation is None or self._replying is not None:
            return
        if self._aim == "system prompt":
            self._conversation.system = text
            self._write_message()
            self.show_about()
            said = "the next answer is told the system prompt" if text else "no system prompt"
            self._workbench.say(said)
        elif not text or self._model.client is None:
            return
        elif self._aim == "edit message" and question is not None:
            self._write_message()
            self._reply(self._send_edited(question, text))
        else:
            prompt.text = ""
            self._reply(self._send(text))

    def do_set_system(self) -> None:
        """Write the instruction before the conversation."""
        if self._conversation is not None:
            self._write("system prompt", self._conversation.system)

    def do_edit_message(self) -> None:
        """Write the last message anew; sent, it is a branch beside the one before."""
        if self._question is not None and self._replying is None:
            self._write("edit message", self._question.text)

    def do_regenerate(self) -> None:
        """Answer the last message again; the answers before stay beside it."""
        is_loaded = self._model.client is not None
        if self._question is not None and self._replying is None and is_loaded:
            self._reply(self._answer(self._question))

    def _reply(self, work: Coroutine[Any, Any, None]) -> None:
        self._replying = asyncio.create_task(work, name="reply")
        self._replying.add_done_callback(self._reply_ended)
        rate = 10.0 if self._workbench.surroundings.frames_per_second > 1 else 5.0
        self._drawing = self.set_interval(
            1 / rate, self.query_one("#transcript", Transcript).redraw_last
        )
        self.post_message(self.Changed())

    def _reply_ended(self, task: asyncio.Task[None]) -> None:
        self._replying = None
        if self._drawing is not None:
            self._drawing.stop()
            self._drawing = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._workbench.say(f"{type(fault).__name__}: {fault}", "error")
        if self.is_mounted and self.is_attached:
            self.query_one("#transcript", Transcript).redraw_last()
            self.show_about()
            self.post_message(self.Changed())

    async def _answer(self, question: "Turn") -> None:
        """Stream one answer; a stop keeps what came, a failure gives the message back."""
        assert self._model.client is not None
        assert self._conversation is not None
        pieces = self._conversation.answer(
            question,
            self._model.client,
            self._chosen.for_an_answer(),
            model=self._model.name,
            stopwatch=self._workbench.surroundings.stopwatch,
        )
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if piece.notice is not None:
                        self._workbench.say(piece.notice)
        except asyncio.CancelledError:
            pass  # by esc or ctrl+c: what came is in the transcript
        except (WorkbenchError, OSError) as error:
            await self._give_back(question)
            if self._model.has_ended:
                back = keys.hint("stop_reply")
                said = f"no answer: the server has ended; {back}, load it again"
                self._workbench.say(said, "error")
            else:
                self._workbench.say_error("no answer: ", error)

    async def _give_back(self, question: "Turn") -> None:
        """Have a message that got no answer at all in the field again."""
        if question.after or self._conversation is None:
            return
        self._conversation.drop(question)
        draft = self.query_one("#prompt", Prompt).text
        self._put_into_field(question.text + (f"\n{draft}" if draft else ""))
        await self.query_one("#transcript", Transcript).show(self._conversation)

    def do_stop_reply(self) -> object:
        """Stop the reply; else leave the field; else leave it to the screen."""
        if self._replying is not None:
            self._replying.cancel()
        elif self._aim != "message":
            self._write_message()
        elif self.query_one("#prompt").has_focus:
            self.query_one("#transcript").focus()
            self.post_message(self.Changed())
        else:
            return NotImplemented
        return None

    def do_interrupt(self) -> object:
        """Stop the reply where one is made; else this key is the program's."""
        if self._replying is not None and not self.screen.get_selected_text():
            self._replying.cancel()
            return None
        return NotImplemented

    def do_clear_chat(self) -> None:
        """Begin a new conversation."""
        if self._replying is None and self._conversation is not None:
            self._conversation.clear()
            self._show_path()

    def do_next_answer(self) -> None:
        """Show the next answer to the last message."""
        self._show_beside(1, of_answer=True)

    def do_previous_answer(self) -> None:
        """Show the answer before."""
        self._show_beside(-1, of_answer=True)

    def do_next_version(self) -> None:
        """Show the next version of the last message that has several."""
        self._show_beside(1, of_answer=False)

    def do_previous_version(self) -> None:
        """Show the version before."""
        self._show_beside(-1, of_answer=False)

    def _show_beside(self, by: int, *, of_answer: bool) -> None:
        conversation, question = self._conversation, self._question
        if conversation is None or question is None or self._replying is not None:
            return
        if of_answer:
            if question.next is not None:
                conversation.show_beside(question.next, by)
                self.query_one("#transcript", Transcript).redraw_last()
                if question.next.after:
                    self._show_path()
            return
        for turn in reversed(conversation.path):
            if turn.role == "user" and len(conversation.siblings(turn)) > 1:
                conversation.show_beside(turn, by)
                self._show_path()
                return
        self._workbench.say("no message has been edited")

    def do_drop_exchange(self) -> None:
        """Forget the last message with its answers."""
        conversation, question = self._conversation, self._question
        if conversation is not None and question is not None and self._replying is None:
            conversation.drop(question)
            self._show_path()

    def do_save_chat(self) -> None:
        """Save the conversation beside the runs, a row for each branch."""
        from workbench.jobs import transcripts

        if self._conversation is None:
            return
        folder = self._workbench.surroundings.project / "output"
        path = folder / "chat.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            num_rows = transcripts.save(self._conversation, path, all_branches=True)
        except (WorkbenchError, OSError) as error:
            self._workbench.say_error("not saved: ", error)
        else:
            shown = self._workbench.shown_path(path)
            self._workbench.say(f"{words.number_of(num_rows, 'conversation')} saved in {shown}")

    def _show_path(self) -> None:
        assert self._conversation is not None
        transcript = self.query_one("#transcript", Transcript)
        self.run_worker(transcript.show(self._conversation), exit_on_error=False)
        self.show_about()
        self.post_message(self.Changed())


def _heading(name: str, key: str) -> Content:
    line = "─" * max(_ABOUT_WIDTH - len(name) - len(key) - 2, 2)
    return Content.assemble((f"{name} ", "$quiet"), (line, "$frame"), (f" {key}", "bold $primary"))


def _line(named: tuple[str, str]) -> Content:
    name, value = named
    return Content.assemble((f"{name:<12} ", "$quiet"), value)
