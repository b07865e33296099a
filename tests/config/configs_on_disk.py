"""Writes small config files for a test."""

import textwrap
from pathlib import Path


def write_configs(folder: Path, files: dict[str, str]) -> Path:
    """Write files by name below ``folder``, their common indentation taken out; give ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content).lstrip("\n"))
    return folder
