"""YAML 1.2 core rules on PyYAML: a file becomes a mapping that knows the line of every key.

PyYAML follows YAML 1.1: it reads ``1e-5`` as text, ``no`` as false, ``010`` as 8, ``1:30`` as 90,
and accepts a key given twice. Only its parser is used here; what a plain scalar means is decided by
the core rules of YAML 1.2 (chapter 10.3). A config is plain data in one place: tags, anchors,
aliases, merge keys and second documents are refused, so that every value has exactly one line,
and ``extends:`` is the one way to reuse keys.

Knows nothing of keys and their types. Invariant: nothing in a file is ever run or imported.
"""

import contextlib
import errno
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.config.problems import Problem

MAX_DEPTH = 20
MAX_BYTES = 1 << 20
"""A config is written by hand; more than this is another kind of file."""

_PIECE = 1 << 14

UNREADABLE = object()
"""Stands where a value could not be read and a problem says why."""

_NULL = re.compile(r"(~|null|Null|NULL)?")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_C_PARSER: Any = getattr(getattr(yaml, "cyaml", None), "CParser", None)
"""libyaml's parser, fifteen times as fast; None where PyYAML was built without it."""

_TAKEN_DIFFERENTLY = re.compile(r"[\t!?]|[|>][-+0-9]*#")
"""What PyYAML's two parsers do not take alike, found by comparing them on random texts. Such a text
is left to the slower one, so that a config means the same on every machine."""

_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_./~$+-][A-Za-z0-9_./~$+@ -]*")


@dataclass(frozen=True)
class Stated:
    """A value as a file states it.

    Attributes:
        value: text, number, boolean, None, or a list of them (and of mappings, for messages).
        line: of its key, from 1.
        item_lines: line of each item where the value is a list.
    """

    value: object
    line: int
    item_lines: tuple[int, ...] = ()


@dataclass(frozen=True)
class StatedMapping:
    """Keys below a key, in file order."""

    entries: "dict[str, Stated | StatedMapping]"
    line: int


def read_file(path: Path) -> tuple[StatedMapping, list[Problem]]:
    """Read a config file; what cannot be read is left out and named in the problems."""
    try:
        # Opening a named pipe would wait for its writer.
        if stat.S_ISFIFO(path.stat().st_mode):
            raise OSError(errno.EINVAL, "is a named pipe")
        with path.open("rb", buffering=0) as file:
            # Room for a MiB is not free: most configs are read in one small piece.
            content = file.read(_PIECE)
            while len(content) <= MAX_BYTES and (more := file.read(_PIECE)):
                content += more
    except OSError as error:
        problem = Problem(
            key="",
            what=f"cannot be read: {error.strerror or error}",
            remedy="check the path and its permissions",
            file=path,
        )
        return StatedMapping({}, 1), [problem]
    if len(content) > MAX_BYTES:
        problem = Problem(
            key="",
            what=f"is larger than {MAX_BYTES >> 20} MiB, which no config is",
            remedy="name a config file",
            file=path,
        )
        return StatedMapping({}, 1), [problem]
    text, problems = _decode(content, path)
    if problems:
        return StatedMapping({}, 1), problems
    return read_text(text, path)


def read_text(
    text: str, file: Path | None = None, *, by_libyaml: bool = True
) -> tuple[StatedMapping, list[Problem]]:
    """Read the text of a config; an empty text is a config that states nothing.

    Args:
        text: of the whole file.
        file: named in the problems.
        by_libyaml: False reads as a machine without libyaml does, which gives the same.
    """
    builder = _Builder(text, file, by_libyaml)
    stated = builder.document()
    problems = builder.problems
    if isinstance(stated, StatedMapping):
        return stated, problems
    if not problems and stated.value is not None:
        problems = [
            Problem(
                key="",
                what=f"a config is a mapping of keys, this is {kind_in_words(stated.value)}",
                remedy="write `section:` and indented `key: value` lines below it",
                file=file,
                line=stated.line,
            )
        ]
    return StatedMapping({}, 1), problems


class UnreadableValueError(ValueError):
    """A text that is not one YAML value; ``remedy`` says what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def read_value(text: str) -> object:
    """Read one value by the rules of a config file, as for ``key=value`` on the command line.

    Raises:
        UnreadableValueError: the text is not one YAML value; its message says why.
    """
    builder = _Builder(text, None)
    stated = builder.document()
    if builder.problems:
        raise UnreadableValueError(builder.problems[0].what, builder.problems[0].remedy)
    return plain(stated)


def plain(stated: Stated | StatedMapping) -> object:
    """Give what was stated as plain data, without its lines."""
    if isinstance(stated, StatedMapping):
        return {key: plain(entry) for key, entry in stated.entries.items()}
    return stated.value


def resolve_plain(text: str) -> object:
    """Give what an unquoted scalar means: the core rules of YAML 1.2.

    Returns:
        None, bool, int, float or str. ``1e-5`` is a float, ``no`` and ``1:30`` are text, ``010``
        is ten, ``0o10`` eight.

    Raises:
        ValueError: a number that is not finite, or too large for 64 bits.
    """
    if text[:1].isalpha() and text[0] not in "nNtTfF":
        return text  # as most names and words are: no null, no boolean, no number
    if _NULL.fullmatch(text):
        return None
    if _BOOLEAN.fullmatch(text):
        return text.lower() == "true"
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if _DECIMAL.fullmatch(text):
        digits = text.lstrip("+-").lstrip("0")
        return _within_64_bits(int(text) if len(digits) < 20 else 1 << 64, text)
    if _OCTAL.fullmatch(text):
        return _within_64_bits(int(text[2:], 8), text)
    if _HEXADECIMAL.fullmatch(text):
        return _within_64_bits(int(text[2:], 16), text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"{text} is too large for a number")
        return number
    return text


def _within_64_bits(number: int, text: str) -> int:
    if not -(1 << 63) <= number < 1 << 63:
        shown = text if len(text) <= 24 else f"{text[:20]}…"
        raise ValueError(f"{shown} does not fit into 64 bits")
    return number


def write_scalar(value: object) -> str:
    """Write a value in one line so that reading it gives the same value.

    Args:
        value: None, bool, int, finite float, str, or a list or mapping of these.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # YAML 1.1 readers take 4e-06 for text; with a point and a sign every reader sees a number.
        shown = repr(value)
        return shown.replace("e", ".0e") if "e" in shown and "." not in shown else shown
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(write_scalar(item) for item in value) + "]"
    if isinstance(value, dict):
        inside = (f"{write_scalar(key)}: {write_scalar(entry)}" for key, entry in value.items())
        return "{" + ", ".join(inside) + "}"
    assert isinstance(value, str), f"{value!r} is no value of a config"
    return value if _is_plain_text(value) else _quoted(value)


def _is_plain_text(text: str) -> bool:
    if not _PLAIN_TEXT.fullmatch(text) or text != text.strip() or text.startswith(("- ", "---")):
        return False
    # "-" alone begins a list; "no" is text here but would be false for a reader of YAML 1.1.
    if text.strip("-+.") == "" or text.lower() in {"y", "n", "yes", "no", "on", "off"}:
        return False
    try:
        return isinstance(resolve_plain(text), str)
    except ValueError:
        return False


def _quoted(text: str) -> str:
    written: str = yaml.dump(text, default_style='"', allow_unicode=True, width=1 << 30)
    return written.removesuffix("\n")


def kind_in_words(value: object) -> str:
    """Name a value and its kind, as in "text 'abc'"."""
    match value:
        case None:
            return "null (nothing)"
        case bool():
            return f"{str(value).lower()}"
        case int() | float():
            return f"the number {write_scalar(value)}"
        case str():
            return f"text {_shortened(repr(value))}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case _:
            return "a mapping"


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "…" + text[-1]


def _decode(content: bytes, path: Path) -> tuple[str, list[Problem]]:
    for mark, name in ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if content.startswith(mark):
            what = f"is {name}, not UTF-8"
            problem = Problem(key="", what=what, remedy="save it as UTF-8", file=path)
            return "", [problem]
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        if b"\0" in content:
            problem = Problem(key="", what="is no text", remedy="name a config file", file=path)
            return "", [problem]
        line = content.count(b"\n", 0, error.start) + 1
        problem = Problem(
            key="",
            what=f"is not UTF-8: byte 0x{content[error.start]:02x}",
            remedy="save it as UTF-8",
            file=path,
            line=line,
        )
        return "", [problem]


class _SyntaxProblemError(Exception):
    """Ends the reading of one document at its first mistake of syntax."""


class _Builder:
    """Builds the mapping of one document from PyYAML's events."""

    def __init__(self, text: str, file: Path | None, by_libyaml: bool = True) -> None:
        self._text = text
        self._fast_parser = _C_PARSER if by_libyaml else None
        self._file = file
        self._events: Iterator[yaml.Event] = iter(())
        self.problems: list[Problem] = []

    def document(self) -> Stated | StatedMapping:
        # What libyaml does not understand is read again: PyYAML's own parser says better what is
        # wrong, and where.
        if self._fast_parser is not None and not _TAKEN_DIFFERENTLY.search(self._text):
            with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError):
                # None ends the events; yaml.parse would look ahead before each of them.
                return self._read(iter(self._fast_parser(self._text).get_event, None))
            self.problems.clear()
        try:
            return self._read(yaml.parse(self._text, Loader=yaml.SafeLoader))
        except yaml.YAMLError as error:
            self.problems.append(_syntax_problem(error, self._text, self._file))
        return Stated(None, 1)

    def _read(self, events: Iterator[yaml.Event]) -> Stated | StatedMapping:
        self._events = events
        try:
            return self._first_document()
        except _SyntaxProblemError:
            return Stated(None, 1)

    def _first_document(self) -> Stated | StatedMapping:
        found: Stated | StatedMapping = Stated(None, 1)
        num_documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                num_documents += 1
                if num_documents == 2:
                    self._problem(
                        "", _line(event), "a second document begins here", "keep one per file"
                    )
                    raise _SyntaxProblemError
                found = self._entry(next(self._events), (), None, 0)
        return found

    def _entry(
        self, event: yaml.Event, path: tuple[str, ...], line: int | None, depth: int
    ) -> Stated | StatedMapping:
        """Build what begins with ``event``; ``line`` is that of its key."""
        key = ".".join(path)
        at = _line(event)
        line = at if line is None else line
        if depth > MAX_DEPTH:
            above = ".".join(path[:3]) + "…"
            self._problem(above, at, f"more than {MAX_DEPTH} levels deep", "nest less deeply")
            raise _SyntaxProblemError
        self._refuse_what_is_not_plain(event, key)
        built: Stated | StatedMapping = Stated(UNREADABLE, line)  # an alias is refused above
        if isinstance(event, yaml.ScalarEvent):
            built = Stated(self._scalar(event, key), line)
        elif isinstance(event, yaml.SequenceStartEvent):
            built = self._list(path, line, depth)
        elif isinstance(event, yaml.MappingStartEvent):
            built = self._mapping(path, line, depth)
        return built if getattr(event, "tag", None) is None else Stated(UNREADABLE, line)

    def _scalar(self, event: yaml.ScalarEvent, key: str) -> object:
        if event.style:  # of a plain scalar it is None, or empty from libyaml
            if any("\ud800" <= character <= "\udfff" for character in event.value):
                self._problem(key, _line(event), "holds half a character", "write it in UTF-8")
                return UNREADABLE
            return event.value
        try:
            return resolve_plain(event.value)
        except ValueError as error:
            self._problem(key, _line(event), str(error), "give a number, or quote it as text")
            return UNREADABLE

    def _list(self, path: tuple[str, ...], line: int, depth: int) -> Stated:
        items, lines = [], []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            lines.append(_line(event))
            items.append(plain(self._entry(event, path, None, depth + 1)))
        is_readable = all(item is not UNREADABLE for item in items)
        return Stated(items if is_readable else UNREADABLE, line, tuple(lines))

    def _mapping(self, path: tuple[str, ...], line: int, depth: int) -> StatedMapping:
        entries: dict[str, Stated | StatedMapping] = {}
        first_lines: dict[str, int] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key_line = _line(event)
            name = self._name(event, path, depth)
            num_problems = len(self.problems)
            entry = self._entry(next(self._events), (*path, name or ""), key_line, depth + 1)
            if name is None:
                # What stands below a key that is none is no news.
                del self.problems[num_problems:]
                continue
            if name in entries:
                self._problem(
                    ".".join((*path, name)),
                    key_line,
                    f"given twice, first in line {first_lines[name]}",
                    "keep one of the two",
                )
                continue
            entries[name], first_lines[name] = entry, key_line
        return StatedMapping(entries, line)

    def _name(self, event: yaml.Event, path: tuple[str, ...], depth: int) -> str | None:
        """Give the name of a key; None, after a problem, where it is no text."""
        inside = ".".join(path)
        if not isinstance(event, yaml.ScalarEvent):
            self._entry(event, path, None, depth + 1)
            self._problem(inside, _line(event), "a key is not text", "give keys simple names")
            return None
        if event.value == "<<" and not event.style:
            self._problem(
                inside, _line(event), "merge keys (<<) are not read", "inherit by `extends:`"
            )
            return None
        self._refuse_what_is_not_plain(event, inside)
        try:
            name = event.value if event.style else resolve_plain(event.value)
        except ValueError:
            name = None
        if isinstance(name, str) and name:
            return name
        self._problem(
            inside, _line(event), f"the key {event.value} is not text", "put it in quotes"
        )
        return None

    def _refuse_what_is_not_plain(self, event: yaml.Event, key: str) -> None:
        anchor: str | None = getattr(event, "anchor", None)
        tag: str | None = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent):
            self._problem(
                key, _line(event), f"aliases (*{anchor}) are not read", "repeat the value"
            )
        elif anchor is not None:
            self._problem(key, _line(event), f"anchors (&{anchor}) are not read", "remove it")
        elif tag is not None:
            self._problem(
                key,
                _line(event),
                f"tags ({tag.replace('tag:yaml.org,2002:', '!!')}) are not read: a config is "
                "plain data",
                "remove it; quotes make a value text",
            )

    def _problem(self, key: str, line: int, what: str, remedy: str) -> None:
        self.problems.append(Problem(key=key, what=what, remedy=remedy, file=self._file, line=line))


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None, event
    return int(event.start_mark.line) + 1


_MEANT = (
    ("\\t", "a tab where only spaces can be", "indent, and separate, with spaces"),
    (
        "mapping values are not allowed",
        "a colon where no key can be: a value holds one, or the line before lacks its own",
        "quote a value with a colon, write `key: value`",
    ),
    ("could not find expected ':'", "no colon behind the key", "write `key: value`"),
    (
        "expected <block end>",
        "does not line up with the lines above",
        "indent the keys of a section alike",
    ),
    ("did not find expected", "does not line up with the lines above", "close or indent it alike"),
    ("end of stream", "a quote is opened here and never closed", "close it"),
    ("but got '?'", "a ? in a value between [ ] or { }", "quote the value"),
    ("expected ',' or ']'", "a list is opened with [ and never closed", "close it with ]"),
    ("expected ',' or '}'", "a mapping is opened with { and never closed", "close it with }"),
    ("unknown escape character", "an unknown escape in double quotes", "use single quotes"),
    ("cannot start any token", "{character} cannot begin a value", "quote the value"),
    (
        "expected chomping or indentation indicators",
        "a comment straight behind the | or > of a text",
        "put a blank before the #",
    ),
)


def _syntax_problem(error: yaml.YAMLError, text: str, file: Path | None) -> Problem:
    """Say in plain words what PyYAML did not understand."""
    if isinstance(error, yaml.reader.ReaderError):
        return Problem(
            key="",
            what=f"holds the control character 0x{int(error.character):02x}",
            remedy="remove it",
            file=file,
            line=text.count("\n", 0, int(error.position)) + 1,
        )
    assert isinstance(error, yaml.MarkedYAMLError), f"unexpected {error!r}"
    said = error.problem or ""
    what, remedy = next(
        ((what, remedy) for sign, what, remedy in _MEANT if sign in said),
        (f"is not YAML: {said}", "mend the line"),
    )
    found = re.search(r"found character (\S+)", said)
    what = what.replace("{character}", found.group(1) if found else "a character")
    opened = "end of stream" in said or what.endswith("never closed")
    mark = error.context_mark if opened and error.context_mark else error.problem_mark
    line = None if mark is None else mark.line + 1
    return Problem(key="", what=what, remedy=remedy, file=file, line=line)
