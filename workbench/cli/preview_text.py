"""Rows of tokens as text: what is trained stands out, by looks on a terminal, by ``~`` elsewhere.

Pure: records of the data worker in, lines out. Knows no tokenizer. Invariant: every token of a
document that is shown is in exactly one place of its text, and ``~`` stands under targets alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.cli.paint import Look, Paint, cells, fitted, padded, visible
from workbench.jobs.data_worker import Document, Row, Step, Token

_INDENT = "  "
_TARGETS = {
    "assistant": "assistant turns with their stop token",
    "last": "the last assistant turn with its stop token",
    "all": "every turn",
}
_MOST_BAR_CELLS = 96

_Kind = Literal["target", "context", "padding", "border"]


def share(part: float, whole: float) -> str:
    """Write a share: 34 %, near nothing and near all with a decimal: 1.4 %, 99.6 %."""
    percent = 100 * part / whole if whole else 0.0
    if 99.5 <= percent < 100:
        return f"{min(percent, 99.9):.1f} %"
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"


def ruled(text: str, width: int, paint: Paint, *, stroke: str = "─", look: Look = "title") -> str:
    """Give a heading on a line that crosses the page."""
    text = fitted(text, width - 6)
    rest = stroke * max(width - cells(text) - 4, 0)
    return f"{paint(stroke * 2, 'quiet')} {paint(text, look)} {paint(rest, 'quiet')}"


def head_lines(config: str, step: Step, paint: Paint, width: int) -> Iterator[str]:
    """Say which rows follow, and what the marks mean."""
    if step.step is None:
        which, facts = f"one document of {step.num_documents:,}", []
    else:
        unit = "batch" if step.split == "validation" else "step"
        which = f"{unit} {step.step:,} of {step.num_steps:,}"
        num_positions = (step.num_rows + step.num_empty_rows) * step.row_length
        num_padding = num_positions - step.num_tokens
        facts = [
            f"{step.num_rows:,} rows of {step.row_length:,}",
            f"{step.num_tokens:,} tokens",
            f"{step.num_targets:,} targets ({share(step.num_targets, step.num_tokens)})",
            f"{num_padding:,} padding ({share(num_padding, num_positions)})",
        ]
        if step.num_empty_rows:
            facts.append(f"{step.num_empty_rows:,} empty rows fill it up")
    template = "the model's own template" if step.template == "auto" else step.template
    yield from _flowed(
        [f"{paint('Data preview', 'title')} · {config}", f"{step.split}, {which}"],
        [f"Data preview · {config}", f"{step.split}, {which}"],
        width,
    )
    yield from _flowed(facts, facts, width)
    targets = [f"template: {template}", f"trained: {_TARGETS.get(step.targets, step.targets)}"]
    yield from _flowed(targets, targets, width)


def text_legend(paint: Paint) -> str:
    """Say what the marks in a text mean."""
    if not paint.has_colour:
        return "~ stands under what is trained, ⏎ for the end of a line"
    return " · ".join(
        (
            paint("trained", "trained"),
            paint("context", "context"),
            paint("sign", "sign"),
            paint("trained sign", "trained sign"),
            paint("⏎ end of a line", "quiet"),
        )
    )


def token_legend() -> str:
    """Say what the marks in a table of tokens mean."""
    return "~ trained · why not · ␣ a blank, ⏎ the end of a line, (c3) bytes of a character"


def row_legend(paint: Paint) -> str:
    """Say what the marks in the bar of a row mean."""
    names: tuple[tuple[_Kind, str], ...] = (
        ("target", "trained"),
        ("context", "context"),
        ("padding", "padding"),
        ("border", "a document begins"),
    )
    return " · ".join(f"{paint(*_MASK_CELLS[kind])} {name}" for kind, name in names)


def _flowed(shown: Sequence[str], plain: Sequence[str], width: int) -> Iterator[str]:
    """Lay parts side by side with dots between, as many as fit on each line."""
    line, size = "", 0
    for part, text in zip(shown, plain, strict=True):
        if line and size + 3 + cells(text) > width:
            yield line
            line, size = "", 0
        line = f"{line} · {part}" if line else part
        size += cells(text) + (3 if size else 0)
    if line:
        yield line


# ---- a document as text ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """One character as it is shown."""

    text: str
    look: Look
    is_target: bool
    ends_line: bool = False


def document_heading(document: Document, step: Step, paint: Paint, width: int) -> Iterator[str]:
    """Give the border between documents: which one, from where, how long."""
    num_tokens = len(document.tokens)
    which = f"document {document.number:,} of {step.num_documents:,}"
    size = (
        f"{num_tokens:,} tokens, {document.num_targets:,} targets "
        f"({share(document.num_targets, num_tokens)})"
    )
    where = visible(document.where)
    whole = f"{which} · {where} · {size}"
    if cells(whole) <= width - 6:
        yield ruled(whole, width, paint)
    else:
        yield ruled(f"{which} · {size}", width, paint)
        yield paint(_INDENT + fitted(where, width - len(_INDENT)), "quiet")


def before_lines(document: Document, paint: Paint) -> Iterator[str]:
    """Say that a document begins within its conversation."""
    if document.num_before:
        tokens = f"{document.num_before:,} tokens of it are in another document"
        yield paint(f"{_INDENT}┄┄ {tokens} ┄┄", "quiet")


def behind_lines(document: Document, step: Step, paint: Paint) -> Iterator[str]:
    """Say that a document ends before its conversation does."""
    if not document.num_behind:
        return
    if step.overlong == "truncate":
        what = f"cut: {document.num_behind:,} more tokens are never seen"
        yield paint(f"{_INDENT}┄┄ {what} ┄┄", "warn")
    else:
        what = f"{document.num_behind:,} more tokens are in another document"
        yield paint(f"{_INDENT}┄┄ {what} ┄┄", "quiet")


def document_lines(document: Document, paint: Paint, width: int) -> Iterator[str]:
    """Give a document's text, broken at the width; without colour ``~`` under its targets."""
    for line in _wrapped(_cells_of(document.tokens), width - len(_INDENT)):
        yield _INDENT + _painted(line, paint)
        if not paint.has_colour:
            marks = "".join(("~" if cell.is_target else " ") * cells(cell.text) for cell in line)
            if marks.strip():
                yield (_INDENT + marks).rstrip()


def _cells_of(tokens: Sequence[Token]) -> Iterator[_Cell]:
    for token in tokens:
        look = _look_of(token)
        for character in token.text:
            yield _Cell(visible(character), look, token.is_target, character == "\n")


def _look_of(token: Token) -> Look:
    if token.is_special:
        return "trained sign" if token.is_target else "sign"
    return "trained" if token.is_target else "context"


def _wrapped(characters: Iterator[_Cell], width: int) -> Iterator[list[_Cell]]:
    """Break text into lines of at most ``width`` columns: at its own ends, else behind a blank."""
    line: list[_Cell] = []
    size = 0
    for cell in characters:
        wide = cells(cell.text)
        if size + wide > width and line:
            at = _break_at(line)
            yield line[:at]
            line = line[at:]
            size = sum(cells(kept.text) for kept in line)
        line.append(cell)
        size += wide
        if cell.ends_line:
            yield line
            line, size = [], 0
    if line:
        yield line


def _break_at(line: Sequence[_Cell]) -> int:
    """Say behind which character to break: the last blank of the line's second half, or its end."""
    for at in range(len(line), len(line) // 2, -1):
        if line[at - 1].text == " ":
            return at
    return len(line)


def _painted(line: Sequence[_Cell], paint: Paint) -> str:
    """Join characters of one look, so that a line has few escape codes."""
    painted, text, look = "", "", line[0].look
    for cell in line:
        if cell.look != look:
            painted += paint(text, look)
            text, look = "", cell.look
        text += cell.text
    return painted + paint(text, look)


def row_heading(row: Row, step: Step, paint: Paint, width: int) -> str:
    """Name a row of a step."""
    num = row.num_tokens
    facts = f"{num:,} tokens, {row.num_targets:,} targets ({share(row.num_targets, num)})"
    which = f"row {row.number:,} of {step.num_rows:,} · {len(row.documents):,} documents"
    which = which[:-1] if len(row.documents) == 1 else which
    return ruled(f"{which} · {facts}", width, paint, stroke="━")


def padding_line(row: Row, paint: Paint) -> str:
    """Say how much padding ends a row."""
    many = "token" if row.num_padding == 1 else "tokens"
    return paint(f"{_INDENT}┄┄ {row.num_padding:,} {many} of padding end the row ┄┄", "quiet")


# ---- a document as a table of tokens ---------------------------------------------------------


def token_lines(document: Document, paint: Paint, width: int) -> Iterator[str]:
    """Give a line for each token: position, id, piece, how it reads, target or why not."""
    # What is left of the line is shared by the piece and how it reads.
    wide = min(max((width - 48) // 2, 10), 24)
    yield paint(
        f"{_INDENT}{'pos':>6}  {'id':>7}  {padded('piece', wide)}  {padded('reads', wide)}  target",
        "quiet",
    )
    for position, token in enumerate(document.tokens):
        look = _look_of(token)
        reads = visible(token.text) or f"({token.part})"
        if token.text and token.part:
            reads = f"{reads} ({token.part})"
        # Blanks at the ends of what a token reads as are part of it.
        reads = reads.replace(" ", "␣") if reads.strip(" ") != reads else reads
        mark = "~" if token.is_target else "·"
        note = "stop" if token.is_stop else token.why_not
        piece = paint(fitted(visible(token.piece), wide), look)
        gap = " " * (wide - cells(fitted(visible(token.piece), wide)))
        line = f"{_INDENT}{position:>6,}  {token.id:>7}  {piece}{gap}  {padded(reads, wide)}  "
        yield (line + paint(f"{mark} {note}".rstrip(), "good" if token.is_target else "quiet"))


# ---- rows ------------------------------------------------------------------------------------

_MASK_CELLS: dict[_Kind, tuple[str, Look]] = {
    "target": ("█", "good"),
    "context": ("░", "quiet"),
    "padding": ("·", "quiet"),
    "border": ("┃", "title"),
}


def row_lines(row: Row, step: Step, paint: Paint, width: int) -> Iterator[str]:
    """Give a row as the model gets it: a bar of its mask, and where each document lies."""
    yield row_heading(row, step, paint, width)
    length = row.num_tokens + row.num_padding
    yield _INDENT + mask_bar(row, length, min(width - 2 * len(_INDENT), _MOST_BAR_CELLS), paint)
    head = f"{_INDENT}{'in the row':>15}  {'positions':>11}  {'targets':>7}  {'document':>8}  "
    yield paint(f"{head}where", "quiet")
    for document in row.documents:
        size = len(document.tokens)
        place = f"{document.start:,}–{document.start + size - 1:,}"
        line = (
            f"{_INDENT}{place:>15}  {f'0–{size - 1:,}':>11}  {document.num_targets:>7,}  "
            f"{document.number:>8,}  "
        )
        yield line + fitted(visible(document.where), max(width - len(line), 8))
    if row.num_padding:
        place = f"{length - row.num_padding:,}–{length - 1:,}"
        yield paint(f"{_INDENT}{place:>15}  padding: {row.num_padding:,}", "quiet")


def mask_bar(row: Row, length: int, width: int, paint: Paint) -> str:
    """Draw a row: █ mostly trained, ░ mostly context, · padding, ┃ where a document begins."""
    targets = [token.is_target for document in row.documents for token in document.tokens]
    borders = {document.start for document in row.documents[1:]}
    width = min(width, length)
    bar = ""
    for cell in range(width):
        begin, end = cell * length // width, (cell + 1) * length // width
        covered = targets[begin:end]
        kind: _Kind
        if any(begin <= border < end for border in borders):
            kind = "border"
        elif not covered:
            kind = "padding"
        else:
            kind = "target" if 2 * sum(covered) > len(covered) else "context"
        bar += paint(*_MASK_CELLS[kind])
    return bar
