"""What resumes beside weights and statistics: counters, data position, random states.

Learning rate, rounding and the order of data are functions of the step, so counters suffice.
Invariant: restoring what was captured continues every random stream bit for bit.
"""

import base64
import math
import random
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

FORMAT_VERSION = 1


class SavedState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of training_state/state.json."""

    version: int
    step: int
    tokens: int
    target_tokens: int
    epoch: float
    data_position: int  # index of the next step in the order of the loader
    rounding_counter: int  # the step that the last update's random bits were made from
    steps_per_epoch: int
    previous_gradient_norm: float | None


@dataclass
class TrainingState:
    """How far the run is; only the loop changes it.

    Attributes:
        step: optimizer steps taken, skipped ones included.
        tokens: tokens that attention saw.
        target_tokens: tokens whose prediction counted.
        epoch: passes over the training rows.
    """

    step: int = 0
    tokens: int = 0
    target_tokens: int = 0
    epoch: float = 0.0

    @classmethod
    def from_saved(cls, saved: SavedState) -> "TrainingState":
        """Go on from what a checkpoint kept."""
        return cls(saved.step, saved.tokens, saved.target_tokens, saved.epoch)

    def to_saved(self, *, steps_per_epoch: int, previous_norm: torch.Tensor | None) -> SavedState:
        """Give what a checkpoint keeps.

        Args:
            steps_per_epoch: of the loader; a resume refuses data that give another number.
            previous_norm: () gradient norm that the next step would clip by, or None.
        """
        return SavedState(
            version=FORMAT_VERSION,
            step=self.step,
            tokens=self.tokens,
            target_tokens=self.target_tokens,
            epoch=self.epoch,
            data_position=self.step,
            rounding_counter=self.step,
            steps_per_epoch=steps_per_epoch,
            previous_gradient_norm=None if previous_norm is None else float(previous_norm),
        )


def total_steps(epochs: float, steps_per_epoch: int, max_steps: int | None) -> int:
    """Give the steps of a whole run: what the epochs come to, rounded up, and no more than allowed.

    Args:
        epochs: passes over the rows; 1.5 of 10 steps are 15.
        steps_per_epoch: of the loader.
        max_steps: None sets no bound.
    """
    # 0.07 x 100 is a hair above 7 in binary, and no eighth step for that.
    by_epochs = max(1, math.ceil(round(epochs * steps_per_epoch, 6)))
    return min(by_epochs, max_steps or by_epochs)


def capture_random_states(device: torch.device) -> bytes:
    """Give the states of python's, numpy's, torch's and the GPU's generators as JSON."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _encode(torch.get_rng_state()),
    }
    if device.type == "cuda":
        states["cuda"] = _encode(torch.cuda.get_rng_state(device))
    return msgspec.json.encode(states)


def restore_random_states(content: bytes, device: torch.device) -> None:
    """Set every generator to what ``capture_random_states`` found.

    A state for the GPU is left aside where the run goes on without one, and the other way round.
    """
    states = msgspec.json.decode(content)
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_decode(states["torch"]))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_decode(states["cuda"]), device)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
