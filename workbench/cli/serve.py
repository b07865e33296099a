"""``workbench serve``: serve a model with the OpenAI protocol, in the foreground.

The model runs in a process of its own, which ends with this one. Invariant: the token is printed
only if it was made for this server, and only once.
"""

import argparse
import asyncio
import signal
from contextlib import aclosing
from pathlib import Path

import msgspec

from workbench.cli import output
from workbench.cli.config_arguments import examples_text, typed_model
from workbench.errors import RunError
from workbench.jobs.inference_process import InferenceProcess, Ready, ServerOptions
from workbench.runs.checkpoints import checkpoint_folder
from workbench.runs.layout import step_of

DESCRIPTION = """\
Serve models with the OpenAI protocol: /v1/models, /v1/chat/completions, /v1/completions, /health.
On a Unix socket for yourself, where `workbench chat` finds it, and on TCP for whoever has the token
(from WORKBENCH_TOKEN, else made and printed once).
"""


EXAMPLES = (
    ("serve -m output/demo-1", "the newest complete checkpoint of a run"),
    ("serve -m ~/models/mistral_7b -d cuda:0 -p 8001", "a model folder, on another port"),
    ("serve -m base=~/models/mistral_7b -m tuned=output/demo-1", "two models, side by side"),
)


def run(arguments: list[str]) -> int:
    """Serve until Ctrl-C (exit status 130), or until the server ends."""
    options = parse(arguments)
    try:
        return asyncio.run(_serve(options, as_json=options.json))
    except KeyboardInterrupt:
        output.narrate("stopped")
        return 130


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="workbench serve",
        description=DESCRIPTION,
        epilog=examples_text(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-m",
        "--model",
        action="append",
        default=[],
        metavar="MODEL",
        help="model folder, checkpoint, or run (its newest complete checkpoint); NAME=MODEL names"
        " it; again for another beside it",
    )
    parser.add_argument(
        "-c",
        "--from-checkpoint",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="PATH",
        help="the newest complete checkpoint of MODEL, or the checkpoint or run at PATH",
    )
    parser.add_argument(
        "-d", "--device", default="auto", help="auto (default), cpu, cuda or cuda:N"
    )
    parser.add_argument(
        "-t", "--template", metavar="NAME", help="chat template: name or file; default: the model's"
    )
    parser.add_argument(
        "-T",
        "--dtype",
        default="auto",
        choices=["auto", "bfloat16", "float16", "float32"],
        help="precision; auto (default): as the weights are stored",
    )
    parser.add_argument(
        "-s", "--stop", nargs="+", action="extend", default=[], help="texts that end every reply"
    )
    parser.add_argument(
        "--overflow",
        default="refuse",
        choices=["refuse", "truncate"],
        help="a prompt longer than the context: refuse (default), or leave out what is oldest",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=["auto", "transformers", "vllm"],
        help="auto (default): vLLM where it is installed and there is a GPU",
    )
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="replies made at the same time; default: 32"
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="weights of a model take no more of the device, the rest lies in host memory;"
        " default: as much as is free",
    )
    parser.add_argument("-H", "--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument(
        "-p", "--port", type=_port, default=8000, help="default: 8000; 0 takes a free one"
    )
    parser.add_argument("--json", action="store_true", help="say where it serves as one JSON line")
    options = parser.parse_args(arguments)
    if not options.model and options.from_checkpoint in (None, Path()):
        parser.error("name what to serve: -m MODEL, or -c PATH")
    if options.from_checkpoint not in (None, Path()) and options.model:
        parser.error("-c PATH names the weights by itself: leave out -m, or the path behind -c")
    if not all(options.stop):
        parser.error("-s wants texts that are not empty")
    if options.parallel is not None and options.parallel < 1:
        parser.error("--parallel wants at least 1")
    if options.memory is not None and not options.memory >= 0:
        parser.error("--memory wants a size in GiB")
    return options


async def _serve(options: argparse.Namespace, *, as_json: bool) -> int:
    typed = options.model or [str(options.from_checkpoint)]
    first, *others = [_wanted(text, options.from_checkpoint is not None) for text in typed]
    task = asyncio.current_task()
    assert task is not None
    # A plain kill ends like Ctrl-C: the server goes first, and its socket with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    server = await InferenceProcess.spawn(
        ServerOptions(
            model=first[1],
            name=first[0],
            others=tuple(str(path) if name is None else f"{name}={path}" for name, path in others),
            overflow=options.overflow,
            engine=options.engine,
            parallel=options.parallel,
            memory_gib=options.memory,
            device=options.device,
            dtype=options.dtype,
            template=options.template,
            stop=tuple(options.stop),
            host=options.host,
            port=options.port,
        ),
        inherit_stderr=True,
    )
    try:
        async with aclosing(server.updates()) as updates:
            async for progress in updates:
                size = f" ({progress.bytes / 1e9:,.1f} GB)" if progress.bytes else ""
                output.narrate(f"{progress.stage}{size} …")
        if as_json:
            output.result_json(_as_json(server.ready))
        else:
            output.result("\n".join(_lines(server.ready)))
        status = await server.wait()
    except asyncio.CancelledError:
        # As when the model was being loaded: whoever asked to stop is not told off.
        raise KeyboardInterrupt from None
    finally:
        await server.stop()
    output.narrate(f"the server has ended with status {status}")
    return 1


def _wanted(text: str, is_checkpoint: bool) -> tuple[str | None, Path]:
    """Read ``MODEL`` or ``NAME=MODEL``; give the name, if any, and the folder.

    Raises:
        RunError: nothing is there, or with ``is_checkpoint`` nothing complete.
    """
    name, _, rest = text.partition("=")
    is_named = bool(name and rest) and not Path(text).expanduser().exists()
    path = typed_model(rest if is_named else text, "model")
    if is_checkpoint:
        path = checkpoint_of(path)
        output.narrate(f"newest complete checkpoint: {path}")
    return (name if is_named else None), path


def checkpoint_of(path: Path) -> Path:
    """Find the checkpoint that ``-c`` means.

    Raises:
        RunError: nothing complete is there, or the folder is a model and no run.
    """
    folder = checkpoint_folder(path)
    if step_of(folder.resolve()) is None:
        raise RunError(
            "is a model folder, without checkpoints",
            where=str(path),
            remedy="leave out -c to serve it, or name a run or a checkpoint",
        )
    return folder


def _lines(ready: Ready) -> list[str]:
    lines = []
    for served in ready.models:
        lines += [
            f"serving  {served.model}, {served.context:,} tokens of context, {served.dtype} on"
            f" {served.device}, by {served.engine}",
            f"folder   {served.path}",
            f"stops    {' '.join(repr(text) for text in served.stop) or 'at its limit only'}",
        ]
    lines += [f"socket   {ready.socket}", f"url      {ready.url}"]
    lines.append(f"token    {ready.token or 'as in WORKBENCH_TOKEN'}")
    return lines


def _as_json(ready: Ready) -> dict[str, object]:
    content: dict[str, object] = msgspec.to_builtins(ready)
    del content["type"]
    return content


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError("a port is between 0 and 65535")
    return port
