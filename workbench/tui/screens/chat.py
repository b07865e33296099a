"""Chat: pick a checkpoint, load it into a server of this window's own, talk to it.

The server is a child that ends with this program; closing a reply's stream is what stops its
generation. Invariants: one server at a time; a message that could not be sent is back in the
field; a reply that was stopped keeps what came; what was being written is back in the field once
something else has been written there.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from textual import on
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from workbench.control.states import END_STATES
from workbench.errors import WorkbenchError
from workbench.tui import keys, words
from workbench.tui.job_events import RunsListed
from workbench.tui.keys import KeyRow, KeyState, Scope
from workbench.tui.screens.frame import WorkbenchScreen
from workbench.tui.widgets.line_list import LineList
from workbench.tui.widgets.model_list import ModelList, ModelRow
from workbench.tui.widgets.prompt import Prompt
from workbench.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from workbench.jobs.chat_client import ChatClient
    from workbench.jobs.conversation import Conversation, Turn
    from workbench.jobs.inference_process import Progress, Ready
    from workbench.runs.catalog import RunSummary

# What enter in the field does: send a message, set the instruction, or say a message otherwise.
Aim = Literal["message", "system prompt", "edit message"]
_SEEDS = 10_000  # short enough to be read aloud and typed again
# What is done to the last message, and so needs one that is not being answered.
_OF_LAST = ("regenerate", "edit_message", "drop_exchange", "save_chat")


class Server(Protocol):
    """What a conversation needs of a server: ``jobs.inference_process.InferenceProcess``."""

    @property
    def ready(self) -> "Ready":
        """What it serves, once it is ready."""

    @property
    def socket(self) -> Path:
        """Where it answers."""

    @property
    def model(self) -> str:
        """The name of what it serves."""

    @property
    def has_ended(self) -> bool:
        """The process is gone."""

    def updates(self) -> "AsyncIterator[Progress]":
        """Give what it does until it is ready."""

    async def stop(self) -> None:
        """End it."""


async def spawn(path: Path) -> Server:
    """Start a server of this program's own for a checkpoint."""
    from workbench.jobs.inference_process import InferenceProcess, ServerOptions

    return await InferenceProcess.spawn(ServerOptions(path))


class ChatScreen(WorkbenchScreen):
    """Checkpoints to choose from, then transcript and field."""

    CSS_PATH = "chat.tcss"
    SCOPES = ("transcript",)
    BINDINGS = keys.bindings("transcript")

    def __init__(self, start: Callable[[Path], Awaitable[Server]] = spawn) -> None:
        super().__init__()
        self._start = start
        self._server: Server | None = None
        self._client: ChatClient | None = None
        self._served: ModelRow | None = None
        self._loading: asyncio.Task[None] | None = None
        self._replying: asyncio.Task[None] | None = None
        self._drawing: Timer | None = None
        self._is_picking = True
        self._stage = ""
        self._conversation: Conversation | None = None
        self._aim: Aim = "message"
        self._draft = ""

    def compose_body(self) -> ComposeResult:
        """Lay out the list of checkpoints, and the conversation."""
        with Vertical(id="picker", classes="pane"):
            yield ModelList(id="models")
            yield Static(id="stage")
        with Container(id="conversation"):
            with Container(id="talk"):
                yield Transcript(id="transcript", classes="pane")
                yield Static(id="about", classes="pane")
            with Vertical(id="message", classes="pane"):
                yield Prompt(id="prompt")

    def on_mount(self) -> None:
        """Offer checkpoints."""
        self.query_one("#message").border_title = "message"
        self.query_one("#about").border_title = "model"
        self._show_form()
        self._fill_models()

    async def on_unmount(self) -> None:
        """Leave no server behind."""
        for task in (self._replying, self._loading):
            if task is not None:
                task.cancel()
        if self._server is not None:
            await self._server.stop()

    # ---- checkpoints -------------------------------------------------------------------

    @on(RunsListed)
    def _runs_listed(self) -> None:
        self._fill_models()

    def came_back(self) -> None:
        """Offer the checkpoints of the job that was looked at last."""
        self._fill_models()

    def _fill_models(self) -> None:
        if not self.is_mounted:
            return
        now = self.workbench.surroundings.clock()
        rows = []
        for run in self.workbench.index.runs:
            summary = run.summary
            if summary is None or summary.checkpoint is None:
                continue
            path = run.path / summary.checkpoint
            rows.append(ModelRow(path, run.name, path.name, _said_of(summary, now)))
        models = self.query_one("#models", ModelList)
        jobs = keys.hint("show_jobs")
        models.empty_text = Content(
            f"No checkpoint yet: nothing has been saved. {jobs} shows the jobs; "
            f"{keys.hint('save')} there saves one now."
        )
        was_empty = not models.rows
        models.set_rows(rows)
        if was_empty and self.workbench.remembered.job:
            looked_at = self.workbench.remembered.job
            for row in rows:
                if str(row.path).startswith(f"{looked_at}/"):
                    models.choose(row.path)
        self.query_one("#picker").border_title = Content(
            f"Talk to · {words.number_of(len(rows), 'checkpoint')}"
        )

    @on(LineList.Opened, "#models")
    def _model_opened(self) -> None:
        self.do_load_model()

    def do_load_model(self) -> None:
        """Load the checkpoint under the cursor, or go on talking to it where it is loaded."""
        row = self.query_one("#models", ModelList).current
        if row is None or self._loading is not None:
            return
        is_served = self._served is not None and self._served.path == row.path
        if self._server is not None and is_served and not self._server.has_ended:
            self._is_picking = False
            self._show_form()
            return
        self._loading = asyncio.create_task(self._load(row), name="load a model")

    def load(self, path: Path, name: str) -> None:
        """Load a checkpoint or model that another screen has picked; ``name`` is of its run."""
        if self._loading is not None or self._replying is not None:
            busy = "loading" if self._loading is not None else "answering"
            self.workbench.say(f"{path.name} is not loaded: the chat is {busy}", "note")
            return
        if self._server is not None and self._served is not None and self._served.path == path:
            self._is_picking = False
            self._show_form()
            return
        self._is_picking = True
        self._show_form()
        row = ModelRow(path, name, path.name, "")
        self._loading = asyncio.create_task(self._load(row), name="load a model")

    async def _load(self, row: ModelRow) -> None:
        from workbench.jobs.chat_client import ChatClient
        from workbench.jobs.conversation import Conversation

        try:
            await self._stop_server()
            self._say_stage(f"starting a server for {row.run}/{row.checkpoint}…")
            self._server = await self._start(row.path)
            async for progress in self._server.updates():
                amount = f" {words.size(progress.bytes)}" if progress.bytes else ""
                self._say_stage(f"{progress.stage}{amount}…")
            self._client = ChatClient(self._server.socket, model=self._server.model)
            self._served = row
            system = "" if self._conversation is None else self._conversation.system
            self._conversation = Conversation(system, clock=self.workbench.surroundings.clock)
            await self.query_one("#transcript", Transcript).show(self._conversation)
            self._is_picking = False
            self.workbench.say(f"{row.run}/{row.checkpoint} is loaded")
        except (WorkbenchError, OSError) as error:
            await self._stop_server()
            self.workbench.say_error("not loaded: ", error)
        except asyncio.CancelledError:
            await self._stop_server()
            raise
        finally:
            self._loading = None
            self._say_stage("")
            if self.is_mounted:
                self._show_form()

    async def _stop_server(self) -> None:
        server, self._server, self._client, self._served = self._server, None, None, None
        if server is not None:
            await server.stop()

    def _say_stage(self, text: str) -> None:
        self._stage = text
        if self.is_mounted:
            mark = Content.assemble(("◌ ", "$busy"), text) if text else Content("")
            self.query_one("#stage", Static).update(mark)
            self.refresh_keys()

    # ---- form --------------------------------------------------------------------------

    def _show_form(self) -> None:
        self.query_one("#picker").display = self._is_picking
        self.query_one("#conversation").display = not self._is_picking
        if self._is_picking:
            self.query_one("#models").focus()
        else:
            self.query_one("#prompt").focus()
            self._show_about()
        self.refresh_keys()

    def _show_about(self) -> None:
        """Name what is talked to, above the transcript and, where there is room, beside it."""
        if self._server is None or self._served is None:
            return
        ready = self._server.ready
        row = self._served
        transcript = self.query_one("#transcript", Transcript)
        transcript.border_title = Content(f"{row.run}/{row.checkpoint}")
        usage = None if self._conversation is None else self._conversation.usage
        used = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
        transcript.border_subtitle = f"context {used:,} / {ready.context:,}"
        self._show_aim()
        system = "" if self._conversation is None else self._conversation.system
        self.query_one("#about", Static).update(
            Content("\n").join(
                Content.assemble((f"{name:<9}", "$quiet"), value)
                for name, value in _about(row, ready, used, system)
            )
        )

    def _show_aim(self) -> None:
        """Say above the field what is written there, and below it what enter does."""
        pane = self.query_one("#message")
        pane.border_title = self._aim
        does = "set" if self._aim == "system prompt" else "send"
        pane.border_subtitle = f"{keys.hint('send')} {does} · {keys.hint('newline')} new line"

    def _write(self, aim: Aim, text: str) -> None:
        """Let the field take something else than the next message, which is kept meanwhile."""
        prompt = self.query_one("#prompt", Prompt)
        if self._aim == "message":
            self._draft = prompt.text
        self._aim = aim
        prompt.text = text
        prompt.move_cursor(prompt.document.end)
        prompt.focus()
        self._show_aim()
        self.refresh_keys()

    def _write_message(self) -> None:
        """Give the field back to the next message."""
        self._aim = "message"
        prompt = self.query_one("#prompt", Prompt)
        prompt.text, self._draft = self._draft, ""
        prompt.move_cursor(prompt.document.end)
        self._show_aim()
        self.refresh_keys()

    def key_scopes(self) -> tuple[Scope, ...]:
        """While a checkpoint is picked, the keys of the conversation are not shown."""
        scopes = super().key_scopes()
        if self._is_picking:
            return tuple(scope for scope in scopes if scope != "transcript")
        return scopes

    def key_state(self) -> KeyState:
        """Say what can be done now."""
        refused = []
        if self._loading is not None:
            refused.append(("load_model", f"loading: {self._stage}"))
        elif self.query_one("#models", ModelList).current is None:
            refused.append(("load_model", "there is no checkpoint"))
        if self._conversation is None:
            refused.append(("set_system", "no checkpoint is loaded"))
        if self._replying is not None:
            refused += [(row, "the model is answering") for row in ("send", *_OF_LAST)]
        elif self._question is None:
            refused += [(row, "nothing was asked yet") for row in _OF_LAST]
        return KeyState(readonly=self.workbench.surroundings.readonly, refused=tuple(refused))

    def label_of(self, row: KeyRow) -> str:
        """Esc stops a reply, and else goes back."""
        if row.id == "stop_reply" and self._aim != "message":
            return "Cancel"
        if row.id == "stop_reply":
            return "Stop" if self._replying is not None else "Models"
        if row.id == "send" and self._aim == "system prompt":
            return "Set"
        return row.label

    # ---- talking -----------------------------------------------------------------------

    @property
    def conversation(self) -> "Conversation | None":
        """What has been said with the checkpoint that is loaded."""
        return self._conversation

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
        if self._client is None or self._conversation is None or self._replying is not None:
            return
        if self._aim == "system prompt":
            self._conversation.system = text
            self._write_message()
            self._show_about()
            self.workbench.say("the next answer is told the system prompt" if text else "no system")
        elif not text:
            return
        elif self._aim == "edit message" and question is not None:
            self._write_message()
            self._reply(self._send_edited(question, text))
        else:
            prompt.text = ""
            self._reply(self._send(text))

    def do_set_system(self) -> None:
        """Write the instruction before the conversation."""
        if self._conversation is not None and not self._is_picking:
            self._write("system prompt", self._conversation.system)

    def do_edit_message(self) -> None:
        """Write the last message anew; sent, it is a branch beside the one before."""
        if self._question is not None and self._replying is None:
            self._write("edit message", self._question.text)

    def do_regenerate(self) -> None:
        """Answer the last message again; the answers before stay beside it."""
        if self._question is not None and self._replying is None:
            self._reply(self._answer(self._question))

    def _reply(self, work: Coroutine[Any, Any, None]) -> None:
        self._replying = asyncio.create_task(work, name="reply")
        self._replying.add_done_callback(self._reply_ended)
        rate = 10.0 if self.workbench.surroundings.frames_per_second > 1 else 5.0
        self._drawing = self.set_interval(
            1 / rate, self.query_one("#transcript", Transcript).redraw_last
        )
        self.refresh_keys()

    def _reply_ended(self, task: asyncio.Task[None]) -> None:
        self._replying = None
        if self._drawing is not None:
            self._drawing.stop()
            self._drawing = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            self.workbench.say(f"{type(fault).__name__}: {fault}", "error")
        if self.is_mounted:
            self.query_one("#transcript", Transcript).redraw_last()
            self._show_about()
            self.refresh_keys()

    async def _answer(self, question: "Turn") -> None:
        """Stream one answer; a stop keeps what came, a failure gives the message back."""
        from workbench.jobs.chat_client import SUGGESTED_TEMPERATURE, ChatSettings

        assert self._client is not None
        assert self._conversation is not None
        settings = ChatSettings(seed=random.randrange(_SEEDS), temperature=SUGGESTED_TEMPERATURE)
        pieces = self._conversation.answer(
            question,
            self._client,
            settings,
            model="" if self._server is None else self._server.model,
            stopwatch=self.workbench.surroundings.stopwatch,
        )
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if piece.notice is not None:
                        self.workbench.say(piece.notice)
        except asyncio.CancelledError:
            pass  # by esc or ctrl+c: what came is in the transcript
        except (WorkbenchError, OSError) as error:
            await self._give_back(question)
            if self._server is not None and self._server.has_ended:
                back = keys.hint("stop_reply")
                self.workbench.say(
                    f"no answer: the server has ended; {back}, load it again", "error"
                )
            else:
                self.workbench.say_error("no answer: ", error)

    async def _give_back(self, question: "Turn") -> None:
        """Have a message that got no answer at all in the field again."""
        if question.after or self._conversation is None:
            return
        self._conversation.drop(question)
        prompt = self.query_one("#prompt", Prompt)
        prompt.text = question.text + (f"\n{prompt.text}" if prompt.text else "")
        prompt.move_cursor(prompt.document.end)
        await self.query_one("#transcript", Transcript).show(self._conversation)

    def do_stop_reply(self) -> object:
        """Stop the reply; else leave the field; else go to the checkpoints."""
        if self._replying is not None:
            self._replying.cancel()
            return None
        if self._aim != "message" and not self._is_picking:
            self._write_message()
            return None
        if self._is_picking:
            if self._loading is not None:
                self._loading.cancel()
            elif self._server is not None:
                self._is_picking = False
                self._show_form()
            else:
                self.workbench.clear_said()
            return None
        if self.query_one("#prompt").has_focus:
            self.query_one("#transcript").focus()
            self.refresh_keys()
        else:
            self._is_picking = True
            self._show_form()
        return None

    def do_interrupt(self) -> object:
        """Stop the reply where one is made; else this key is the program's."""
        if self._replying is not None and not self.get_selected_text():
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
        self.workbench.say("no message has been edited")

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
        folder = self.workbench.surroundings.project / "output"
        path = folder / "chat.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            num_rows = transcripts.save(self._conversation, path, all_branches=True)
        except (WorkbenchError, OSError) as error:
            self.workbench.say_error("not saved: ", error)
        else:
            self.workbench.say(f"{words.number_of(num_rows, 'conversation')} saved in {path}")

    def _show_path(self) -> None:
        assert self._conversation is not None
        transcript = self.query_one("#transcript", Transcript)
        self.run_worker(transcript.show(self._conversation), exit_on_error=False)
        self._show_about()
        self.refresh_keys()


def _said_of(summary: "RunSummary", now: float) -> str:
    """Say where the run of a checkpoint stands: the loss is the run's newest, with its step."""
    state: str = summary.state or "never started"
    if summary.state in END_STATES:
        state += f" {words.brief(max(now - summary.since, 0))} ago"
    if summary.loss is None:
        return state
    return f"{state} · loss {words.loss(summary.loss)} at step {summary.step}"


def _about(
    row: ModelRow, ready: "Ready", num_context_tokens: int, system: str
) -> list[tuple[str, str]]:
    return [
        ("run", row.run),
        ("weights", row.checkpoint),
        ("device", ready.device),
        ("numbers", ready.dtype),
        ("context", f"{num_context_tokens:,} of {ready.context:,}"),
        *(("stops at" if number == 0 else "", text) for number, text in enumerate(ready.stop)),
        *([("system", system)] if system else []),
    ]
