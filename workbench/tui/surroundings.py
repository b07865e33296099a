"""What the program takes from outside itself, in one record, so that a test can set all of it.

Knows nothing of screens. Invariant: making one opens no file and starts no process.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from workbench import __version__
from workbench.runs.registry import state_folder


@dataclass(frozen=True)
class Surroundings:
    """Clock, host, folders and manners.

    Attributes:
        project: folder whose ``configs/`` and ``output/`` are shown.
        state_folder: where remembered choices are kept.
        host: name of this machine, as the header shows it.
        version: version of the program.
        clock: UTC epoch seconds.
        stopwatch: seconds that never jump, for ages and guards.
        readonly: refuse everything that touches jobs or files.
        ascii: draw with ASCII characters only.
        colour: emit colours at all.
        light: begin with the light theme.
        frames_per_second: redraws of live data at most.
        guard_seconds: how long a new dialog ignores keys.
        poll_seconds: how often the registry is read.
        still: no blinking and no spinner, for pictures.
        free_bytes: of the disk that a folder lies on.
    """

    project: Path = field(default_factory=Path.cwd)
    state_folder: Path = field(default_factory=state_folder)
    host: str = field(default_factory=lambda: socket.gethostname().split(".")[0])
    version: str = __version__
    clock: Callable[[], float] = time.time
    stopwatch: Callable[[], float] = time.monotonic
    readonly: bool = False
    ascii: bool = False
    colour: bool = field(default_factory=lambda: not os.environ.get("NO_COLOR"))
    light: bool = False
    frames_per_second: float = field(
        default_factory=lambda: 1.0 if os.environ.get("SSH_CONNECTION") else 4.0
    )
    guard_seconds: float = 0.25
    poll_seconds: float = 1.0
    still: bool = False
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
