"""``workbench chat``: ask a model one thing, or talk with it in the terminal.

The reply alone is on stdout; everything else, failures first of all, is on stderr.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import examples_text, typed_path
from workbench.control.address import serve_address
from workbench.errors import ConfigError, ControlError, WorkbenchError
from workbench.jobs.chat_client import (
    SUGGESTED_TEMPERATURE,
    ChatClient,
    ChatSettings,
    ChatTurn,
    Reply,
)
from workbench.jobs.inference_process import start_server

DEFAULT_PORT = 8000

DESCRIPTION = """\
Ask a model one thing (--message), or talk with it (--interactive).
Without -m and --url it asks the server that `workbench serve` has started.
"""

HELP = """\
/clear        forget the conversation
/system TEXT  begin it with this instruction; without TEXT: with none
/help         this
quit, exit, q leave (also ctrl+d); ctrl+c stops the reply"""


EXAMPLES = (
    ('chat --message "Hello, what is your name?"', "asks the server that runs"),
    ("chat -m output/demo-1 --interactive", "talk with a run's newest checkpoint"),
)


def run(arguments: list[str]) -> int:
    """Chat; 0 with a reply, 1 where the request failed, 3 where no server can be reached."""
    options = parse(arguments)
    settings = ChatSettings(
        max_tokens=options.max_tokens,
        temperature=_temperature(options.temperature, options.url),
        top_p=options.top_p,
        seed=options.seed,
    )
    system = () if options.system is None else (ChatTurn("system", options.system),)
    if options.interactive:
        return _interactive(options, system, settings)
    message = sys.stdin.read() if options.message == "-" else options.message
    if not message.strip():
        raise ConfigError("the message is empty", where="--message", remedy="say something")
    turns = [*system, ChatTurn("user", message)]
    reply = asyncio.run(_ask(options, turns, settings))
    if options.json:
        output.result_json(_as_json(reply))
    else:
        output.result(reply.text)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="workbench chat",
        description=DESCRIPTION,
        epilog=examples_text(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-m",
        "--model",
        type=Path,
        metavar="MODEL",
        help="run, checkpoint or model folder: serve it for this call",
    )
    where.add_argument(
        "--url", help="any OpenAI-compatible server; its token is taken from WORKBENCH_TOKEN"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--message", metavar="TEXT", help="what to say; - reads it from stdin")
    what.add_argument("--interactive", action="store_true", help="talk, turn by turn")
    parser.add_argument("--system", metavar="TEXT", help="instruction before the conversation")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest reply")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help=f"0: the likeliest token each time; default: {SUGGESTED_TEMPERATURE}, with --url the"
        " server's",
    )
    parser.add_argument("--top-p", type=float, metavar="P", help="share of likely tokens, up to 1")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed, the same reply")
    parser.add_argument("--json", action="store_true", help="reply, model and usage as one JSON")
    parser.add_argument("--stream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.interactive and options.json:
        parser.error("--json goes with --message")
    return options


def _temperature(asked: float | None, url: str | None) -> float | None:
    """Give the temperature to ask for; what another server does by itself is its own business."""
    return SUGGESTED_TEMPERATURE if asked is None and url is None else asked


async def _ask(
    options: argparse.Namespace, turns: Sequence[ChatTurn], settings: ChatSettings
) -> Reply:
    async with _client(options.model, options.url) as client:
        return await client.reply(turns, settings)


@asynccontextmanager
async def _client(model: Path | None, url: str | None) -> AsyncIterator[ChatClient]:
    """Connect to the server that was asked for, or start one for as long as this is open.

    Raises:
        ControlError: there is none.
        WorkbenchError: the model cannot be served.
    """
    if model is not None:
        server = await start_server(typed_path(model, "model"))
        try:
            yield ChatClient(server.socket)
        finally:
            await server.stop()
    elif url is not None:
        yield ChatClient(url, token=os.environ.get("WORKBENCH_TOKEN"))
    else:
        yield ChatClient(default_socket())


def default_socket() -> Path:
    """Give the socket of ``workbench serve`` on its usual port.

    Raises:
        ControlError: no server has been started.
    """
    socket = serve_address(DEFAULT_PORT)
    if not socket.is_socket():
        raise ControlError(
            "no server runs here",
            where=str(socket),
            remedy="name a model with -m, a server with --url, or start one: workbench serve",
        )
    return socket


def _interactive(
    options: argparse.Namespace, system: tuple[ChatTurn, ...], settings: ChatSettings
) -> int:
    """Talk until the user leaves; one event loop keeps the server between the turns."""
    with asyncio.Runner() as runner:
        connection = _client(options.model, options.url)
        client = runner.run(connection.__aenter__())
        try:
            output.narrate(f"{runner.run(client.model())}; /help for commands")
            _talk(runner, client, system, settings)
        finally:
            runner.run(connection.__aexit__(None, None, None))
    return 0


def _talk(
    runner: asyncio.Runner,
    client: ChatClient,
    system: tuple[ChatTurn, ...],
    settings: ChatSettings,
) -> None:
    turns: list[ChatTurn] = []
    while True:
        try:
            said = output.ask("> ").strip()
        except EOFError:
            return
        command, _, rest = said.partition(" ")
        if said in ("quit", "exit", "q"):
            return
        if not said:
            continue
        if command == "/clear":
            turns = []
        elif command == "/system":
            system = (ChatTurn("system", rest.strip()),) if rest.strip() else ()
        elif command.startswith("/"):
            output.narrate(HELP)
        else:
            turns.append(ChatTurn("user", said))
            try:
                text = runner.run(_stream_to_stdout(client, [*system, *turns], settings))
            except KeyboardInterrupt:
                # What was said is on the screen, but the model is not shown half a reply.
                turns.pop()
                output.narrate("\n(stopped)")
            except WorkbenchError as error:
                turns.pop()
                output.report_error(error)
            else:
                turns.append(ChatTurn("assistant", text))


async def _stream_to_stdout(
    client: ChatClient, turns: Sequence[ChatTurn], settings: ChatSettings
) -> str:
    text = ""
    async with aclosing(client.stream(turns, settings)) as pieces:
        async for piece in pieces:
            text += piece.text
            output.piece(piece.text)
    output.result("")
    return text


def _as_json(reply: Reply) -> dict[str, object]:
    usage = reply.usage
    return {
        "model": reply.model,
        "reply": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": None
        if usage is None
        else {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        },
    }
