"""What can be typed behind each verb, kept in a file so that completing need not import the verbs.

``completion.json`` beside this module is made from the parsers of the verbs, and a test holds it
against them. Make it anew after a change of options: ``python -m workbench.cli.verb_table``.
"""

import argparse
import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import msgspec

from workbench.cli.main import VERBS, WITHOUT_VERB
from workbench.runs.atomic import write_atomically

TABLE = Path(__file__).with_name("completion.json")


class OptionWords(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An option of a verb.

    Attributes:
        spellings: each way to write it.
        help: one line.
        value: what its value is called, ``FILE``; None where it takes none.
        choices: the words its value may be.
    """

    spellings: tuple[str, ...]
    help: str = ""
    value: str | None = None
    choices: tuple[str, ...] = ()


class VerbWords(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What can be typed behind a verb.

    Attributes:
        line: what it does.
        options: its own; those of a config are not here.
        names: what its positional arguments are called.
        verbs: the verbs below it: ``stop`` of ``control``.
        takes_keys: it takes KEY=VALUE and the flags of a config.
    """

    line: str = ""
    options: tuple[OptionWords, ...] = ()
    names: tuple[OptionWords, ...] = ()
    verbs: dict[str, "VerbWords"] = {}
    takes_keys: bool = False


def read_table() -> dict[str, VerbWords]:
    """Read what can be typed, by verb; "" is the program without one."""
    return msgspec.json.decode(TABLE.read_bytes(), type=dict[str, VerbWords])


def table_text(table: dict[str, VerbWords]) -> str:
    """Write the table as it lies beside this module."""
    return json.dumps(msgspec.to_builtins(table), indent=1, ensure_ascii=False) + "\n"


# ---- made from the parsers ----------------------------------------------------------------------


class _ParserFoundError(BaseException):
    """Carries the parser of a verb out of it, at the moment in which it would parse."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


def make_table() -> dict[str, VerbWords]:
    """Ask every verb for its parser; slow, because it imports them all."""
    table = {"": _words(_parser_of(WITHOUT_VERB[""][0]), WITHOUT_VERB[""][1])}
    for verb, (target, line) in {**VERBS, "--batch": WITHOUT_VERB["--batch"]}.items():
        module = importlib.import_module(f"workbench.cli.{target.partition(':')[0]}")
        below: dict[str, str] = getattr(module, "VERBS", {}) if verb in _HAND_MADE else {}
        if below:
            verbs = {name: _words(_parser_of(target, name), told) for name, told in below.items()}
            table[verb] = VerbWords(line=line, verbs=verbs)
        else:
            table[verb] = _words(_parser_of(target), line)
    return table


_HAND_MADE = ("data",)
"""Verbs that find the verb below them by hand; each has a parser of its own."""


def _parser_of(target: str, *arguments: str) -> argparse.ArgumentParser:
    """Run a verb up to where it parses its command line."""
    module, _, function = target.partition(":")
    run = getattr(importlib.import_module(f"workbench.cli.{module}"), function or "run")
    with _stopped_at_parsing():
        try:
            run(list(arguments))
        except _ParserFoundError as found:
            return found.parser
    raise AssertionError(f"{target} parses nothing")


@contextmanager
def _stopped_at_parsing() -> Iterator[None]:
    """Let every parser give itself up in place of parsing; only this process is concerned."""
    kept = argparse.ArgumentParser.parse_known_args

    def give_up(self: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        raise _ParserFoundError(self)

    argparse.ArgumentParser.parse_known_args = give_up  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_known_args = kept  # type: ignore[method-assign]


def _words(parser: argparse.ArgumentParser, line: str) -> VerbWords:
    options, names = [], []
    verbs: dict[str, VerbWords] = {}
    for action in parser._actions:  # argparse offers no public way to list its options
        if isinstance(action, argparse._SubParsersAction):
            lines = {each.dest: each.help or "" for each in action._choices_actions}
            verbs = {
                name: _words(below, lines.get(name, "")) for name, below in action.choices.items()
            }
        elif not action.option_strings:
            names.append(_option(action))
        elif action.help != argparse.SUPPRESS:
            options.append(_option(action))
    return VerbWords(
        line=line,
        options=tuple(options),
        names=tuple(names) or _names_in_usage(parser),
        verbs=verbs,
        takes_keys="KEY=VALUE" in (parser.usage or ""),
    )


def _option(action: argparse.Action) -> OptionWords:
    told = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    value = None
    if action.nargs != 0:
        value = str(action.metavar or action.dest.upper())
    return OptionWords(
        spellings=tuple(action.option_strings),
        help=told.replace("%%", "%"),
        value=value,
        choices=tuple(str(choice) for choice in action.choices or ()),
    )


def _names_in_usage(parser: argparse.ArgumentParser) -> tuple[OptionWords, ...]:
    """Give the positional arguments of a verb that takes them beside KEY=VALUE."""
    words: Sequence[str] = (parser.usage or "").split("[")[0].split()
    return tuple(
        OptionWords(spellings=(), value=word)
        for before, word in pairwise(words)
        if word.isupper() and not before.startswith("-")
    )


if __name__ == "__main__":
    write_atomically(TABLE, table_text(make_table()).encode())
