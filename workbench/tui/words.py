"""Numbers as words with units, short enough for a table; pure."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """Say a time span in its two largest units: 4 s, 3 m 58 s, 2 h 5 m, 3 d 4 h."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s" if whole < 600 else f"{whole // 60} m"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def brief(seconds: float) -> str:
    """Say a time span in one unit for a column: 45s, 20m, 3h, 2d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(max(seconds, 0))}s"


def size(num_bytes: float) -> str:
    """Say a number of bytes: 13.5 GiB, 482 MiB, 3 KiB."""
    for factor, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= factor:
            return f"{short(num_bytes / factor)} {unit}"
    return f"{int(num_bytes)} B"


def number_of(count: float, thing: str) -> str:
    """Say how many of a thing there are: 1 epoch, 2.5 epochs, 300 steps."""
    return f"{count:g} {thing}" + ("" if count == 1 else "s")


def percent(part: float, whole: float) -> str:
    """Say a share, rounded down: 100 % is said when all is done."""
    return f"{int(100 * part / whole)} %" if whole else "–"


def rate(tokens_per_second: float) -> str:
    """Say a speed: 1.90 k tok/s."""
    if tokens_per_second >= 1000:
        return f"{tokens_per_second / 1000:.2f} k tok/s"
    return f"{tokens_per_second:.0f} tok/s"


def loss(value: float | None) -> str:
    """Say a loss with four decimals, a dash where it is not finite."""
    return "–" if value is None else f"{value:.4f}"


def learning_rate(value: float) -> str:
    """Say a rate in two significant digits: 3.5e-6."""
    return short(value, 2)


def clock(seconds: float) -> str:
    """Say the time of day, in local time: 14:03."""
    return time.strftime("%H:%M", time.localtime(seconds))


def shorten(text: str, width: int) -> str:
    """Cut a text to ``width`` characters with an ellipsis in place of its end."""
    if len(text) <= width:
        return text
    return text[: max(width - 1, 0)] + "…" if width > 0 else ""


def from_project(text: str, project: Path) -> str:
    """Write the paths in a text as seen from the project: /p/configs/a.yaml is configs/a.yaml."""
    return text.replace(f"{project}/", "")


def last_parts(path: str) -> str:
    """Name a folder by its last part, or the last two where one says little: demo/model."""
    parts = Path(path).parts
    return "/".join(parts[-2:]) if parts and len(parts[-1]) < 8 else "".join(parts[-1:])


def shorten_path(path: str, width: int) -> str:
    """Cut a path to ``width`` characters from its beginning: the end tells paths apart."""
    return path if len(path) <= width else "…" + path[len(path) - max(width - 1, 0) :]


def short(value: float, digits: int = 3) -> str:
    """Give a number in about ``digits`` significant digits: 12 345 is 12.3k, 3.5e-6 stays so."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    sign, size = ("−" if value < 0 else ""), abs(value)
    # Rounding may carry into the next power of ten: 999.9 is 1k with three digits.
    size = float(f"{size:.{digits - 1}e}")
    if size < 1e-3:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        return f"{sign}{_trim(mantissa)}e-{-int(exponent)}"
    for factor, prefix in PREFIXES:
        if size >= factor:
            return f"{sign}{_fixed(size / factor, digits)}{prefix}"
    return f"{sign}{_fixed(size, digits)}"


def _fixed(size: float, digits: int) -> str:
    decimals = digits - 1 - math.floor(math.log10(size))
    return _trim(f"{size:.{max(decimals, 0)}f}")


def _trim(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def some(names: Sequence[str], num_shown: int = 3) -> str:
    """List names, of many the first: a, b, c and 2 more."""
    rest = len(names) - num_shown
    return ", ".join(names[:num_shown]) + (f" and {rest} more" if rest > 0 else "")
