"""Publish a checkpoint: choose, watch the checks, read one reply of what was made.

The work is that of ``workbench finalize``, done by the same worker; the reply comes from a server
of this dialog's own, which ends with it.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.worker import get_current_worker

from workbench.errors import WorkbenchError
from workbench.runs.checkpoint_facts import CheckpointFacts, RunFacts
from workbench.tui import words
from workbench.tui.chat.model_server import spawn
from workbench.tui.screens.work_dialog import WorkDialog
from workbench.tui.widgets.form import ChoiceField, FormField, FormLine

if TYPE_CHECKING:
    from workbench.jobs.model_worker import Published
    from workbench.jobs.side_by_side import Server, Start
    from workbench.runs.checkpoints import Choice

QUESTION = "Hello, what is your name?"
_REPLY_TOKENS = 80
_REPLY = "one reply"


@dataclass(frozen=True)
class Publishable:
    """What was selected: a checkpoint, a run (its newest), or a model.

    Attributes:
        path: of its folder.
        run: whose checkpoint it is, None for a model.
        checkpoint: the selected one, None for a run or a model.
    """

    path: Path
    run: RunFacts | None
    checkpoint: CheckpointFacts | None


class FinalizeDialog(WorkDialog):
    """Where to, which checkpoint, which GGUF, and whether it is asked for a reply."""

    def __init__(self, source: Publishable, start: "Start" = spawn) -> None:
        name = source.run.run.name if source.run is not None else source.path.name
        super().__init__(f"Finalize {name}")
        self._source = source
        self.start_server = start
        self._published: Published | None = None
        self._suggested = ""
        self._reply = ""
        self._ended = ""
        self._choices: dict[str, Choice] = self._find_choices()

    def _find_choices(self) -> "dict[str, Choice]":
        """Give the checkpoints that can be chosen, by how the form calls them."""
        run, chosen = self._source.run, self._source.checkpoint
        found: dict[str, Choice] = {}
        if run is None:
            return found
        if chosen is not None:
            found[f"step {chosen.step}"] = chosen.step
        if run.newest is not None:
            found[f"latest ({run.newest.step})"] = "latest"
        if best := next((each for each in run.checkpoints if each.is_best), None):
            found[f"best ({best.step})"] = "best"
        return found

    # ---- the form ----------------------------------------------------------------------

    def facts(self) -> Sequence[tuple[str, str]]:
        """Say what is published."""
        source = self._source
        if source.run is None:
            return (("model", self.workbench.shown_path(source.path)),)
        return (("run", self.workbench.shown_path(source.run.run.path)),)

    def fields(self) -> Iterable[FormLine]:
        """Give the fields."""
        from workbench.jobs.publishing import GGUF_TYPES

        self._suggested = self._suggestion()
        yield FormLine("destination", FormField(self._suggested, id="destination"))
        if self._choices:
            first = next(iter(self._choices))
            yield FormLine("checkpoint", ChoiceField(list(self._choices), first, id="which"))
        yield FormLine("GGUF", ChoiceField(["none", *GGUF_TYPES], "none", id="gguf"))
        yield FormLine("sample reply", ChoiceField(["yes", "no"], "yes", id="reply"))

    def _suggestion(self, choice: "Choice | None" = None) -> str:
        """Give a name for what is made: of the run and the step that is chosen."""
        run = self._source.run
        if run is None:
            return f"models/{self._source.path.name}-published"
        facts = self._source.checkpoint or run.newest
        if choice == "latest":
            facts = run.newest
        elif choice == "best":
            facts = next((each for each in run.checkpoints if each.is_best), facts)
        return f"models/{run.run.name}-{facts.step if facts is not None else 0}"

    @on(ChoiceField.Changed)
    def _chosen(self) -> None:
        """A destination that nobody has typed follows the checkpoint."""
        field = self.query_one("#destination", FormField)
        if field.value == self._suggested:
            self._suggested = self._suggestion(self.choice)
            field.value = self._suggested

    @property
    def choice(self) -> "Choice | None":
        """Which checkpoint of the run, None for a model."""
        return self._choices[self.choice_of("which")] if self._choices else None

    @property
    def gguf(self) -> str | None:
        """Which GGUF, None for none."""
        chosen = self.choice_of("gguf")
        return None if chosen == "none" else chosen

    def command_line(self) -> str:
        """Give the command line."""
        from workbench.jobs.publishing import finalize_command

        source = self._source
        path = source.path if source.run is None else source.run.run.path
        destination = self.text_of("destination") or "DEST"
        return finalize_command(
            self.workbench.shown_path(path), destination, self.choice, self.gguf
        )

    def objection(self) -> str | None:
        """Say what speaks against the destination."""
        from workbench.jobs.publishing import check_place

        source = self._source
        sources = [source.path]
        if source.run is not None and source.run.model is not None:
            sources.append(source.run.model)
        try:
            check_place(self.destination(), sources, source.run.run if source.run else None)
        except WorkbenchError as error:
            return f"{error.what}; {error.remedy}"
        return None

    # ---- the work ----------------------------------------------------------------------

    def begin_work(self) -> None:
        """Publish."""
        self.publish(self._source, self.choice, self.destination(), self.gguf)

    @work(thread=True, group="publish", exit_on_error=False)
    def publish(
        self, source: Publishable, choice: "Choice | None", destination: Path, gguf: str | None
    ) -> None:
        """Have the worker publish, and tell of it."""
        from workbench.jobs import model_worker
        from workbench.runs.checkpoints import choose_checkpoint

        worker = get_current_worker()
        try:
            folder = source.path
            if source.run is not None and choice is not None:
                folder = choose_checkpoint(source.run.run, choice).path
            for record in model_worker.publish(
                [folder], destination, gguf, is_unwanted=lambda: worker.is_cancelled
            ):
                match record:
                    case model_worker.Progress():
                        self.from_thread(self.tell_stage, record.stage, record.done, record.total)
                    case model_worker.Notice():
                        self.from_thread(self.tell_note, f"{record.what}; {record.remedy}")
                    case model_worker.Published():
                        self.from_thread(self.take, record)
        except WorkbenchError as error:
            if not worker.is_cancelled:
                self.from_thread(self.fail, error)

    def take(self, published: "Published") -> None:
        """Take what was made; ask it for a reply where that is wanted."""
        self._published = published
        self.made = Path(published.path)
        if self.choice_of("reply") == "yes":
            self.tell_stage(_REPLY, 0, 0)
            self.ask(self.made)
        else:
            self.finish(self.made)

    @work(group="reply", exit_on_error=False)
    async def ask(self, folder: Path) -> None:
        """Serve what was made and ask it for one reply; a refusal spoils nothing."""
        from workbench.jobs.chat_client import ChatClient, ChatTurn
        from workbench.jobs.chat_settings import ChatSettings

        server: Server | None = None
        try:
            server = await self.start_server(folder)
            async for _ in server.updates():
                pass
            client = ChatClient(server.socket, model=server.model)
            settings = ChatSettings(max_tokens=_REPLY_TOKENS, temperature=0.0)
            turns = [ChatTurn("user", self.question)]
            reply = await client.whole(client.stream(turns, settings))
            self._reply = reply.text.strip()
            self._ended = "ended by itself" if reply.finish_reason == "stop" else "cut"
        except (WorkbenchError, OSError) as error:
            what = error.what if isinstance(error, WorkbenchError) else str(error)
            self.tell_note(f"no reply: {what}")
        finally:
            if server is not None:
                await asyncio.shield(server.stop())
        self.finish(folder)

    @property
    def question(self) -> str:
        """What it is asked: the run's own sample prompt, else its name."""
        run = self._source.run
        return (run.prompt if run is not None else "") or QUESTION

    # ---- the end -----------------------------------------------------------------------

    def findings(self) -> Sequence[tuple[str, str]]:
        """Say what was compared, what ends a reply, and what it said."""
        made = self._published
        if made is None:
            return ()
        what = f"step {made.step}" if made.step is not None else "model"
        folder = self.workbench.shown_path(Path(made.path))
        equal = f"equal the checkpoint's (difference {made.difference:.0e})"
        if made.reference_difference is not None:
            equal += f", and transformers' ({made.reference_difference:.0e})"
        facts = [
            ("published", f"{what}, {words.size(made.bytes)} in {len(made.files)} files: {folder}"),
            ("hashes", "every file read back, as it was saved"),
            ("logits", equal),
            ("stops at", " ".join(map(str, made.stop_ids)) or "no token"),
        ]
        if made.gguf is not None:
            size = words.size((Path(made.path) / made.gguf).stat().st_size)
            facts.append(("GGUF", f"{made.gguf}, {size}, with a Modelfile for Ollama"))
        if self._reply:
            facts += [("asked", self.question), ("replied", f"{self._reply}  ({self._ended})")]
        facts.append(("try it", f"workbench serve -m {folder}"))
        return facts
