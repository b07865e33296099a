"""The block inputs of a step, kept until backward recomputes from them.

This form keeps them where they were made, on the device of the engine. Invariant: an input is kept
once and taken once per step.
"""

from torch import Tensor


class BlockInputs:
    """Inputs by (block, microbatch); ``take`` hands one over and forgets it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Tensor] = {}

    def keep(self, block: int, microbatch: int, x: Tensor) -> None:
        """Hold the input (rows, length, hidden) of a block until backward."""
        self._kept[block, microbatch] = x

    def prefetch(self, block: int) -> None:
        """Announce that the inputs of ``block`` are taken next; here they are at hand."""

    def take(self, block: int, microbatch: int) -> Tensor:
        """Give a kept input and let go of it."""
        return self._kept.pop((block, microbatch))

    def clear(self) -> None:
        """Let go of all inputs, after a forward without its backward."""
        self._kept.clear()
