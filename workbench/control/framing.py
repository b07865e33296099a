"""One JSON object per line, at most 1 MiB; NaN and infinity become null.

Knows nothing of what the messages mean. Invariant: a frame never contains a newline before its end.
"""

import math
from typing import Any, TypeVar

import msgspec

from workbench.errors import ControlError

MAX_LINE_BYTES = 1 << 20

T = TypeVar("T")

_encoder = msgspec.json.Encoder()


def finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give ``value`` with every NaN and infinity inside it as None: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def encode(message: msgspec.Struct) -> bytes:
    """Write a message as one line.

    Raises:
        ControlError: the line is longer than ``MAX_LINE_BYTES``.
    """
    # msgspec writes NaN as null by itself, at any depth.
    line = _encoder.encode(message) + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ControlError(
            f"a message of {len(line):,} bytes is over the limit of {MAX_LINE_BYTES:,}",
            where="control socket",
            remedy="read the file it quotes instead",
        )
    return line


def decoder(union: type[T]) -> msgspec.json.Decoder[T]:
    """Make a strict decoder for one direction of the protocol."""
    return msgspec.json.Decoder(union)
