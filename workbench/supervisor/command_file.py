"""command.json: the command line that a supervisor starts, and what it says of restarts."""

import msgspec

from workbench.errors import RunError
from workbench.runs.layout import RunFolder


class TorchrunCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of command.json: the whole command line, and what is added to the environment."""

    arguments: list[str]
    environment: dict[str, str]


def read_command(run: RunFolder) -> TorchrunCommand:
    """Read command.json.

    Raises:
        RunError: it is missing or is none.
    """
    try:
        return msgspec.json.decode(run.command.read_bytes(), type=TorchrunCommand)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot be read: {error}",
            where=str(run.command),
            remedy="start the run with workbench train",
        ) from error


def allows_restarts(arguments: list[str]) -> bool:
    """Tell whether torchrun will start the ranks again after a failure."""
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name.replace("_", "-") == "--max-restarts":
            value = value or (arguments[index + 1] if index + 1 < len(arguments) else "0")
            return value.isdigit() and int(value) > 0
    return False
