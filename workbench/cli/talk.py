"""The conversation of ``workbench chat --interactive``: what is typed, and what becomes of it.

Replies go to stdout, everything else to stderr. Invariant: ctrl+c stops the reply that is being
made, or nothing; it leaves the program only when it is pressed twice at the prompt.
"""

import asyncio
import math
import sys
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import typed_path
from workbench.errors import ConfigError, WorkbenchError
from workbench.jobs import transcripts
from workbench.jobs.chat_client import ChatClient
from workbench.jobs.chat_settings import ChatSettings
from workbench.jobs.conversation import Conversation, Turn

HELP = """\
/clear          forget the conversation
/system TEXT    begin it with this instruction; without TEXT: with none
/retry          answer the last message once more
/temperature T  0: the likeliest token each time, up to 2; without T: tell it
/save FILE      add the conversation to a .jsonl that a data set can name; without FILE: chat.jsonl
/help           this
quit, exit, q   leave (also ctrl+d); ctrl+c stops the reply"""

WORDS_THAT_LEAVE = ("quit", "exit", "q")
HIGHEST_TEMPERATURE = 2.0
DEFAULT_FILE = "chat.jsonl"


class Talk:
    """A conversation in the terminal.

    Args:
        runner: one event loop, which keeps a server between the turns.
        client: who is asked.
        model: its name, for the record.
        settings: how it answers.
        system: instruction before the conversation; "" is none.
    """

    def __init__(
        self,
        runner: asyncio.Runner,
        client: ChatClient,
        model: str,
        settings: ChatSettings,
        system: str,
    ) -> None:
        self._runner = runner
        self._client = client
        self._model = model
        self._settings = settings
        self._conversation = Conversation(system)
        self._unanswered: str | None = None
        self._saved_to = Path(DEFAULT_FILE)

    def go_on(self) -> None:
        """Talk until the user leaves, or what is typed ends.

        Raises:
            KeyboardInterrupt: ctrl+c twice at the prompt.
        """
        if sys.stdin.isatty() and sys.stdout.isatty():
            # Arrow keys and a history, where Python was built with them.
            with suppress(ImportError):
                import readline  # noqa: F401
        was_interrupted = False
        while True:
            try:
                said = output.ask("> ").strip()
                was_interrupted = False
                if said in WORDS_THAT_LEAVE:
                    return
                if said:
                    self._take(said)
            except EOFError:
                return
            except UnicodeDecodeError:
                output.narrate("what was typed is no UTF-8; type it again")
            except WorkbenchError as error:
                output.report_error(error)
            except KeyboardInterrupt:
                if was_interrupted or not sys.stdin.isatty():
                    raise
                was_interrupted = True
                output.narrate("\n(ctrl+c again, ctrl+d or q leaves)")

    def _take(self, said: str) -> None:
        command, _, rest = said.partition(" ")
        rest = rest.strip()
        match command:
            case "/clear":
                self._conversation.clear()
                self._unanswered = None
            case "/system":
                self._conversation.system = rest
            case "/retry":
                self._retry()
            case "/temperature":
                self._set_temperature(rest)
            case "/save":
                self._save(rest)
            case "/help":
                output.narrate(HELP)
            case _ if command.startswith("/"):
                output.narrate(f"no such command: {command}\n{HELP}")
            case _:
                self._answer(self._conversation.say(said))

    def _retry(self) -> None:
        """Ask again what got no answer, or for another answer to the last message."""
        question = self._conversation.question
        if self._unanswered is not None:
            question = self._conversation.say(self._unanswered)
        if question is None:
            output.narrate("nothing was asked yet")
        else:
            self._answer(question)

    def _answer(self, question: Turn) -> None:
        """Show one more answer as it is made; half a one is not what the model is told later."""
        settings = self._settings
        if settings.seed is not None:
            # The same seed would give the answers before once more.
            settings = replace(settings, seed=settings.seed + len(question.after))
        num_before = len(question.after)
        self._unanswered = None
        try:
            self._runner.run(self._stream(question, settings))
        except (KeyboardInterrupt, WorkbenchError) as error:
            for answer in question.after[num_before:]:
                self._conversation.drop(answer)
            if not question.after:
                self._conversation.drop(question)
                self._unanswered = question.text
            if isinstance(error, WorkbenchError):
                raise
            output.narrate("\n(stopped)")

    async def _stream(self, question: Turn, settings: ChatSettings) -> None:
        pieces = self._conversation.answer(question, self._client, settings, model=self._model)
        async with aclosing(pieces):
            async for piece in pieces:
                output.piece(piece.text)
                if piece.notice is not None:
                    output.narrate(piece.notice)
        output.result("")

    def _set_temperature(self, stated: str) -> None:
        if stated:
            try:
                temperature = float(stated)
            except ValueError:
                temperature = math.nan
            if not 0 <= temperature <= HIGHEST_TEMPERATURE:
                raise ConfigError(
                    f"{stated!r} is no temperature",
                    where="/temperature",
                    remedy=f"give a number from 0 to {HIGHEST_TEMPERATURE:g}",
                )
            self._settings = replace(self._settings, temperature=temperature)
        temperature_now = self._settings.temperature
        told = "the server's own" if temperature_now is None else f"{temperature_now:g}"
        output.narrate(f"temperature: {told}")

    def _save(self, stated: str) -> None:
        if stated:
            self._saved_to = typed_path(stated, "file")
        transcripts.save(self._conversation, self._saved_to)
        num_answers = sum(turn.role == "assistant" for turn in self._conversation.path)
        answers = "1 answer" if num_answers == 1 else f"{num_answers} answers"
        output.narrate(f"{answers} in {self._saved_to}")
