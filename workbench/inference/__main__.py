"""``python -m workbench.inference --model PATH``: load a model or a checkpoint, serve it.

Says on stdout what happens, one JSON object per line: ``progress``, then ``ready`` or ``error``.
Invariant: with ``--parent-pipe`` the process ends when its stdin closes, at any moment.
"""

import argparse
import asyncio
import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from workbench.config.json_file import read_json_object
from workbench.config.model_facts import facts_of
from workbench.config.weight_files import check_whole, find_weight_files
from workbench.control.address import check_folder, check_length, remove_stale, serve_address
from workbench.data.tokenizer import Tokenizer, load_tokenizer
from workbench.errors import ConfigError, RefusedError, RunError, WorkbenchError
from workbench.inference.prompt import read_prompt_writer
from workbench.runs.checkpoints import checkpoint_folder
from workbench.runs.layout import step_of

if TYPE_CHECKING:
    from workbench.inference.generate import Turns
    from workbench.inference.reply import ReplyMaker
    from workbench.inference.server import ServedModel

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "WORKBENCH_TOKEN"
BACKLOG = 128
# transformers imports torchao where it is installed; what that lacks is of no concern to a server.
_TALKATIVE = ("torchao", "torch.utils._pytree")


def main(arguments: Sequence[str]) -> int:
    """Serve until told to end; give the exit status."""
    options = parse(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    ending = Ending()
    if options.parent_pipe:
        ending.watch_parent_pipe()
    try:
        wanted = named_folders(options.model)
        bound = bind(options.socket, options.host, options.port)
        ending.before_leaving(bound.close)
        with closing(bound):
            return serve(options, wanted, bound, ending)
    except WorkbenchError as error:
        # Whoever started us may close the pipe as soon as it has read this.
        ending.exit_status = error.exit_status
        say(
            "error",
            kind=type(error).__name__,
            what=error.what,
            where=error.where,
            remedy=error.remedy,
            exit_status=error.exit_status,
        )
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(prog="python -m workbench.inference", description=__doc__)
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]PATH",
        help="run, checkpoint or model folder; again for another beside it",
    )
    parser.add_argument("--socket", type=Path, help="Unix socket to serve on")
    parser.add_argument("--port", type=int, help="TCP port to serve on; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address for TCP")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"]
    )
    parser.add_argument("--template", help="chat template: a name or a file")
    parser.add_argument("--stop", action="append", default=[], help="text that ends a reply")
    parser.add_argument(
        "--overflow",
        default="refuse",
        choices=["refuse", "truncate"],
        help="what becomes of a prompt that is longer than the context",
    )
    parser.add_argument("--engine", default="auto", choices=["auto", "transformers", "vllm"])
    parser.add_argument("--parallel", type=int, default=32, help="replies made at the same time")
    parser.add_argument("--memory", type=float, help="GiB of the device for a model's weights")
    parser.add_argument(
        "--parent-pipe", action="store_true", help="end when stdin closes: the parent has died"
    )
    options = parser.parse_args(arguments)
    if options.socket is None and options.port is None:
        parser.error("give --socket or --port, or both")
    if not all(options.stop):
        parser.error("--stop must not be empty")
    if options.parallel < 1:
        parser.error("--parallel must be at least 1")
    if options.memory is not None and not options.memory >= 0:
        parser.error("--memory must not be negative")
    return options


@dataclass(frozen=True)
class BoundSockets:
    """Sockets that listen already, so that nobody else can take their addresses."""

    sockets: tuple[socket.socket, ...]
    path: Path | None
    url: str | None

    def close(self) -> None:
        """Stop listening and remove the Unix socket's file; doing it twice is harmless."""
        for listener in self.sockets:
            listener.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def bind(path: Path | None, host: str, port: int | None) -> BoundSockets:
    """Take the addresses: TCP where a port is given, and always a Unix socket.

    Args:
        path: of the Unix socket; None makes it ``serve-<port>.sock``.
        host: name or address for TCP.
        port: 0 takes a free one; None serves no TCP.

    Raises:
        RefusedError: another process has the address.
        ControlError: the Unix socket's folder is not safe, or its path too long.
        ConfigError: there is no such host.
    """
    listeners: list[socket.socket] = []
    url = None
    try:
        if port is not None:
            listener = bind_tcp(host, port)
            listeners.append(listener)
            port = listener.getsockname()[1]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        if path is None:
            assert port is not None, "neither a socket nor a port"
            path = serve_address(port)
        listeners.append(bind_unix(path))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return BoundSockets(tuple(listeners), path, url)


def bind_tcp(host: str, port: int) -> socket.socket:
    """Listen on a TCP port.

    Raises:
        ConfigError: there is no such host.
        RefusedError: the port is taken or forbidden.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"no such address: {error.strerror}", where=f"--host {host}", remedy="use 127.0.0.1"
        ) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise RefusedError(
            f"cannot be served on: {error.strerror}",
            where=f"{host}:{port}",
            remedy="choose another port with -p",
        ) from error
    return listener


def bind_unix(path: Path) -> socket.socket:
    """Listen on a Unix socket in a folder that is this user's alone.

    Raises:
        ControlError: the folder is not safe, or the path too long.
        RefusedError: another server listens there.
    """
    check_length(path)
    check_folder(path.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Two servers that start at once must not both take the other's socket for a left-over.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        remove_stale(path)
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise RefusedError(
            f"cannot be served on: {error.strerror}",
            where=str(path),
            remedy="end the server that has it, or choose another port with -p",
        ) from error
    finally:
        os.close(folder)
    return listener


class Ending:
    """Knows when the server should end, and with which exit status."""

    def __init__(self) -> None:
        self.exit_status = 0
        self._tidy_up: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def before_leaving(self, tidy_up: Callable[[], None]) -> None:
        """Say what to do when the process must end while nobody waits for ``wait``."""
        self._tidy_up = tidy_up

    def watch_parent_pipe(self) -> None:
        """End when stdin closes; before the event loop runs, at once."""
        threading.Thread(target=self._read_to_end, name="parent pipe", daemon=True).start()

    def watch_signals(self) -> None:
        """End on Ctrl-C and SIGTERM; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            self._loop.add_signal_handler(number, self._end, status)

    async def wait(self) -> None:
        """Return when the server should end."""
        await self._event.wait()

    def leave_at_once(self, status: int) -> NoReturn:
        """End the process although a thread is inside torch and cannot be joined."""
        self._tidy_up()
        logging.shutdown()
        os._exit(status)

    def _end(self, status: int) -> None:
        self.exit_status = status
        self._event.set()

    def _read_to_end(self) -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        if self._loop is None:
            self.leave_at_once(self.exit_status)
        with suppress(RuntimeError):  # the loop has closed: we are ending already
            self._loop.call_soon_threadsafe(self._end, self.exit_status)


def named_folders(models: Sequence[str]) -> dict[str, Path]:
    """Find the folders to serve, by the names under which they are asked for.

    Args:
        models: each ``PATH`` or ``NAME=PATH``; a path that exists is one, whatever it contains.

    Raises:
        RunError: nothing complete is there.
        ConfigError: two have the same name.
    """
    found: dict[str, Path] = {}
    for model in models:
        name, _, path = model.partition("=")
        if not path or Path(model).exists():
            name, path = "", model
        folder = checkpoint_folder(Path(path))
        name = name or served_name(folder)
        if name in found:
            raise ConfigError(
                f"{found[name]} and {folder} are both called {name!r}",
                where="--model",
                remedy=f"name one of them: --model OTHER={folder}",
            )
        found[name] = folder
    return found


def serve(
    options: argparse.Namespace, wanted: dict[str, Path], bound: BoundSockets, ending: Ending
) -> int:
    """Load the models and answer requests until the end; give the exit status.

    Args:
        options: of the command line.
        wanted: folders by name.
        bound: where to serve.
        ending: says when to end.

    Raises:
        WorkbenchError: a model cannot be served.
    """
    known = []
    for name, folder in wanted.items():
        context, num_bytes = read_context(folder), weight_bytes(folder)
        tokenizer = load_tokenizer(folder)
        prompts = read_prompt_writer(folder, tokenizer, options.template, options.stop)
        known.append((name, folder, context, num_bytes, tokenizer, prompts))
    say("progress", stage="loading libraries")
    # Read when torch loads OpenMP: threads that spin while they wait would take the cores from a
    # training run on the same machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Mistakes found so far were cheap; torch and transformers take seconds to import.
    from workbench.inference.generate import Turns
    from workbench.inference.server import ServedModel

    turns = Turns()
    loads = []
    for name, folder, context, num_bytes, tokenizer, prompts in known:
        engine, engine_name = make_engine(options, folder, tokenizer, context, turns)
        served = ServedModel(
            name,
            context,
            engine,
            prompts,
            created=int(time.time()),
            truncates=options.overflow == "truncate",
        )
        loads.append(_Load(served, folder, num_bytes, engine_name))
    return asyncio.run(answer_requests(loads, bound, ending))


def make_engine(
    options: argparse.Namespace,
    folder: Path,
    tokenizer: Tokenizer,
    context: int,
    turns: "Turns",
) -> tuple["ReplyMaker", str]:
    """Make the engine that was asked for, not loaded yet; give it and its name.

    Raises:
        RefusedError: vLLM was asked for and is not installed.
    """
    import torch

    from workbench.inference.generate import Engine
    from workbench.inference.vllm_engine import VllmEngine, is_installed, require_vllm

    if options.engine == "vllm":
        require_vllm()
    is_gpu = torch.cuda.is_available() and options.device in ("auto", "cuda", "cuda:0")
    is_chosen = (
        options.engine == "auto"
        and is_gpu
        and is_installed()
        and suits_vllm(
            num_models=len(options.model),
            weight_bytes=weight_bytes(folder),
            free_bytes=torch.cuda.mem_get_info(0)[0],
            has_limit=options.memory is not None,
        )
    )
    if options.engine == "vllm" or is_chosen:
        vllm = VllmEngine(
            folder,
            tokenizer,
            options.device,
            options.dtype,
            context=context,
            most_rows=options.parallel,
            memory_gib=options.memory,
        )
        return vllm, "vllm"
    engine = Engine(
        folder,
        tokenizer,
        options.device,
        options.dtype,
        most_rows=options.parallel,
        turns=turns,
        memory_gib=options.memory,
        narrate=lambda words: say("progress", stage=words),
    )
    return engine, "transformers"


def suits_vllm(*, num_models: int, weight_bytes: int, free_bytes: int, has_limit: bool) -> bool:
    """Say whether vLLM, which takes nine tenths of a GPU, should serve where nobody chose.

    Not beside another model, not within a limit for weights, and not where weights and the keys
    and values of some replies do not fit: there the other engine shares them out.
    """
    return num_models == 1 and not has_limit and weight_bytes <= 0.8 * free_bytes


@dataclass(frozen=True)
class _Load:
    """A model to load, and what is said of it."""

    served: "ServedModel"
    folder: Path
    num_bytes: int
    engine_name: str

    def words(self) -> dict[str, object]:
        """Say what is served, once it is loaded."""
        served = self.served
        return {
            "model": served.name,
            "path": str(self.folder),
            "context": served.context,
            "device": served.engine.device,
            "dtype": served.engine.dtype,
            "engine": self.engine_name,
            "stop": served.prompts.stop_texts,
        }


async def answer_requests(loads: Sequence[_Load], bound: BoundSockets, ending: Ending) -> int:
    """Load, say that it is ready, answer until the end; give the exit status.

    Raises:
        WorkbenchError: a model cannot be loaded.
    """
    from workbench.inference.http_server import HttpServer
    from workbench.inference.server import create_app

    ending.watch_signals()
    told_to_end = asyncio.create_task(ending.wait())
    # One after the other: each sees what memory those before it have left.
    for load in loads:
        say("progress", stage="loading weights", bytes=load.num_bytes)
        loading = asyncio.create_task(load.served.engine.start())
        await asyncio.wait({loading, told_to_end}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            ending.leave_at_once(ending.exit_status)
        await loading

    token = made_token = None
    if bound.url is not None:
        token = os.environ.get(TOKEN_VARIABLE) or None
        if token is None:
            token = made_token = secrets.token_urlsafe(32)
    server = HttpServer(create_app([load.served for load in loads], token))
    serving = asyncio.create_task(server.serve(sockets=list(bound.sockets)))
    await server.is_listening.wait()
    first = loads[0].words()
    del first["engine"]
    say(
        "ready",
        **first,
        socket=str(bound.path),
        url=bound.url,
        token=made_token,
        models=[load.words() for load in loads],
    )
    await asyncio.wait({serving, told_to_end}, return_when=asyncio.FIRST_COMPLETED)
    engines = [load.served.engine for load in loads]
    for engine in engines:
        engine.cancel_all()
    server.should_exit = True
    await serving
    have_ended = [engine.close() for engine in engines]
    if not all(have_ended):
        ending.leave_at_once(ending.exit_status)
    return ending.exit_status


def served_name(folder: Path) -> str:
    """Name a model: its folder, for a checkpoint with the run's name before it."""
    folder = folder.resolve()
    if step_of(folder) is not None and folder.parent.name == "checkpoints":
        return f"{folder.parent.parent.name}/{folder.name}"
    return folder.name


def read_context(folder: Path) -> int:
    """Give the tokens that prompt and reply may have together: as many as positions reach to.

    Raises:
        RunError: config.json is missing or does not say it.
    """
    path = folder / "config.json"
    remedy = "name a model folder in Hugging Face layout"
    try:
        stated = read_json_object(path, RunError)
    except FileNotFoundError as error:
        raise RunError("is not there", where=str(path), remedy=remedy) from error
    context = stated.get("max_position_embeddings")
    with suppress(RunError):  # a family that is trained here; others transformers alone knows
        context = facts_of(stated, where=str(path)).longest_document or context
    if type(context) is not int or context < 2:
        raise RunError("says no max_position_embeddings", where=str(path), remedy=remedy)
    return context


def weight_bytes(folder: Path) -> int:
    """Sum the sizes of the weight files.

    Raises:
        RunError: there are none, one is missing, cut short, or lies outside of the folder.
    """
    files = find_weight_files(folder).files
    check_whole(files)
    return sum(file.stat().st_size for file in files)


class _News:
    """Where lines for whoever started this process go."""

    stream: TextIO = sys.stdout


def keep_stdout_for_news() -> None:
    """Let libraries, and processes that they start, print to stderr: vLLM logs to stdout."""
    _News.stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def say(type_: str, **fields: object) -> None:
    """Write one line of news for whoever started this process."""
    _News.stream.write(json.dumps({"type": type_, **fields}) + "\n")
    _News.stream.flush()


if __name__ == "__main__":
    keep_stdout_for_news()
    sys.exit(main(sys.argv[1:]))
