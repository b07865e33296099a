"""Conversations to text, ids and loss mask, by the one renderer of training, checking and serving.

Templates are data from strangers: they run in an immutable sandbox, with the settings and helpers
that transformers gives them, so that text is the same on both sides. What is trained is found by
rendering, never by searching for marks in the text: an assistant's turn begins where the prompt
for it ends, and ends where the conversation up to it ends. A template may mark it instead, with
``{% generation %}``.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray

from workbench.data.formats import Conversation, Message
from workbench.data.tokenizer import Encoded, Tokenizer
from workbench.errors import DataError

Targets = Literal["assistant", "last", "all"]

# Not characters (Unicode 16.0, section 23.7), so no text holds them; removed before tokenizing.
_MARK_BEGIN, _MARK_END = "\ufdd0", "\ufdd1"
# Two texts that differ in every character, to see where a template puts a turn's content.
_PROBES = ("Zebra", "apple")


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
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    num_stops: int


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
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"is not valid Jinja: {error.message}",
                where=f"chat template line {error.lineno}",
                remedy="correct the template, or choose a shipped one",
            ) from error

    def render(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = False
    ) -> str:
        """Turn messages into the text the model sees.

        Args:
            messages: each with ``role`` and ``content``.
            add_generation_prompt: end with what invites the assistant's next turn.

        Raises:
            DataError: the template refuses these messages, or fails on them.
        """
        return _unmarked(self._render_marked(messages, add_generation_prompt=add_generation_prompt))

    def _render_marked(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = False
    ) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise DataError(
                f"the chat template refuses this conversation: {error}",
                where="chat template",
                remedy="choose a template for such turns, or correct the row",
            ) from error

    @property
    def marks_targets(self) -> bool:
        """The template itself says what is trained, by ``{% generation %}``."""
        return bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.source))

    @functools.cached_property
    def stop_text(self) -> str:
        """What ends an assistant's turn, without whitespace behind it; empty if nothing does."""
        messages = [_as_mapping("user", "?"), _as_mapping("assistant", _PROBES[0])]
        return self.render(messages).rpartition(_PROBES[0])[2].rstrip()

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Give the tokens of ``stop_text``: one, if the vocabulary has it as a token."""
        return tuple(int(number) for number in tokenizer.encode([self.stop_text])[0].ids)

    # ---- what is trained -------------------------------------------------------------------------

    def mark(self, conversation: Conversation, targets: Targets = "assistant") -> Rendered:
        """Render a conversation and find what is trained.

        Raises:
            DataError: the template fails, or rewrites earlier turns when later ones come.
        """
        messages = [_as_mapping(turn.role, turn.content) for turn in conversation.messages]
        marked = self._render_marked(messages)
        text = _unmarked(marked)
        if self.marks_targets:
            turns = self._marked_turns(marked, conversation.messages)
        else:
            turns = self._grown_turns(text, messages, conversation.messages)
        if targets == "last":
            turns = turns[-1:]
        trained = [(begin, end) for message, begin, end in turns if message.train]
        if targets == "all":
            trained += self._other_turns(text, messages, conversation.messages)
        ranges = [(begin, begin + len(text[begin:end].rstrip())) for begin, end in sorted(trained)]
        stop = self.stop_text
        stops = [end - 1 for begin, end in ranges if stop and text[begin:end].endswith(stop)]
        return Rendered(text, tuple(ranges), tuple(stops))

    def _grown_turns(
        self, text: str, messages: list[dict[str, object]], turns: Sequence[Message]
    ) -> list[tuple[Message, int, int]]:
        """Find assistant turns as the difference between growing prefixes of the conversation."""
        found = []
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = self.render(messages[:index], add_generation_prompt=True)
            whole = self.render(messages[: index + 1])
            if not (whole.startswith(prompt) and text.startswith(whole)):
                raise DataError(
                    f"the chat template writes turn {turn.turn} differently when more follows, so "
                    "what is trained cannot be told",
                    where="chat template",
                    remedy="mark the assistant's text with {% generation %}, or use another",
                )
            found.append((turn, len(prompt), len(whole)))
        return found

    def _marked_turns(
        self, marked: str, turns: Sequence[Message]
    ) -> list[tuple[Message, int, int]]:
        assistant = [turn for turn in turns if turn.role == "assistant"]
        ranges = _marked_ranges(marked)
        if len(ranges) != len(assistant):
            raise DataError(
                f"the chat template marks {len(ranges)} turns as generated, the conversation has "
                f"{len(assistant)} of the assistant",
                where="chat template",
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
    tokenizer begins every text with gets it once, and so at the end.

    Args:
        rendered: text and what is trained in it.
        encoded: the same text as tokens.
        tokenizer: that made them.
    """
    begins, ends = encoded.spans[:, 0], encoded.spans[:, 1]
    ids, mask = encoded.ids, np.zeros(encoded.ids.size, dtype=np.bool_)
    for begin, end in rendered.trained:
        mask |= (begins >= begin) & (ends <= end) & (ends > begins)
    stops = np.array(rendered.stops, dtype=np.int64)[:, None]
    covered = (begins <= stops) & (stops < ends) & mask
    num_stops = int(covered.any(axis=1).sum()) if stops.size else 0
    if _lacks_bos(ids, tokenizer):
        ids, mask = np.insert(ids, 0, _bos_of(tokenizer)), np.insert(mask, 0, False)
    if tokenizer.adds_eos and (ids.size == 0 or ids[-1] != tokenizer.eos_id):
        ids, mask = np.append(ids, np.int32(tokenizer.eos_id or 0)), np.append(mask, False)
    if mask.size:
        mask[0] = False  # nothing predicts the first token
    return EncodedConversation(ids.astype(np.int32, copy=False), mask, num_stops)


def _lacks_bos(ids: NDArray[np.int32], tokenizer: Tokenizer) -> bool:
    return tokenizer.adds_bos and (ids.size == 0 or int(ids[0]) != tokenizer.bos_id)


def _bos_of(tokenizer: Tokenizer) -> int:
    assert tokenizer.bos_id is not None, "only a tokenizer with bos_token adds it"
    return tokenizer.bos_id


def _as_mapping(role: str, content: str) -> dict[str, object]:
    return {"role": role, "content": content}


def _common_prefix(first: str, second: str) -> int:
    """Count the characters two texts begin with alike: "abc" and "abd" give 2."""
    pairs = enumerate(zip(first, second, strict=False))
    differing = next((at for at, (one, other) in pairs if one != other), None)
    return min(len(first), len(second)) if differing is None else differing


def _unmarked(marked: str) -> str:
    return marked.replace(_MARK_BEGIN, "").replace(_MARK_END, "")


def _marked_ranges(marked: str) -> list[tuple[int, int]]:
    """Give where marked text lies once the marks are gone: "a[bc]d" gives [(1, 3)]."""
    ranges, begin, position = [], 0, 0
    for character in marked:
        if character == _MARK_BEGIN:
            begin = position
        elif character == _MARK_END:
            ranges.append((begin, position))
        else:
            position += 1
    return ranges


class _GenerationTag(Extension):
    """The tag ``{% generation %} … {% endgeneration %}``: puts marks around what it holds."""

    tags = {"generation"}  # noqa: RUF012  the form Jinja's extensions have

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Macro) -> str:
        return f"{_MARK_BEGIN}{caller()}{_MARK_END}"


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Make the sandbox with the settings and helpers chat templates are written for.

    Source: the documentation of chat templates in transformers.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _format_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is; Jinja's own filter escapes what HTML would misread."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _format_now(form: str) -> str:
    return datetime.now().strftime(form)
