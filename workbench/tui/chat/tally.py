"""Votes on the answers of two models, counted; each pair of answers has one vote at most."""

from textual.content import Content

from workbench.tui import keys
from workbench.tui.chat.side_pane import LETTERS

VOTE_ROWS = ("vote_left", "vote_right", "vote_tie")


class Tally:
    """Votes for either model, 0 or 1, and ties."""

    def __init__(self) -> None:
        self._votes: dict[object, int | None] = {}

    def note(self, answers: object, better: int | None) -> None:
        """Take a vote; on answers that were voted on before, in the place of that vote.

        Args:
            answers: what was voted on.
            better: the model whose answer is better, None for a tie.
        """
        self._votes[answers] = better

    def line(self, left: int, *, can_vote: bool) -> Content:
        """Give the keys that vote, and how it stands.

        Args:
            left: the model at the left, which is A.
            can_vote: there are answers to vote on.
        """
        style = "bold $primary" if can_vote else "$quiet"
        parts: list[tuple[str, str]] = [(" better ", "$quiet")]
        for row_id, name in zip(VOTE_ROWS, (*LETTERS, "tie"), strict=True):
            parts += [(f" {keys.hint(row_id)} ", style), (f"{name} ", "" if can_vote else "$quiet")]
        if self._votes:
            votes = list(self._votes.values())
            ties = votes.count(None)
            tied = f", {ties} tied" if ties else ""
            parts.append(
                (f"  A {votes.count(left)} – {votes.count(1 - left)} B{tied}", "$secondary")
            )
        return Content.assemble(*parts)
