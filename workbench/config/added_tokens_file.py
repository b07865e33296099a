"""The file that says which tokens a conversion adds: read strictly, every mistake with its line.

It is YAML: ``bos_token``, ``eos_token``, ``pad_token`` and ``unk_token`` name a token, or have
``token``, ``init`` and ``if_missing`` below them; ``special_tokens`` and ``regular_tokens`` are
lists of texts. Knows no tokenizer: whether a token is new is found out where one is at hand.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from workbench.config.problems import ConfigProblems, Problem
from workbench.config.yaml_reader import Stated, StatedMapping, kind_in_words, plain, read_file

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
LISTS = ("special_tokens", "regular_tokens")
COPY = "copy:"

_KEYS = ("token", "init", "if_missing")
_INITS = "zero, mean or copy:<token>"


class NamedToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a named token shall be.

    Attributes:
        token: its text.
        init: how a new row begins: ``zero``, ``mean`` or ``copy:<token>``; None: as is usual.
        if_missing: leave a token that the tokenizer names already.
    """

    token: str
    init: str | None = None
    if_missing: bool = False


class AddedTokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tokens a conversion adds, or names.

    Attributes:
        named: by ``bos_token`` and so on.
        special_tokens: signs, such as an end of turn.
        regular_tokens: texts.
    """

    named: dict[str, NamedToken] = {}
    special_tokens: tuple[str, ...] = ()
    regular_tokens: tuple[str, ...] = ()


PAD_ALONE = AddedTokens(
    named={"pad_token": NamedToken(token="[PAD]", init="zero", if_missing=True)}
)
"""What is added where no file says it: a padding token, if there is none."""


def read_added_tokens(path: Path) -> AddedTokens:
    """Read a file of added tokens.

    Raises:
        ConfigProblems: it cannot be read, a key or an init is not known, or a value is of the wrong
            kind; all such mistakes are listed.
    """
    stated, problems = read_file(path)
    problems = [*problems, *_problems(stated, path)]
    if problems:
        raise ConfigProblems(problems)
    named: dict[str, NamedToken] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for key, entry in stated.entries.items():
        value = plain(entry)
        if key in LISTS:
            assert value is None or isinstance(value, list)
            lists[key] = tuple(value or ())
        elif value is not None:
            named[key] = msgspec.convert(
                value if isinstance(value, dict) else {"token": value}, NamedToken
            )
    return AddedTokens(named=named, **lists)


def _problems(stated: StatedMapping, path: Path) -> Iterator[Problem]:
    for key, entry in stated.entries.items():

        def problem(
            what: str, remedy: str, *, key: str = key, entry: Stated | StatedMapping = entry
        ) -> Problem:
            return Problem(key=key, what=what, remedy=remedy, file=path, line=entry.line)

        if key in LISTS:
            if wrong := _wrong_list(plain(entry)):
                yield problem(wrong, "give a list of texts")
        elif key not in NAMED:
            yield problem("no such key", _nearest(key, (*NAMED, *LISTS)))
        elif isinstance(entry, StatedMapping):
            yield from _problems_below(key, entry, path)
        elif wrong := _wrong_text(entry.value):
            yield problem(wrong, "give the token as a text")


def _problems_below(key: str, entry: StatedMapping, path: Path) -> Iterator[Problem]:
    if "token" not in entry.entries:
        yield Problem(
            key=key,
            what="names no token",
            remedy="add token: TEXT below it",
            file=path,
            line=entry.line,
        )
    for name, below in entry.entries.items():
        value, wrong, remedy = plain(below), "", ""
        if name not in _KEYS:
            wrong, remedy = "no such key", _nearest(name, _KEYS)
        elif name == "token":
            wrong, remedy = _wrong_text(value), "give the token as a text"
        elif name == "init" and not _is_init(value):
            wrong, remedy = f"{value!r} is no way to begin a row", f"use {_INITS}"
        elif name == "if_missing" and not isinstance(value, bool):
            wrong, remedy = f"is {kind_in_words(value)}", "use true or false"
        if wrong:
            yield Problem(
                key=f"{key}.{name}", what=wrong, remedy=remedy, file=path, line=below.line
            )


def _is_init(value: object) -> bool:
    if not isinstance(value, str):
        return False
    return value in ("zero", "mean") or (value.startswith(COPY) and value != COPY)


def _wrong_text(value: object) -> str:
    if isinstance(value, str):
        return "" if value else "is an empty text"
    return f"is {kind_in_words(value)}"


def _wrong_list(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, list):
        return f"is {kind_in_words(value)}"
    return next((f"an item {wrong}" for item in value if (wrong := _wrong_text(item))), "")


def _nearest(key: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {near[0]}?" if near else f"use {', '.join(names)}"
