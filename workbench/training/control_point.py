"""All ranks learn of commands at the same step.

Rank 0 drains its queue into one 64-bit integer of flags, which is broadcast on the CPU group; with
one rank that costs nothing. Who asked, and under which number, stays on rank 0. Invariant: every
rank sees the same flags after each call.
"""

import enum
import queue

from workbench.control.messages import Evaluate, Hello, Pause, Resume, Save, Stop, ToPublisher
from workbench.training.distributed import Ranks

Wish = ToPublisher | None
"""A command; None says that the supervisor is gone."""


class Flag(enum.IntFlag):
    """What is wanted at the next step boundary, as bits of one integer."""

    NONE = 0
    SAVE = 1
    EVALUATE = 2
    PAUSE = 4
    RESUME = 8
    STOP = 16
    STOP_WITHOUT_SAVE = 32
    ABANDONED = 64


class ControlPoint:
    """Gathers wishes until the loop takes them.

    Args:
        ranks: who broadcasts to whom.
        wishes: filled by the publisher's thread; read on rank 0 only.
    """

    def __init__(self, ranks: Ranks, wishes: "queue.SimpleQueue[Wish]") -> None:
        self._ranks, self._wishes = ranks, wishes
        self._put_back: Wish = None
        self._has_put_back = False
        self._numbers: dict[Flag, list[int]] = {}
        self.pending = Flag.NONE
        """Flags agreed on and not taken yet; the same on every rank."""

    def agree(self) -> Flag:
        """Let all ranks learn what was wished so far; give everything pending."""
        return self._agree(first=self._next(timeout=None))

    def wait(self, seconds: float) -> Flag:
        """Agree as soon as something is wished, or after ``seconds``; give everything pending."""
        return self._agree(first=self._next(timeout=seconds))

    def take(self, flag: Flag) -> list[int]:
        """Take a flag from the pending ones; give the numbers of its commands (rank 0)."""
        self.pending &= ~flag
        return self._numbers.pop(flag, [])

    def _agree(self, first: tuple[Wish] | None) -> Flag:
        flags = Flag.NONE
        item = first
        while item is not None:
            wish = item[0]
            if isinstance(wish, Resume) and Flag.PAUSE in (flags | self.pending):
                # Both at once would lose their order: the pause is held first, then ended.
                self._put_back, self._has_put_back = wish, True
                break
            flags |= self._note(wish)
            item = self._next(timeout=None)
        self.pending |= Flag(self._ranks.from_first(int(flags)))
        return self.pending

    def _next(self, timeout: float | None) -> tuple[Wish] | None:
        if self._ranks.rank != 0:
            return None
        if self._has_put_back:
            self._has_put_back = False
            return (self._put_back,)
        try:
            if timeout is None:
                return (self._wishes.get_nowait(),)
            return (self._wishes.get(timeout=timeout),)
        except queue.Empty:
            return None

    def _note(self, wish: Wish) -> Flag:
        flag = _flag_of(wish)
        if wish is not None and not isinstance(wish, Hello):
            self._numbers.setdefault(flag & ~Flag.STOP_WITHOUT_SAVE, []).append(wish.id)
        return flag


def _flag_of(wish: Wish) -> Flag:
    match wish:
        case Save():
            return Flag.SAVE
        case Evaluate():
            return Flag.EVALUATE
        case Pause():
            return Flag.PAUSE
        case Resume():
            return Flag.RESUME
        case Stop(save=True):
            return Flag.STOP
        case Stop():
            return Flag.STOP | Flag.STOP_WITHOUT_SAVE
        case None:
            return Flag.STOP | Flag.ABANDONED
        case Hello():
            return Flag.NONE
