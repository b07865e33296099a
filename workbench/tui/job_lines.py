"""What is told about one job, line by line; pure but for the pictures it reads."""

import textwrap

from textual.content import Content

from workbench.runs.metrics import shares
from workbench.tui import words
from workbench.tui.job_picture import JobPicture, spoken
from workbench.tui.keys import hint
from workbench.tui.widgets.bars import level_bar, progress_bar
from workbench.tui.words import short

_MOST_SAMPLES = 3


def detail_lines(picture: JobPicture, now: float, width: int, path: str) -> list[Content]:
    """Give the lines about a job, the most important first."""
    lines = [
        _progress(picture, width),
        *_silence(picture, now),
        *_reason(picture, width),
        *_in_lines(_numbers(picture), width),
        *_in_lines(_speed(picture), width),
        *_in_lines(_saved(picture, now), width),
        *_said(picture, width),
    ]
    lines.append(_contact(picture, now))
    lines.extend(_in_lines(_shares(picture), width))
    lines.extend(_memory(picture, width))
    if path:
        lines.append(Content.assemble(("run  ", "$quiet"), words.shorten_path(path, width - 5)))
    return [line for line in lines if line.plain.strip()]


def _pairs(*pairs: tuple[str, str]) -> list[Content]:
    """Write each name dim and its number plain; pairs without a number are left out."""
    return [Content.assemble((f"{name} ", "$quiet"), value) for name, value in pairs if value]


def _in_lines(parts: list[Content], width: int) -> list[Content]:
    """Put parts side by side, two blanks between them, on as many lines as they need."""
    lines: list[Content] = []
    for part in parts:
        if lines and lines[-1].cell_length + 2 + part.cell_length <= width:
            lines[-1] = lines[-1].append("  ").append(part)
        else:
            lines.append(part)
    return lines


def _progress(picture: JobPicture, width: int) -> Content:
    if not picture.max_steps:
        return _pairs(("step", f"{picture.step}"))[0]
    left = Content.assemble(
        ("step ", "$quiet"), (f"{picture.step}/{picture.max_steps}", "bold"), " "
    )
    share = picture.step / picture.max_steps
    eta = picture.eta_seconds
    right = f" {words.percent(picture.step, picture.max_steps):>5}" + (
        f"  ETA {words.duration(eta)}" if eta is not None else ""
    )
    room = width - left.cell_length - len(right)
    return left.append(progress_bar(share, max(room, 4))).append(right)


def _silence(picture: JobPicture, now: float) -> list[Content]:
    """Say that nothing happens; whether that is a fault nobody knows."""
    idle = picture.idle(now)
    if idle is None or not picture.is_silent(now):
        return []
    text = f"silent for {words.duration(idle)}: no step has ended since"
    return [Content.assemble(("? ", "bold $note"), text)]


def _reason(picture: JobPicture, width: int) -> list[Content]:
    outcome = picture.outcome
    if outcome is None or not (outcome.reason or outcome.message):
        return []
    first = outcome.first_error
    text = first.message if first and first.message else outcome.message
    where = f"rank {first.rank}: " if first and first.rank is not None else ""
    reason = f"{outcome.reason}: " if outcome.reason else ""
    lines = [
        Content.assemble(
            ("✗ ", "bold $bad"), f"{reason}{where}{text.splitlines()[0] if text else ''}"
        )
    ]
    remedy = first.remedy if first else ""
    if outcome.state == "lost":
        remedy = f"{hint('start_again')} starts it again; tidy up: workbench control cleanup"
    for each in remedy.splitlines():
        first_line, *rest = textwrap.wrap(each, max(width - 2, 20)) or [""]
        lines.append(Content.assemble(("→ ", "$primary"), first_line))
        lines += [Content(f"  {line}") for line in rest]
    return lines


def _numbers(picture: JobPicture) -> list[Content]:
    last, evaluation, best = picture.last, picture.last_evaluation, picture.best_evaluation
    evaluated = ""
    if evaluation is not None:
        evaluated = f"{words.loss(evaluation.loss)} @{evaluation.step}"
        if best is not None and best.step == evaluation.step:
            evaluated += " (best)"
        elif best is not None:
            evaluated += f" (best {words.loss(best.loss)} @{best.step})"
    return _pairs(
        ("loss", words.loss(last.loss) if last else "–"),
        ("eval", evaluated),
        ("lr", words.learning_rate(last.learning_rate) if last else ""),
    )


def _speed(picture: JobPicture) -> list[Content]:
    last = picture.last
    if last is None:
        return []
    norm = "–" if last.gradient_norm is None else short(last.gradient_norm)
    return [
        Content(words.rate(last.tokens_per_second)),
        *_pairs(
            ("MFU", f"{100 * last.mfu:.0f} %" if last.mfu is not None else ""),
            ("gnorm", norm),
            ("epoch", f"{last.epoch:.2f}"),
            ("tokens", short(last.tokens)),
            ("skipped", str(last.skipped_steps) if last.skipped_steps else ""),
        ),
    ]


def _shares(picture: JobPicture) -> list[Content]:
    """Say what the device was busy with in the last window that knows it."""
    return _pairs(*shares(picture.last_timed)) if picture.last_timed is not None else []


def _saved(picture: JobPicture, now: float) -> list[Content]:
    saved = picture.last_checkpoint
    if saved is None:
        return _pairs(("last save", "none yet"))
    best = " best" if saved.best else ""
    return _pairs(
        ("last save", f"checkpoint-{saved.step}{best}, {words.duration(now - saved.time)} ago"),
        ("size", words.size(saved.bytes)),
    )


def _said(picture: JobPicture, width: int) -> list[Content]:
    """Say what the model answered last: a prompt takes two lines at most, three are shown."""
    lines = []
    for sample in picture.samples[:_MOST_SAMPLES]:
        name = f"said @{sample.step}  "
        text = textwrap.shorten(spoken(sample), max(2 * (width - len(name)) - 8, 20))
        first, *more = textwrap.wrap(text, max(width - len(name), 10)) or [""]
        lines.append(Content.assemble((name, "$quiet"), first))
        lines += [Content(" " * len(name) + each) for each in more]
    left = len(picture.samples) - _MOST_SAMPLES
    if left > 0:
        lines.append(Content.assemble((f"and {left} more in the log", "$quiet")))
    return lines


def _contact(picture: JobPicture, now: float) -> Content:
    idle = picture.idle(now)
    parts: list[Content] = []
    if idle is not None:
        parts += _pairs(("idle", words.duration(idle)))
    parts += _pairs(("attempt", str(picture.attempt or 1)))
    if picture.has_ended:
        return Content(" · ").join(parts)
    parts.append(
        Content("supervisor answers")
        if picture.has_link
        else Content.assemble(("supervisor does not answer", "$note"))
    )
    return Content(" · ").join(parts)


def _memory(picture: JobPicture, width: int) -> list[Content]:
    curves = picture.curves
    if curves is None:
        return []
    series, name = (curves.gpu_memory, "GPU") if curves.gpu_memory else (curves.host_memory, "RAM")
    lines = []
    for rank, each in enumerate(series):
        last = each.last
        if last is None:
            continue
        peak = max(float(value) for value in each.y[-512:] if value == value)
        label = name if len(series) == 1 else f"{name} {rank}"
        bar = level_bar(last[1] / (peak * 1.25) if peak else 0.0, max(min(width - 36, 24), 6))
        numbers = f" {last[1]:.2f} GiB  peak {peak:.2f}"
        lines.append(Content.assemble((f"{label} ", "$quiet")).append(bar).append(numbers))
    return lines
