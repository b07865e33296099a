"""How replies are made: the settings of a request, each as a field that a person can fill in.

Knows the limits of our server, which a test holds against the server's own; opens no connection.
Invariant: what ``read`` gives is taken by the server, and ``written`` gives back what was read.
"""

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError

# At 1.0, the servers' usual default, small models lose their thread.
SUGGESTED_TEMPERATURE = 0.7

_LARGEST_SEED = (1 << 63) - 1
_MOST_STOPS = 16
_LONGEST_STOP = 200


@dataclass(frozen=True)
class ChatSettings:
    """How the reply is made; what is None is not sent, and the server decides."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SettingsField:
    """One setting as it is typed.

    Attributes:
        name: of the field in ``ChatSettings``, and of the server's parameter.
        label: what it is called on the screen.
        unset: what holds where nothing is typed.
        help: what it does, one sentence.
        limits: what may be typed, in words.
        convert: from what is typed; raises ValueError with what is wrong.
        when_unset: the value that stands for nothing typed.
    """

    name: str
    label: str
    unset: str
    help: str
    limits: str
    convert: Callable[[str], Any]
    when_unset: float | None = None

    def read(self, typed: str) -> Any:  # noqa: ANN401 - each field has a type of its own
        """Give the value of what was typed; blanks stand for nothing.

        Raises:
            ConfigError: the server would refuse it.
        """
        if not typed.strip():
            return self.when_unset
        try:
            return self.convert(typed.strip())
        except ValueError as error:
            raise ConfigError(str(error), where=self.label, remedy=f"give {self.limits}") from error

    def written(self, settings: ChatSettings) -> str:
        """Give what would have to be typed, "" where nothing is set."""
        value = getattr(settings, self.name)
        if value is None or value == self.when_unset:
            return ""
        if isinstance(value, tuple):
            return " ".join(_quoted(text) for text in value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    def shown(self, settings: ChatSettings) -> str:
        """Give the value in words: what was typed, or what holds without."""
        return self.written(settings) or self.unset


def _number(low: float, high: float, *, above: bool = False) -> Callable[[str], float]:
    def convert(typed: str) -> float:
        try:
            value = float(typed)
        except ValueError:
            raise ValueError(f"{typed!r} is no number") from None
        if not math.isfinite(value):
            raise ValueError(f"{typed!r} is no number")
        if value < low or (above and value == low):
            raise ValueError(f"{value:g} is too small")
        if value > high:
            raise ValueError(f"{value:g} is too large")
        return value

    return convert


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def convert(typed: str) -> int:
        try:
            value = int(typed)
        except ValueError:
            raise ValueError(f"{typed!r} is no whole number") from None
        if value < low:
            raise ValueError(f"{value} is too small")
        if high is not None and value > high:
            raise ValueError(f"{value} is too large")
        return value

    return convert


def _stops(typed: str) -> tuple[str, ...]:
    try:
        words = _words(typed)
    except ValueError:
        raise ValueError("a quotation mark has no partner") from None
    texts = tuple(word.replace("\\n", "\n").replace("\\t", "\t") for word in words)
    if len(texts) > _MOST_STOPS:
        raise ValueError(f"{len(texts)} texts are too many")
    for text in texts:
        if not text:
            raise ValueError("an empty text ends nothing")
        if len(text) > _LONGEST_STOP:
            raise ValueError(f"a text of {len(text)} characters is too long")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("holds half of a surrogate pair")
    return texts


def _words(typed: str) -> list[str]:
    """Split at blanks outside quotation marks; a backslash is a character like any other."""
    lexer = shlex.shlex(typed, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = lexer.escape = ""
    return list(lexer)


def _quoted(text: str) -> str:
    """Write a stop string so that ``_stops`` reads it back."""
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    if not any(character.isspace() or character in "\"'" for character in text):
        return text
    return f'"{text}"' if '"' not in text else shlex.quote(text)


FIELDS: tuple[SettingsField, ...] = (
    SettingsField(
        "temperature",
        "temperature",
        f"{SUGGESTED_TEMPERATURE:g}",
        "How far the draw strays from the likeliest token; 0 always takes the likeliest.",
        "a number from 0 to 2",
        _number(0, 2),
        when_unset=SUGGESTED_TEMPERATURE,
    ),
    SettingsField(
        "top_p",
        "top-p",
        "off",
        "Draws among the likeliest tokens that together have this share.",
        "a number above 0, at most 1",
        _number(0, 1, above=True),
    ),
    SettingsField(
        "top_k",
        "top-k",
        "off",
        "Draws among so many likeliest tokens; 0 is off.",
        "a whole number from 0 on",
        _whole(0),
    ),
    SettingsField(
        "min_p",
        "min-p",
        "off",
        "Leaves out tokens less likely than this share of the likeliest one.",
        "a number from 0 to 1",
        _number(0, 1),
    ),
    SettingsField(
        "repetition_penalty",
        "rep. penalty",
        "off",
        "Makes tokens that were said less likely; 1 changes nothing.",
        "a number above 0, at most 10",
        _number(0, 10, above=True),
    ),
    SettingsField(
        "max_tokens",
        "max new",
        "what fits",
        "Longest answer, in tokens.",
        "a whole number from 1 on",
        _whole(1),
    ),
    SettingsField(
        "seed",
        "seed",
        "drawn",
        "The same seed, prompt and settings give the same answer.",
        "a whole number from 0 on",
        _whole(0, _LARGEST_SEED),
    ),
    SettingsField(
        "stop",
        "stop at",
        "the model's own",
        r'Texts that end an answer, apart by blanks: END \n\n "two words".',
        f"at most {_MOST_STOPS} texts of at most {_LONGEST_STOP} characters",
        _stops,
    ),
)
"""Every setting of ``ChatSettings``, in the order in which people look for them."""

FIELD_OF: dict[str, SettingsField] = {each.name: each for each in FIELDS}

BEGINNING = ChatSettings(temperature=SUGGESTED_TEMPERATURE)
"""Settings in which nothing has been typed."""
