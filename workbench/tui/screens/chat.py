"""Chat: pick a checkpoint, load it into a server of this window's own, talk to it.

The server is a child that ends with this program; closing a reply's stream is what stops its
generation. Invariants: one server at a time; a message that could not be sent is back in the
field; a reply that was stopped keeps what came.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
from workbench.tui.widgets.transcript import Answer, Exchange, Transcript

if TYPE_CHECKING:
    from workbench.jobs.chat_client import ChatClient, ChatTurn
    from workbench.jobs.inference_process import Progress, Ready
    from workbench.runs.catalog import RunSummary

_SEEDS = 10_000  # short enough to be read aloud and typed again


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
        self._num_context_tokens = 0

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

    async def _load(self, row: ModelRow) -> None:
        from workbench.jobs.chat_client import ChatClient

        try:
            await self._stop_server()
            self._say_stage(f"starting a server for {row.run}/{row.checkpoint}…")
            self._server = await self._start(row.path)
            async for progress in self._server.updates():
                amount = f" {words.size(progress.bytes)}" if progress.bytes else ""
                self._say_stage(f"{progress.stage}{amount}…")
            self._client = ChatClient(self._server.socket, model=self._server.model)
            self._served = row
            await self.query_one("#transcript", Transcript).clear()
            self._num_context_tokens = 0
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
        used = f"context {self._num_context_tokens:,} / {ready.context:,}"
        transcript.border_subtitle = used
        self.query_one(
            "#message"
        ).border_subtitle = f"{keys.hint('send')} send · {keys.hint('newline')} new line"
        self.query_one("#about", Static).update(
            Content("\n").join(
                Content.assemble((f"{name:<9}", "$quiet"), value)
                for name, value in _about(row, ready, self._num_context_tokens)
            )
        )

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
        if self._replying is not None:
            refused += [
                ("send", "the model is answering"),
                ("regenerate", "the model is answering"),
            ]
        elif self._last is None:
            refused.append(("regenerate", "nothing was asked yet"))
        return KeyState(readonly=self.workbench.surroundings.readonly, refused=tuple(refused))

    def label_of(self, row: KeyRow) -> str:
        """Esc stops a reply, and else goes back."""
        if row.id == "stop_reply":
            return "Stop" if self._replying is not None else "Models"
        return row.label

    # ---- talking -----------------------------------------------------------------------

    @property
    def _last(self) -> Exchange | None:
        exchanges = self.query_one("#transcript", Transcript).exchanges
        return exchanges[-1] if exchanges else None

    async def _send(self, message: str) -> None:
        exchange = Exchange(message, self.workbench.surroundings.clock())
        await self.query_one("#transcript", Transcript).add(exchange)
        await self._answer(exchange)

    def do_send(self) -> None:
        """Send what is written."""
        prompt = self.query_one("#prompt", Prompt)
        message = prompt.text.strip()
        if not message or self._client is None or self._replying is not None:
            return
        prompt.text = ""
        self._reply(self._send(message))

    def do_regenerate(self) -> None:
        """Answer the last message again; the answers before stay beside it."""
        if self._last is not None and self._replying is None:
            self._reply(self._answer(self._last))

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

    async def _answer(self, exchange: Exchange) -> None:
        """Stream one answer; a stop keeps what came, a failure gives the message back."""
        from workbench.jobs.chat_client import SUGGESTED_TEMPERATURE, ChatSettings

        assert self._client is not None
        stopwatch = self.workbench.surroundings.stopwatch
        answer = Answer(seed=random.randrange(_SEEDS))
        turns = self._turns_before(exchange)
        exchange.answers.append(answer)
        exchange.shown = len(exchange.answers) - 1
        began = stopwatch()
        try:
            settings = ChatSettings(seed=answer.seed, temperature=SUGGESTED_TEMPERATURE)
            async with aclosing(self._client.stream(turns, settings)) as pieces:
                async for piece in pieces:
                    if piece.text:
                        answer.text += piece.text
                        answer.num_tokens += 1
                    answer.seconds = stopwatch() - began
                    if piece.finish_reason is not None:
                        answer.ended = piece.finish_reason
                    if piece.usage is not None:
                        answer.num_tokens = piece.usage.completion_tokens
                        self._num_context_tokens = (
                            piece.usage.prompt_tokens + piece.usage.completion_tokens
                        )
            answer.ended = answer.ended or "stop"
        except asyncio.CancelledError:
            answer.ended = "stopped"
        except (WorkbenchError, OSError) as error:
            await self._give_back(exchange, answer)
            if self._server is not None and self._server.has_ended:
                back = keys.hint("stop_reply")
                self.workbench.say(
                    f"no answer: the server has ended; {back}, load it again", "error"
                )
            else:
                self.workbench.say_error("no answer: ", error)

    async def _give_back(self, exchange: Exchange, answer: Answer) -> None:
        """Take a failed answer away; the message of a failed send is in the field again."""
        if answer.text:
            answer.ended = "broken off"
        else:
            exchange.answers.remove(answer)
            exchange.shown = max(len(exchange.answers) - 1, 0)
        if not exchange.answers:
            prompt = self.query_one("#prompt", Prompt)
            prompt.text = exchange.message + (f"\n{prompt.text}" if prompt.text else "")
            prompt.move_cursor(prompt.document.end)
            await self.query_one("#transcript", Transcript).drop_last()

    def _turns_before(self, exchange: Exchange) -> "list[ChatTurn]":
        from workbench.jobs.chat_client import ChatTurn

        turns = []
        for each in self.query_one("#transcript", Transcript).exchanges:
            turns.append(ChatTurn("user", each.message))
            if each is exchange:
                break
            if each.answer is not None:
                turns.append(ChatTurn("assistant", each.answer.text))
        return turns

    def do_stop_reply(self) -> object:
        """Stop the reply; else leave the field; else go to the checkpoints."""
        if self._replying is not None:
            self._replying.cancel()
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
        if self._replying is None:
            self.run_worker(self.query_one("#transcript", Transcript).clear(), exit_on_error=False)
            self._num_context_tokens = 0
            self._show_about()

    def do_next_answer(self) -> None:
        """Show the next answer to the last message."""
        self._turn_answer(1)

    def do_previous_answer(self) -> None:
        """Show the answer before."""
        self._turn_answer(-1)

    def _turn_answer(self, by: int) -> None:
        last = self._last
        if last is not None and last.answers and self._replying is None:
            last.shown = min(max(last.shown + by, 0), len(last.answers) - 1)
            self.query_one("#transcript", Transcript).redraw_last()


def _said_of(summary: "RunSummary", now: float) -> str:
    """Say where the run of a checkpoint stands: the loss is the run's newest, with its step."""
    state: str = summary.state or "never started"
    if summary.state in END_STATES:
        state += f" {words.brief(max(now - summary.since, 0))} ago"
    if summary.loss is None:
        return state
    return f"{state} · loss {words.loss(summary.loss)} at step {summary.step}"


def _about(row: ModelRow, ready: "Ready", num_context_tokens: int) -> list[tuple[str, str]]:
    return [
        ("run", row.run),
        ("weights", row.checkpoint),
        ("device", ready.device),
        ("numbers", ready.dtype),
        ("context", f"{num_context_tokens:,} of {ready.context:,}"),
        *(("stops at" if number == 0 else "", text) for number, text in enumerate(ready.stop)),
    ]
