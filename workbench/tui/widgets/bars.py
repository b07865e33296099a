"""Bars of one line: how far something is, and how full."""

from textual.content import Content

_EIGHTHS = " ▏▎▍▌▋▊▉"


def progress_bar(share: float, width: int) -> Content:
    """Draw a share from 0 to 1 as a line of ``width`` cells, half a cell exact."""
    share = min(max(share, 0.0), 1.0)
    halves = round(share * 2 * width)
    full, half = divmod(halves, 2)
    head = "━" * full + ("╸" if half else "")
    return Content.assemble((head, "$good"), ("─" * (width - len(head)), "$frame"))


def level_bar(share: float, width: int) -> Content:
    """Draw a share from 0 to 1 as a filled bar of ``width`` cells, an eighth of a cell exact."""
    eighths = round(min(max(share, 0.0), 1.0) * 8 * width)
    full, rest = divmod(eighths, 8)
    bar = "█" * full + (_EIGHTHS[rest] if rest else "")
    return Content.assemble("▕", (bar.ljust(width), "$chart-1"), "▏")
