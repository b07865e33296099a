"""Small choices that survive the program: screen, filter, theme; one atomic file.

Invariant: losing the file loses no run, and a broken one is replaced, never an error.
"""

from pathlib import Path

import msgspec

from workbench.runs.atomic import write_atomically


class Remembered(msgspec.Struct, kw_only=True):
    """What is kept between two starts; unknown fields of another version are passed over."""

    screen: str = ""
    config: str = ""
    config_filter: str = ""
    job: str = ""
    theme: str = ""
    made_models: list[str] = []


def read_remembered(state_folder: Path) -> Remembered:
    """Give what the last start left, or defaults where there is nothing readable."""
    try:
        return msgspec.json.decode(_file(state_folder).read_bytes(), type=Remembered)
    except (OSError, msgspec.DecodeError):
        return Remembered()


def write_remembered(state_folder: Path, remembered: Remembered) -> None:
    """Keep the choices for the next start.

    Raises:
        OSError: the folder cannot be written.
    """
    state_folder.mkdir(parents=True, exist_ok=True)
    write_atomically(_file(state_folder), msgspec.json.encode(remembered))


def _file(state_folder: Path) -> Path:
    return state_folder / "tui.json"
