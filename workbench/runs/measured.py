"""What runs measured: the newest with a config's settings, and a run beside its own prediction.

Reads run folders, writes nothing. Invariant: a run of other settings is never given.
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from workbench.config.load import ResolvedConfig, read_resolved
from workbench.config.memory_plan import MeasuredRun
from workbench.config.problems import ConfigProblems
from workbench.config.schema.config import Config
from workbench.runs.catalog import last_metrics
from workbench.runs.layout import RunFolder

# What bytes and seconds depend on, apart from the data itself.
_SECTIONS = ("model", "batch", "memory", "pipeline")
_KEYS = (
    ("data", "sources"),
    ("data", "max_length"),
    ("data", "pad_to"),
    ("data", "packing"),
    ("optimizer", "name"),
    ("optimizer", "rounding"),
    ("training", "engine"),
    ("training", "device"),
)


def measured_run(resolved: ResolvedConfig, output_root: Path) -> MeasuredRun | None:
    """Find the newest numbered run of a config that has the same settings and measured peaks.

    Args:
        resolved: the config; its run folders are ``<name>-<number>``.
        output_root: where numbered run folders lie.
    """
    wanted = re.compile(re.escape(resolved.name.rsplit("/", 1)[-1]) + r"-(\d+)")
    try:
        named = [(wanted.fullmatch(path.name), path) for path in output_root.iterdir()]
    except OSError:
        return None
    numbered = [(int(match.group(1)), path) for match, path in named if match]
    for _, path in sorted(numbered, reverse=True):
        run = RunFolder(path)
        plan = _read_plan(run.plan)
        measured = plan.get("measured")
        if not isinstance(measured, dict):
            continue
        with contextlib.suppress(ConfigProblems):
            if _settings(read_resolved(run.config)) == _settings(resolved.config):
                return _measured(run, plan, measured)
    return None


@dataclass(frozen=True)
class PlanComparison:
    """What a run's plan predicted and what the run measured; None where one of them is not known.

    Bytes are those that torch reserved of the GPU, seconds those of a step.
    """

    predicted_bytes: int | None
    measured_bytes: int | None
    predicted_seconds: float | None
    measured_seconds: float | None


def compare_plan(run: RunFolder) -> PlanComparison:
    """Read what stands in a run's plan.json; nothing is measured before the run has ended."""
    plan = _read_plan(run.plan)

    def seconds(key: str) -> float | None:
        found = plan.get(key)
        return float(found) if isinstance(found, int | float) else None

    return PlanComparison(
        predicted_bytes=_whole_number(plan.get("predicted"), "reserved"),
        measured_bytes=_whole_number(plan.get("measured"), "peak_gpu_reserved_bytes"),
        predicted_seconds=seconds("predicted_seconds"),
        measured_seconds=seconds("measured_seconds"),
    )


def _settings(config: Config) -> list[object]:
    sections = [getattr(config, section) for section in _SECTIONS]
    return [*sections, *(getattr(getattr(config, section), key) for section, key in _KEYS)]


def _read_plan(path: Path) -> Mapping[str, Any]:
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _measured(
    run: RunFolder, plan: Mapping[str, object], measured: Mapping[str, object]
) -> MeasuredRun:
    metrics = last_metrics(run)
    return MeasuredRun(
        name=run.name,
        gpu_reserved_bytes=_whole_number(measured, "peak_gpu_reserved_bytes"),
        predicted_bytes=_whole_number(plan.get("predicted"), "reserved"),
        host_peak_bytes=_whole_number(measured, "peak_host_bytes"),
        tokens_per_second=metrics.tokens_per_second if metrics else None,
        microbatches=_whole_number(plan, "microbatches"),
    )


def _whole_number(values: object, key: str) -> int | None:
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if type(found) is int else None
