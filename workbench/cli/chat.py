"""``workbench chat``: ask a model one thing, talk with it, or let it go on with a text.

The reply alone is on stdout; everything else, failures first of all, is on stderr.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import examples_text, typed_model
from workbench.cli.talk import Talk
from workbench.errors import ConfigError
from workbench.jobs.chat_client import (
    ChatClient,
    ChatTurn,
    Reply,
    running_server,
)
from workbench.jobs.chat_settings import SUGGESTED_TEMPERATURE, ChatSettings
from workbench.jobs.inference_process import start_server

# A base model ends by nothing but its context, and a text has no turn that would be over.
COMPLETION_TOKENS = 50
_TOKENS = ("WORKBENCH_TOKEN", "OPENAI_API_KEY")
_STDIN = "-"

DESCRIPTION = """\
Ask a model one thing (--message), talk with it (--interactive), or let it go on with a text
(--completion). Without -m and --url it asks the server that `workbench serve` has started.
"""

EXAMPLES = (
    ('chat --message "Hello, what is your name?"', "asks the server that runs"),
    ("chat -m output/demo-1 --interactive", "talk with a run's newest checkpoint"),
    ('chat -m ~/models/base --completion "Once upon a time"', "a base model, without a template"),
    ('chat --url https://HOST/v1 --name MODEL --message "Hi"', "another server, its token in"),
    ("", "  WORKBENCH_TOKEN or OPENAI_API_KEY"),
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
    if options.interactive:
        return _interactive(options, settings)
    if options.completion is not None:
        return _complete(options, settings)
    message = _text_of(options.message, "--message")
    turns = [ChatTurn("user", message)]
    if options.system is not None:
        turns.insert(0, ChatTurn("system", options.system))
    return _show(options, asyncio.run(_ask(options, turns, settings)))


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
        "--url",
        help="any OpenAI-compatible server, or the path of a socket; its token is taken from"
        " WORKBENCH_TOKEN, else OPENAI_API_KEY",
    )
    parser.add_argument("--name", help="which of the server's models; default: its first")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--message", metavar="TEXT", help="what to say; - reads it from stdin")
    what.add_argument("--interactive", action="store_true", help="talk, turn by turn")
    what.add_argument(
        "--completion",
        metavar="TEXT",
        nargs="?",
        const=_STDIN,
        help="go on with this text, without a chat template; - or nothing reads it from stdin",
    )
    parser.add_argument("--system", metavar="TEXT", help="instruction before the conversation")
    parser.add_argument(
        "--max-tokens",
        type=_count,
        metavar="N",
        help=f"longest reply; default: the model's context, of a completion {COMPLETION_TOKENS}",
    )
    parser.add_argument("--no-echo", action="store_true", help="do not show the text gone on with")
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
    parser.add_argument(
        "--stream",
        action="store_true",
        help="show the reply as it comes; --interactive always does",
    )
    options = parser.parse_args(arguments)
    if options.interactive and options.json:
        parser.error("--json goes with --message or --completion")
    if options.stream and options.json:
        parser.error("--json shows a whole reply; leave --stream out")
    if options.completion is None and options.no_echo:
        parser.error("--no-echo goes with --completion")
    if options.completion is not None and options.system is not None:
        parser.error("--completion uses no template, so nothing says --system to the model")
    if options.model is not None and options.name is not None:
        parser.error("-m serves one model; --name chooses among those of a server")
    return options


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 token")
    return number


def _temperature(asked: float | None, url: str | None) -> float | None:
    """Give the temperature to ask for; what another server does by itself is its own business."""
    return SUGGESTED_TEMPERATURE if asked is None and url is None else asked


def _text_of(stated: str, flag: str) -> str:
    """Give what was typed, or what stdin holds without its last line end.

    Raises:
        ConfigError: there is no text, or it is no UTF-8.
    """
    where = flag
    if stated == _STDIN:
        where = "stdin"
        try:
            content = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"is no UTF-8: {error.reason} at byte {error.start}",
                where=where,
                remedy="convert it to UTF-8",
            ) from error
        stated = content.removesuffix("\n").removesuffix("\r")
    if not stated.strip():
        raise ConfigError("there is no text", where=where, remedy="say something")
    return stated


async def _ask(
    options: argparse.Namespace, turns: Sequence[ChatTurn], settings: ChatSettings
) -> Reply:
    async with _client(options) as client:
        show = output.piece if options.stream else None
        return await client.whole(client.stream(turns, settings), show)


def _show(options: argparse.Namespace, reply: Reply) -> int:
    if reply.notice is not None:
        output.narrate(reply.notice)
    if options.json:
        output.result_json(_as_json(reply))
    else:
        output.result("" if options.stream else reply.text)
    return 0


def _complete(options: argparse.Namespace, settings: ChatSettings) -> int:
    """Go on with a text; the prompt is shown as given, whatever the tokenizer makes of it."""
    prompt = _text_of(options.completion, "--completion")
    if settings.max_tokens is None:
        settings = replace(settings, max_tokens=COMPLETION_TOKENS)
    shown = "" if options.no_echo else prompt

    async def go_on() -> Reply:
        async with _client(options) as client:
            stream = client.completion(prompt, settings)
            if not options.stream:
                return await client.whole(stream)
            output.piece(shown)
            return await client.whole(stream, output.piece)

    reply = asyncio.run(go_on())
    if reply.notice is not None:
        output.narrate(reply.notice)
    if options.json:
        echoed = {} if options.no_echo else {"prompt": prompt}
        output.result_json({**echoed, **_as_json(reply)})
    else:
        output.result("" if options.stream else shown + reply.text)
    return 0


@asynccontextmanager
async def _client(options: argparse.Namespace) -> AsyncIterator[ChatClient]:
    """Connect to the server that was asked for, or start one for as long as this is open.

    Raises:
        ControlError: there is none.
        WorkbenchError: the model cannot be served.
    """
    if options.model is not None:
        server = await start_server(typed_model(options.model, "model"))
        try:
            yield ChatClient(server.socket)
        finally:
            await server.stop()
    elif options.url is None:
        yield ChatClient(running_server(), model=options.name)
    elif options.url.startswith("/"):
        yield ChatClient(Path(options.url), model=options.name)
    else:
        yield ChatClient(options.url, token=_token(), model=options.name)


def _token() -> str | None:
    """Give the first token that the environment holds."""
    held = (os.environ.get(name, "").strip() for name in _TOKENS)
    return next((token for token in held if token), None)


def _interactive(options: argparse.Namespace, settings: ChatSettings) -> int:
    """Talk until the user leaves; one event loop keeps the server between the turns."""
    with asyncio.Runner() as runner:
        connection = _client(options)
        client = runner.run(connection.__aenter__())
        try:
            model = runner.run(client.model())
            output.narrate(f"{model}; /help for commands")
            Talk(runner, client, model, settings, options.system or "").go_on()
        finally:
            runner.run(connection.__aexit__(None, None, None))
    return 0


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
