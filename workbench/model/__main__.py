"""``python -m workbench.model MODE``: one short task over model folders, asked for on stdin.

The first line of standard input is the request, as JSON. What happens is said on stdout, one JSON
record per line, as ``control/publish_records`` describes. Invariant: the process ends when its
stdin closes; what it was writing keeps the name ``.partial`` then.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from workbench.config.added_tokens_file import AddedTokens
from workbench.control.publish_records import (
    AnyRecord,
    Converted,
    Done,
    Fetched,
    Notice,
    Planned,
    Progress,
    Published,
    Refused,
    Verified,
)
from workbench.errors import ConfigError, WorkbenchError

_LEFT_ALONE = 130
_TELL_SECONDS = 0.2

T = TypeVar("T")


class FinalizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Publish a checkpoint.

    Attributes:
        folders: the checkpoint; further ones are what other hosts hold of it.
        destination: a folder that is not there yet.
        gguf: also write a GGUF file of this type.
    """

    folders: list[Path]
    destination: Path
    gguf: str | None = None


class ConvertRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Prepare a model; None leaves a thing as it is.

    Attributes:
        source: a model folder.
        destination: a folder that is not there yet; None plans alone.
        dtype: of all weights.
        max_length: longest document, tokens.
        template: Jinja source of a chat template.
        added: tokens.
        max_shard_bytes: no file of weights holds more; None: as is usual.
    """

    source: Path
    destination: Path | None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_length: int | None = None
    template: str | None = None
    added: AddedTokens | None = None
    max_shard_bytes: int | None = None


class FetchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Download a model of the hub into the cache of its library."""

    hub_id: str


class VerifyRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Compare our logits of a model folder with those of transformers."""

    folder: Path


def main(arguments: Sequence[str]) -> int:
    """Run one of this package's tasks; give its exit status."""
    modes: dict[str, Callable[[str], None]] = {
        "convert": _convert,
        "fetch": _fetch,
        "finalize": _finalize,
        "verify": _verify,
    }
    if len(arguments) != 1 or arguments[0] not in modes:
        sys.stderr.write(
            f"usage: python -m workbench.model {'|'.join(modes)}, a request on stdin\n"
        )
        return 2
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        line = sys.stdin.readline()
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        modes[arguments[0]](line)
        say(Done())
        return 0
    except WorkbenchError as error:
        say(
            Refused(
                where=error.where,
                what=error.what,
                remedy=error.remedy,
                exit_status=error.exit_status,
            )
        )
        return 2
    except BrokenPipeError:
        os._exit(_LEFT_ALONE)


def _finalize(line: str) -> None:
    from workbench.model.finalize import finalize

    request = read_request(line, FinalizeRequest)
    made = finalize(
        request.folders,
        request.destination,
        gguf=request.gguf,
        tell=Teller(),
        warn=lambda what, remedy: say(Notice(what=what, remedy=remedy)),
    )
    say(
        Published(
            path=str(made.path),
            step=made.step,
            bytes=made.bytes,
            files={name: written.sha256 for name, written in made.files.items()},
            stop_ids=made.stop_ids,
            difference=made.difference,
            reference_difference=made.reference_difference,
            gguf=made.gguf,
        )
    )


def _convert(line: str) -> None:
    from workbench.model.conversion_plan import DTYPES, Wish, plan_conversion
    from workbench.model.convert import convert
    from workbench.model.safetensors_writer import MAX_SHARD_BYTES

    request = read_request(line, ConvertRequest)
    wish = Wish(
        dtype=None if request.dtype is None else DTYPES[request.dtype],
        max_length=request.max_length,
        template=request.template,
        added=request.added,
    )
    conversion = plan_conversion(request.source, wish)
    say(
        Planned(
            source=str(request.source),
            changes=list(conversion.changes),
            notices=list(conversion.notices),
            bytes=conversion.num_bytes,
            vocabulary_size=conversion.vocabulary_size,
        )
    )
    if request.destination is None:
        return
    max_shard_bytes = request.max_shard_bytes or MAX_SHARD_BYTES
    made = convert(conversion, request.destination, max_shard_bytes, tell=Teller())
    say(
        Converted(
            path=str(made.path),
            bytes=made.bytes,
            files={name: written.sha256 for name, written in made.files.items()},
            difference=made.difference,
            rounding=made.rounding,
        )
    )


def _fetch(line: str) -> None:
    from workbench.data.hub import fetch_model

    say(Fetched(path=str(fetch_model(read_request(line, FetchRequest).hub_id))))


def _verify(line: str) -> None:
    from workbench.model.finalize import difference_from_reference

    request = read_request(line, VerifyRequest)
    say(Verified(path=str(request.folder), difference=difference_from_reference(request.folder)))


# ---- the pipe ------------------------------------------------------------------------------------


def read_request(line: str, kind: type[T]) -> T:
    """Read what is asked for.

    Raises:
        ConfigError: the line is no such request.
    """
    try:
        return msgspec.json.decode(line, type=kind, dec_hook=_decoded)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"the request is not one: {error}",
            where="standard input",
            remedy="send it as one line of JSON",
        ) from error


def _decoded(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} is in no request")


def say(record: AnyRecord) -> None:
    """Write one record."""
    sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")
    sys.stdout.buffer.flush()


class Teller:
    """Says how far a stage is, at most a few times a second, and always where it begins or ends."""

    def __init__(self) -> None:
        self._stage = ""
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take a report; it may come from any thread, one at a time."""
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < _TELL_SECONDS:
            return
        self._stage, self._last = stage, now
        say(Progress(stage=stage, done=done, total=total))


def _end_with_stdin() -> None:
    """Leave at once when nobody is there any more."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(_LEFT_ALONE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
