"""Hashes of checkpoints, compared one folder after the other in a worker thread.

Knows manifests, no screen. Invariant: what was found holds for the manifest it was found with; a
folder that was saved anew is not verified.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.errors import RunError
from workbench.runs.layout import CheckpointFolder
from workbench.runs.manifest import verifying


@dataclass(frozen=True)
class Verification:
    """What became of comparing the hashes of one folder.

    Attributes:
        state: where it stands.
        share: of its bytes that have been read.
        num_files: that were compared, once it is whole.
        problem: what differs, "" where nothing does.
        at: when that was found, epoch seconds.
        stamp: of the manifest it holds for.
    """

    state: Literal["waiting", "reading", "whole", "damaged"]
    share: float = 0.0
    num_files: int = 0
    problem: str = ""
    at: float = 0.0
    stamp: int = 0

    @property
    def is_under_way(self) -> bool:
        """Whether it is being read or waits for its turn."""
        return self.state in ("waiting", "reading")


class Verifications:
    """What has been verified since the program began, and what waits for it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._found: dict[Path, Verification] = {}
        self._waiting: deque[tuple[Path, int]] = deque()
        self._unwanted: set[Path] = set()
        self._guard = threading.Lock()
        self._is_running = False

    def of(self, folder: Path, stamp: int) -> Verification | None:
        """Give what is known of a folder; None where it has not been verified as it is now.

        Args:
            folder: that was added.
            stamp: of its manifest, as it was last read; no file is looked at here.
        """
        found = self._found.get(folder)
        if found is None or found.is_under_way:
            return found
        return found if found.stamp == stamp else None

    def is_under_way(self, folder: Path) -> bool:
        """Say whether a folder is being read or waits for its turn."""
        found = self._found.get(folder)
        return found is not None and found.is_under_way

    @property
    def num_under_way(self) -> int:
        """How many folders are being read or wait for it."""
        return sum(each.is_under_way for each in list(self._found.values()))

    def add(self, folder: Path, num_bytes: int) -> bool:
        """Put a folder behind those that wait; True where somebody has to call ``run``."""
        with self._guard:
            self._unwanted.discard(folder)
            self._found[folder] = Verification("waiting")
            self._waiting.append((folder, num_bytes))
            has_to_run, self._is_running = not self._is_running, True
            return has_to_run

    def stop(self, folder: Path) -> None:
        """Let a folder go that waits or is being read; it is as if nobody had asked."""
        with self._guard:
            self._unwanted.add(folder)
            self._found.pop(folder, None)

    def run(self, tell: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Compare what waits until nothing does; blocks, so never on the loop.

        Args:
            tell: called whenever there is news.
            is_over: asked between pieces; once it is true all is left as it is.
        """
        while not is_over():
            with self._guard:
                if not self._waiting:
                    self._is_running = False
                    return
                folder, num_bytes = self._waiting.popleft()
                if folder in self._unwanted:
                    continue
            self._verify(folder, max(num_bytes, 1), tell, is_over)
            tell()

    def _verify(
        self, folder: Path, num_bytes: int, tell: Callable[[], None], is_over: Callable[[], bool]
    ) -> None:
        stamp, told = manifest_stamp(folder), -1
        steps = verifying(folder)
        with closing(steps):
            try:
                while True:
                    share = min(next(steps) / num_bytes, 1.0)
                    if is_over() or not self._put(folder, Verification("reading", share)):
                        return
                    if int(100 * share) != told:
                        told = int(100 * share)
                        tell()
            except StopIteration as end:
                found = Verification("whole", 1.0, len(end.value.files), stamp=stamp)
            except RunError as error:
                found = Verification("damaged", problem=error.what, stamp=stamp)
            except OSError as error:
                why = f"cannot be read: {error.strerror or error}"
                found = Verification("damaged", problem=why, stamp=stamp)
        at = self._clock()
        self._put(
            folder,
            Verification(found.state, found.share, found.num_files, found.problem, at, stamp),
        )

    def _put(self, folder: Path, found: Verification) -> bool:
        """Note what is known; False where nobody wants to know."""
        with self._guard:
            if folder in self._unwanted:
                return False
            self._found[folder] = found
            return True


def manifest_stamp(folder: Path) -> int:
    """Give what changes when the manifest of a folder is written anew, 0 without one."""
    try:
        return CheckpointFolder(folder).manifest.stat().st_mtime_ns
    except OSError:
        return 0
