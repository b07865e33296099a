"""Conversations to text, ids and loss mask, by the one renderer of training, checking and serving.

Templates are data from strangers: they run in a sandbox (``jinja_sandbox``), with the settings and
helpers that transformers gives them, so that text is the same on both sides. What is trained is
found by rendering, never by searching for marks in the text: an assistant's turn begins where the
prompt for it ends, and ends where the conversation up to it ends. A template may mark it instead,
with ``{% generation %}``. Where the template provably walks forward over the messages, one
rendering tells where all of these texts end; else each is rendered.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.data.formats import Conversation, Message
from workbench.data.jinja_sandbox import (
    GENERATION_BEGIN,
    GENERATION_END,
    CompiledTemplate,
)
from workbench.data.tokenizer import Encoded, Tokenizer
from workbench.errors import DataError

Targets = Literal["assistant", "last", "all"]

# Two texts that differ in every character, to see where a template puts a turn's content.
_PROBES = ("Zebra", "apple")
_WHERE = "chat template"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and which characters are trained.

    Attributes:
        text: the whole conversation.
        trained: (first character, the one after the last) of each trained turn, its stop token
            included, the whitespace behind it not.
        stops: of those turns that end with the template's stop token, the last trained character.
    """

    text: str
    trained: tuple[tuple[int, int], ...]
    stops: tuple[int, ...]


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as tokens.

    Attributes:
        ids: (tokens,) int32.
        mask: (tokens,) bool, True where the token is trained; the first never is.
        num_stops: trained turns whose stop token is trained to its end.
        num_straddled: trained turns whose first character lies within a token that begins before
            the turn, so that this token is not trained.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    num_stops: int
    num_straddled: int = 0


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja text.
        special_tokens: what ``bos_token``, ``eos_token`` and so on stand for in it.

    Raises:
        DataError: the source is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._compiled = CompiledTemplate(source)
        # What invites an answer, of a template that walks forward: there it is always the same.
        self._prompt: str | None = None

    def render(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = False
    ) -> str:
        """Turn messages into the text the model sees.

        Args:
            messages: each with ``role`` and ``content``.
            add_generation_prompt: end with what invites the assistant's next turn.

        Raises:
            DataError: the template refuses these messages, fails on them, or exceeds a bound.
        """
        text = self._render_marked(messages, add_generation_prompt=add_generation_prompt)
        return _unmarked(text) if self.marks_targets else text

    def _render_marked(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = False
    ) -> str:
        if self.marks_targets:
            _refuse_marks(messages)
        return self._compiled.render(
            messages, self._special_tokens, add_generation_prompt=add_generation_prompt
        )

    @property
    def marks_targets(self) -> bool:
        """The template itself says what is trained, by ``{% generation %}``."""
        return self._compiled.marks_generation

    @functools.cached_property
    def stop_text(self) -> str:
        """What ends an assistant's turn, without whitespace around it; empty if nothing does."""
        messages = [_as_mapping("user", "?"), _as_mapping("assistant", _PROBES[0])]
        _, found, behind = self.render(messages).rpartition(_PROBES[0])
        return behind.strip() if found else ""

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Give the tokens of ``stop_text``: one, if the vocabulary has it as a token."""
        return tuple(int(number) for number in tokenizer.encode([self.stop_text])[0].ids)

    # ---- what is trained -------------------------------------------------------------------------

    def mark(self, conversation: Conversation, targets: Targets = "assistant") -> Rendered:
        """Render a conversation and find what is trained; of a plain text that is all of it.

        Raises:
            DataError: the template fails, leaves out what a turn says, or rewrites earlier turns
                when later ones come.
        """
        if conversation.text is not None:
            return Rendered(conversation.text, ((0, len(conversation.text)),), ())
        messages = [_as_mapping(turn.role, turn.content) for turn in conversation.messages]
        text, turns = self._assistant_turns(messages, conversation.messages)
        _refuse_losses(text, turns, conversation.messages)
        if targets == "last":
            turns = turns[-1:]
        trained = [(begin, end) for message, begin, end in turns if message.train]
        if targets == "all":
            trained += self._other_turns(text, messages, conversation.messages)
        ranges = [(begin, begin + len(text[begin:end].rstrip())) for begin, end in sorted(trained)]
        stop = self.stop_text
        stops = [end - 1 for begin, end in ranges if stop and text[begin:end].endswith(stop)]
        return Rendered(text, tuple(ranges), tuple(stops))

    def _assistant_turns(
        self, messages: list[dict[str, object]], turns: Sequence[Message]
    ) -> tuple[str, list["_Span"]]:
        """Render a conversation and find the assistant's turns in the text."""
        if self.marks_targets:
            marked = self._render_marked(messages)
            return _unmarked(marked), self._marked_turns(marked, turns)
        if self._compiled.walks_forward:
            walked = self._walked_turns(messages, turns)
            if walked is not None:
                return walked
        text = self._render_marked(messages)
        return text, self._grown_turns(text, messages, turns)

    def _walked_turns(
        self, messages: list[dict[str, object]], turns: Sequence[Message]
    ) -> tuple[str, list["_Span"]] | None:
        """Find what ``_grown_turns`` finds, in one rendering; None if that cannot be told."""
        marked = self._compiled.render(messages, self._special_tokens, with_rounds=True)
        head, *rounds = marked.split(self._compiled.round_begin)
        text = "".join((head, *rounds))
        num_skipped = len(turns) - len(rounds)  # by a walk over messages[1:]
        if num_skipped < 0 or turns[0].role == "assistant":
            return None
        borders = [len(head)] * (num_skipped + 1)
        for written in rounds:
            borders.append(borders[-1] + len(written))
        if self._prompt is None:
            self._prompt = self.render(messages, add_generation_prompt=True)[len(text) :]
        found = []
        for turn, (begin, end) in zip(turns, pairwise(borders), strict=True):
            if turn.role != "assistant":
                continue
            if begin + len(self._prompt) > end or not text.startswith(self._prompt, begin):
                raise _rewritten(turn)
            found.append((turn, begin + len(self._prompt), end))
        return text, found

    def _grown_turns(
        self, text: str, messages: list[dict[str, object]], turns: Sequence[Message]
    ) -> list["_Span"]:
        """Find assistant turns as the difference between growing prefixes of the conversation."""
        found = []
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = self.render(messages[:index], add_generation_prompt=True)
            whole = text if index == len(turns) - 1 else self.render(messages[: index + 1])
            if not (whole.startswith(prompt) and text.startswith(whole)):
                raise _rewritten(turn)
            found.append((turn, len(prompt), len(whole)))
        return found

    def _marked_turns(self, marked: str, turns: Sequence[Message]) -> list["_Span"]:
        assistant = [turn for turn in turns if turn.role == "assistant"]
        ranges = _marked_ranges(marked)
        if len(ranges) != len(assistant):
            raise DataError(
                f"the chat template marks {len(ranges)} turns as generated, the conversation has "
                f"{len(assistant)} of the assistant",
                where=_WHERE,
                remedy="put one {% generation %} around each assistant turn",
            )
        return [(turn, *span) for turn, span in zip(assistant, ranges, strict=True)]

    def _other_turns(
        self, text: str, messages: list[dict[str, object]], turns: Sequence[Message]
    ) -> list[tuple[int, int]]:
        """Find the content of all turns that are not the assistant's, by exchanging it."""
        found = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant" or not turn.train:
                continue
            first, second = (
                self.render(
                    [*messages[:index], _as_mapping(turn.role, probe), *messages[index + 1 :]]
                )
                for probe in _PROBES
            )
            begin = _common_prefix(first, second)
            end = len(text) - _common_prefix(first[::-1], second[::-1])
            stop = self.stop_text
            found.append((begin, end + len(stop) if text.startswith(stop, end) else end))
        return found

    # ---- ids -------------------------------------------------------------------------------------

    def encode(
        self, conversation: Conversation, tokenizer: Tokenizer, targets: Targets = "assistant"
    ) -> EncodedConversation:
        """Turn a conversation into ids and the mask of what is trained.

        Raises:
            DataError: as ``mark``.
        """
        rendered = self.mark(conversation, targets)
        return to_tokens(rendered, tokenizer.encode([rendered.text])[0], tokenizer)

    def encode_prompt(
        self, messages: Sequence[Mapping[str, object]], tokenizer: Tokenizer
    ) -> NDArray[np.int32]:
        """Turn messages into what the model reads before it answers: (tokens,) int32.

        Raises:
            DataError: as ``render``.
        """
        text = self.render(messages, add_generation_prompt=True)
        ids = tokenizer.encode([text])[0].ids
        return ids if not _lacks_bos(ids, tokenizer) else np.insert(ids, 0, _bos_of(tokenizer))


def to_tokens(rendered: Rendered, encoded: Encoded, tokenizer: Tokenizer) -> EncodedConversation:
    """Carry what is trained from characters to tokens.

    A token is trained if all of its characters are. A text that does not begin with the token the
    tokenizer begins every text with gets it once, and so at the end, where whitespace behind an
    end of text does not count. An end that is added is trained if the text is, whole.

    Args:
        rendered: text and what is trained in it.
        encoded: the same text as tokens.
        tokenizer: that made them.
    """
    begins, ends = encoded.spans[:, 0], encoded.spans[:, 1]
    ids, mask = encoded.ids, np.zeros(encoded.ids.size, dtype=np.bool_)
    if rendered.trained:
        borders = np.array(rendered.trained, dtype=np.int64)
        at = np.searchsorted(borders[:, 0], begins, side="right") - 1
        mask = (at >= 0) & (ends <= borders[at, 1]) & (ends > begins)
    num_stops = num_straddled = 0
    if rendered.trained and ids.size:
        first = np.searchsorted(begins, borders[:, 0], side="right") - 1
        is_within = (begins[first] < borders[:, 0]) & (borders[:, 0] < ends[first])
        num_straddled = int(is_within.sum())
    if rendered.stops:
        stops = np.array(rendered.stops, dtype=np.int64)
        # The tokens that hold a character lie together; the last of them begins at or before it.
        last = np.searchsorted(begins, stops, side="right") - 1
        num_stops = int((mask[last] & (stops < ends[last])).sum())
    if _lacks_bos(ids, tokenizer):
        ids, mask = np.insert(ids, 0, _bos_of(tokenizer)), np.insert(mask, 0, False)
    if _lacks_eos(rendered.text, ids, tokenizer):
        is_trained = rendered.trained == ((0, len(rendered.text)),)
        ids, mask = np.append(ids, np.int32(tokenizer.eos_id or 0)), np.append(mask, is_trained)
    if mask.size:
        mask[0] = False  # nothing predicts the first token
    return EncodedConversation(ids.astype(np.int32, copy=False), mask, num_stops, num_straddled)


def _lacks_bos(ids: NDArray[np.int32], tokenizer: Tokenizer) -> bool:
    return tokenizer.adds_bos and (ids.size == 0 or int(ids[0]) != tokenizer.bos_id)


def _lacks_eos(text: str, ids: NDArray[np.int32], tokenizer: Tokenizer) -> bool:
    if not tokenizer.adds_eos or (ids.size and int(ids[-1]) == tokenizer.eos_id):
        return False
    return not text.rstrip().endswith(tokenizer.special_tokens["eos_token"])


def _bos_of(tokenizer: Tokenizer) -> int:
    assert tokenizer.bos_id is not None, "only a tokenizer with bos_token adds it"
    return tokenizer.bos_id


# A turn, its first character in the text, and the one after its last.
_Span = tuple[Message, int, int]


def _as_mapping(role: str, content: str) -> dict[str, object]:
    return {"role": role, "content": content}


def _rewritten(turn: Message) -> DataError:
    return DataError(
        f"the chat template writes turn {turn.turn} differently when more follows, so what is "
        "trained cannot be told",
        where=_WHERE,
        remedy="mark the assistant's text with {% generation %}, or use another",
    )


def _refuse_losses(text: str, spans: Sequence[_Span], turns: Sequence[Message]) -> None:
    """Refuse a text in which a turn's content is missing, or the assistant's is out of its place.

    Whitespace is the template's own business, and so is JSON around what a tool says.
    """
    places = {id(turn): (begin, end) for turn, begin, end in spans}
    for turn in turns:
        begin, end = places.get(id(turn), (0, len(text)))
        if text.find(turn.content.strip(), begin, end) >= 0:
            continue
        place = _without_space(text[begin:end])
        if _without_space(turn.content) in place:
            continue
        if _without_space(json.dumps(turn.content, ensure_ascii=False)[1:-1]) in place:
            continue
        what = "misplaces" if turn.content.strip() in text else "leaves out or changes"
        raise DataError(
            f"the chat template {what} what turn {turn.turn} ({turn.role}) says",
            where=_WHERE,
            remedy="choose a template that keeps every turn, or correct the row",
        )


def _without_space(text: str) -> str:
    return "".join(text.split())


def _refuse_marks(messages: Sequence[Mapping[str, object]]) -> None:
    for message in messages:
        content = str(message.get("content"))
        if GENERATION_BEGIN in content or GENERATION_END in content:
            raise DataError(
                "a turn holds U+FDD0 or U+FDD1, which are no characters",
                where=_WHERE,
                remedy="remove them from the text",
            )


def _common_prefix(first: str, second: str) -> int:
    """Count the characters two texts begin with alike: "abc" and "abd" give 2."""
    pairs = enumerate(zip(first, second, strict=False))
    differing = next((at for at, (one, other) in pairs if one != other), None)
    return min(len(first), len(second)) if differing is None else differing


def _unmarked(marked: str) -> str:
    return marked.replace(GENERATION_BEGIN, "").replace(GENERATION_END, "")


def _marked_ranges(marked: str) -> list[tuple[int, int]]:
    """Give where marked text lies once the marks are gone: "a[bc]d" gives [(1, 3)]."""
    ranges, position = [], 0
    for before_end in marked.split(GENERATION_END)[:-1]:
        before, _, within = before_end.partition(GENERATION_BEGIN)
        begin = position + len(before)
        position = begin + len(within)
        ranges.append((begin, position))
    return ranges
