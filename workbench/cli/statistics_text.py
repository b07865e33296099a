"""What a split comes to, as text: bars of lengths with the cut, shares, padding, steps.

Pure: a record of the data worker in, lines out.
"""

from collections.abc import Iterator

from workbench.cli import output
from workbench.cli.paint import Look, Paint
from workbench.cli.preview_text import ruled, share
from workbench.jobs.data_worker import Padding, Statistics

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_PACKINGS = {
    "none": "a row for each",
    "best_fit": "packed, best fit",
    "first_fit": "packed, first fit",
    "greedy": "packed, greedy",
}
_PAD_TO = {"longest": "to the step's longest", "context": "to the context"}


def statistics_lines(found: Statistics, paint: Paint, width: int) -> Iterator[str]:
    """Give everything a split comes to."""
    yield from length_lines(found, paint, width)
    yield ""
    yield from share_lines(found, paint, width)
    yield ""
    yield from padding_lines(found, paint, width)
    yield ""
    yield from step_lines(found, paint, width)


def length_lines(found: Statistics, paint: Paint, width: int) -> Iterator[str]:
    """Give the histogram of lengths; a line crosses it where longer conversations are cut."""
    yield ruled(f"tokens of {found.num_conversations:,} conversations", width, paint)
    half, nine, most, nearly, longest = (found.percentiles[key] for key in (50, 90, 95, 99, 100))
    yield (
        f"  half ≤ {half:,} · 90 % ≤ {nine:,} · 95 % ≤ {most:,} · 99 % ≤ {nearly:,} · "
        f"longest {longest:,} · mean {found.mean_length:,.0f}"
    )
    yield ""
    labels = [
        f"{bar.low:,}" if bar.low == bar.high else f"{bar.low:,}–{bar.high:,}"
        for bar in found.histogram
    ]
    label_width = max(len(label) for label in labels)
    count_width = max(len(f"{bar.count:,}") for bar in found.histogram)
    most_cells = max(min(width - label_width - count_width - 8, 80), 8)
    highest = max(bar.count for bar in found.histogram)
    is_cut = False
    for label, bar in zip(labels, found.histogram, strict=True):
        if bar.low > found.max_length and not is_cut:
            is_cut = True
            yield _cut_line(found, paint, width)
        drawn = _bar(bar.count, highest, most_cells)
        look: Look = "bad" if bar.low > found.max_length else "good"
        gap = " " * (most_cells - len(drawn))
        yield f"  {label:>{label_width}}  {paint(drawn, look)}{gap}  {bar.count:>{count_width},}"
    if not is_cut:
        yield _cut_line(found, paint, width)


def _cut_line(found: Statistics, paint: Paint, width: int) -> str:
    what = f"{found.num_longer:,} are longer" if found.num_longer else "none is longer"
    text = f" context {found.max_length:,}: {what} "
    look: Look = "warn" if found.num_longer else "quiet"
    return paint(f"  ┈┈┈┈{text}".ljust(min(width - 2, 78), "┈"), look)


def _bar(count: int, highest: int, most_cells: int) -> str:
    """Draw a bar in eighths of a cell; what is not nothing is never drawn as nothing."""
    eighths = round(8 * most_cells * count / highest)
    if count and not eighths:
        eighths = 1
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def share_lines(found: Statistics, paint: Paint, width: int) -> Iterator[str]:
    """Say what the usual lengths and the config's take in."""
    yield ruled("what a context takes in", width, paint)
    rows = [["  context", "conversations whole", "tokens kept", ""]]
    rows += [
        [
            f"{each.length:,}",
            _exact_share(each.conversations),
            _exact_share(each.tokens),
            "◂ data.max_length" if each.length == found.max_length else "",
        ]
        for each in found.shares
    ]
    yield from _table(rows, paint)


def _exact_share(value: float) -> str:
    """Write a share so that only all of it is 100 %."""
    return "100 %" if value == 1 else f"{min(100 * value, 99.9):.1f} %"


def padding_lines(found: Statistics, paint: Paint, width: int) -> Iterator[str]:
    """Compare the config's way to lay rows with others."""
    yield ruled("padding in an epoch", width, paint)
    configured = next(each for each in found.paddings if each.is_configured)
    others = [
        each
        for each in found.paddings
        if (each.packing, each.pad_to) != (configured.packing, configured.pad_to)
    ]
    rows = [["  rows", "padded", "number", "padding", ""]]
    rows += [_padding_row(each) for each in (configured, *others)]
    yield from _table(rows, paint, left=(0, 1))


def _padding_row(each: Padding) -> list[str]:
    return [
        f"  {_PACKINGS.get(each.packing, each.packing)}",
        _PAD_TO.get(each.pad_to, each.pad_to),
        f"{each.rows:,}",
        share(each.share, 1),
        "◂ as configured" if each.is_configured else "",
    ]


def step_lines(found: Statistics, paint: Paint, width: int) -> Iterator[str]:
    """Say how much a step holds and how many there are."""
    yield ruled("steps" if found.split == "train" else "batches of an evaluation", width, paint)
    yield (
        f"  {found.tokens_per_step:,.0f} tokens a step, {found.targets_per_step:,.0f} of them "
        f"targets ({share(found.target_share, 1)})"
    )
    yield (
        f"  {found.num_documents:,} documents in {found.num_rows:,} rows: "
        f"{found.documents_per_row:,.1f} each"
    )
    if found.split == "train":
        yield f"  {found.steps_per_epoch:,} steps per epoch, {found.num_steps:,} in the run"
    else:
        batches = f"{found.steps_per_epoch:,}, evaluated: {found.num_steps:,}"
        yield f"  batches that hold every row: {batches}"


def _table(rows: list[list[str]], paint: Paint, left: tuple[int, ...] = ()) -> Iterator[str]:
    right = tuple(column for column in range(len(rows[0]) - 1) if column not in left)
    head, *others = output.columns(rows, right=right)
    yield paint(head, "quiet")
    yield from others
