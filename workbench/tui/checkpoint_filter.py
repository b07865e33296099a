"""The filter of the checkpoints, such as ``eval<1.25 run:demo -tag:tmp has:resume``; pure.

Terms stand between spaces and all have to hold; ``-`` before one turns it round. What is no term is
looked for in the name. Invariant: a number that is not known satisfies no comparison.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_COMPARISON = re.compile(r"(eval|loss|size|step|age)(<=|>=|<|>|=)(.+)")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
}
_UNITS = {
    "size": {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40},
    "age": {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400},
}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([a-z]?)(?:i?b)?")
_WORDS = ("run", "tag", "has", "state", "model")


@dataclass(frozen=True)
class Filterable:
    """What a filter sees of a checkpoint or model.

    Attributes:
        name: what a bare word is looked for in.
        numbers: eval, loss, size in bytes, step, age in seconds; None where not known.
        words: run, tag, has, state, model: the texts of each.
    """

    name: str
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class FilterError(ValueError):
    """A term that cannot be understood; the message says what can be."""


Term = Callable[[Filterable], bool]


def parse(text: str) -> Term:
    """Read a filter.

    Raises:
        FilterError: a comparison has no number behind it.
    """
    terms = [_term(word) for word in text.casefold().split()]
    return lambda shown: all(term(shown) for term in terms)


def _term(word: str) -> Term:
    if word.startswith("-") and len(word) > 1:
        inner = _term(word[1:])
        return lambda shown: not inner(shown)
    if match := _COMPARISON.fullmatch(word):
        key, sign, stated = match.groups()
        compare, limit = _OPERATORS[sign], _number(key, stated)

        def holds(shown: Filterable) -> bool:
            value = shown.numbers.get(key)
            return value is not None and compare(value, limit)

        return holds
    key, colon, wanted = word.partition(":")
    if colon and key in _WORDS:
        return lambda shown: any(wanted in text.casefold() for text in shown.words.get(key, ()))
    return lambda shown: word in shown.name.casefold()


def _number(key: str, text: str) -> float:
    units = _UNITS.get(key, {"": 1})
    match = _NUMBER.fullmatch(text)
    if match is None or match.group(2) not in units:
        known = ", ".join(unit for unit in units if unit)
        raise FilterError(f"{text} is no number" + (f" with {known} behind it" if known else ""))
    return float(match.group(1)) * units[match.group(2)]
