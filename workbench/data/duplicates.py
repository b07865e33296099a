"""Conversations that occur more than once, and those that are both trained on and evaluated on.

Keeps a hash of each conversation and where it stood, not its text. Invariant: what is found does
not depend on how many processes read the data, only on the order in which it is asked.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Literal

from workbench.data.findings import Finding
from workbench.data.formats import Conversation

Split = Literal["train", "validation", "test"]

DUPLICATE = "duplicate"
LEAKAGE = "leakage"


@dataclass
class Duplicates:
    """What has been seen so far: 16 bytes of hash for each conversation, its place and split."""

    _first: dict[bytes, tuple[str, Split]] = field(default_factory=dict)

    def seen(self, conversation: Conversation, split: Split) -> tuple[str, Finding] | None:
        """Keep a conversation in mind, and say if the very same was there before.

        Args:
            conversation: whose roles, texts and ``train`` marks count; its place does not.
            split: to which it belongs.

        Returns:
            The finding and its kind: ``LEAKAGE`` where one of the two is trained on and the other
            is not, ``DUPLICATE`` otherwise, each naming the first occurrence; or None.
        """
        return self.seen_hash(digest(conversation), conversation.where, split)

    def seen_hash(self, hashed: bytes, where: str, split: Split) -> tuple[str, Finding] | None:
        """As ``seen``, of a conversation that only its hash and place are left of.

        Args:
            hashed: by ``digest``.
            where: it stands.
            split: to which it belongs.
        """
        earlier = self._first.setdefault(hashed, (where, split))
        if earlier == (where, split):
            return None
        first_where, first_split = earlier
        if (first_split == "train") == (split == "train"):
            what = f"is the same conversation as {first_where}"
            remedy = "remove one of them, unless it shall count twice"
            return DUPLICATE, Finding("warning", where, what, remedy)
        held_out, trained = (where, first_where) if first_split == "train" else (first_where, where)
        name = split if first_split == "train" else first_split
        return LEAKAGE, Finding(
            "warning",
            held_out,
            f"is held out for {name}, and the same conversation is trained on: {trained}",
            "remove one of them, or its losses look better than they are",
        )


def digest(conversation: Conversation) -> bytes:
    """Give 16 bytes that two conversations share only if they say the same."""
    hashed = hashlib.blake2b(digest_size=16)
    if conversation.text is not None:
        hashed.update(b"text")
        hashed.update(conversation.text.encode())
    for message in conversation.messages:
        content = message.content.encode()
        hashed.update(struct.pack("<?Q", message.train, len(content)))
        hashed.update(message.role.encode())
        hashed.update(content)
    return hashed.digest()
