"""What the two sides of a comparison do, as it is heard from them; which of them stands left.

A *side* is 0 or 1, the order in which the models were picked; a *place* is 0 at the left and 1 at
the right, which are called A and B. Knows no widget.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from workbench.errors import WorkbenchError
from workbench.tui.chat.model_server import stage_of
from workbench.tui.chat.side_pane import LETTERS, SideState
from workbench.tui.widgets.model_list import ModelRow

if TYPE_CHECKING:
    from workbench.jobs.conversation import Turn
    from workbench.jobs.side_by_side import Heard, SideBySide


class Sides:
    """A pair of models, and what each of them does.

    Args:
        pair: the models and what has been said with each.
        rows: how they are named.
    """

    def __init__(self, pair: "SideBySide", rows: tuple[ModelRow, ModelRow]) -> None:
        self.pair = pair
        self.rows = rows
        self.left = 0
        self._states = [SideState(), SideState()]

    def side_at(self, place: int) -> int:
        """Give the side that stands at a place."""
        return place ^ self.left

    def swap(self) -> None:
        """Put the left side to the right and the right one to the left."""
        self.left = 1 - self.left
        for side, state in enumerate(self._states):
            if state.doing == "waiting":
                self._wait(side)

    def is_of(self, first: ModelRow, second: ModelRow) -> bool:
        """Whether these are the models."""
        return [row.path for row in self.rows] == [first.path, second.path]

    # ---- what they do ------------------------------------------------------------------

    def begin_to_wait(self) -> None:
        """Both are asked, and neither has begun."""
        for side in (0, 1):
            self._wait(side)

    def take(self, heard: "Heard") -> None:
        """Note what a side did."""
        state = self._states[heard.side]
        if heard.progress is not None:
            state = SideState("loading", stage_of(heard.progress))
        elif heard.failure is not None:
            error = heard.failure
            state = SideState(
                "failed", error.what if isinstance(error, WorkbenchError) else str(error)
            )
        elif heard.piece is not None:
            state = SideState("answering")
        self._states[heard.side] = state

    def stop_waiting(self, side: int) -> None:
        """A side that has not begun does not answer any more."""
        if self._states[side].doing in ("loading", "waiting"):
            self._states[side] = SideState("ended", "stopped")

    def state_at(self, place: int) -> SideState:
        """Give what the side at a place does, with the numbers of its last answer."""
        side = self.side_at(place)
        state = self._states[side]
        answer = self.pair.conversations[side].last
        if answer is None or answer.role != "assistant" or state.doing in ("loading", "waiting"):
            return state
        state = replace(state, num_tokens=answer.num_tokens, seconds=answer.seconds)
        if not answer.ended:
            return replace(state, doing="answering")
        if state.doing == "failed":
            return state
        return replace(state, doing="ended", text=answer.ended)

    def busy_place(self, picked: int) -> int | None:
        """Give the place of a side that is at it, the picked one first; None: neither is."""
        for place in (picked, 1 - picked):
            if self.pair.is_busy(self.side_at(place)):
                return place
        return None

    def _wait(self, side: int) -> None:
        other = LETTERS[1 - self.side_at(side)]
        text = "waiting" if self.pair.answers_at_once else f"waiting for {other}"
        self._states[side] = SideState("waiting", text)

    # ---- what they said ----------------------------------------------------------------

    @property
    def are_asked(self) -> bool:
        """There is a message that both can answer again."""
        return all(each.question is not None for each in self.pair.conversations)

    @property
    def are_unanswered(self) -> bool:
        """Neither has said a word to the last message."""
        lasts = [each.last for each in self.pair.conversations]
        return all(last is not None and last.role == "user" for last in lasts)

    @property
    def answers(self) -> "tuple[Turn, Turn] | None":
        """The last answers by side, where both sides have given one."""
        first, second = (each.last for each in self.pair.conversations)
        is_said = all(
            each is not None and each.role == "assistant" and each.ended and each.text.strip()
            for each in (first, second)
        )
        return cast("tuple[Turn, Turn]", (first, second)) if is_said else None

    @property
    def last_seed(self) -> int | None:
        """The seed of the last answers."""
        answers = [each.last for each in self.pair.conversations]
        seeds = [each.seed for each in answers if each is not None]
        return next((seed for seed in seeds if seed is not None), None)

    def forget_unanswered(self) -> None:
        """Take the last message away from both."""
        for conversation in self.pair.conversations:
            if conversation.question is not None:
                conversation.drop(conversation.question)
