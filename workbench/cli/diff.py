"""``workbench diff A B``: the keys in which two configs or runs differ, and who states each value.

Invariant: what is compared is resolved, so that two files that say the same in other words are
equal.
"""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from workbench.cli import output
from workbench.cli.config_arguments import (
    ConfigArgumentParser,
    examples_text,
    project_folder,
    typed_path,
)
from workbench.cli.configs import origin_json
from workbench.config.difference import Difference, differences
from workbench.config.inherit import Leaf, Origin, Overridden
from workbench.config.load import ConfigProblems, config_lines, read_resolved, resolve
from workbench.config.yaml_reader import write_scalar
from workbench.errors import ConfigError, ControlError, RunError
from workbench.runs.catalog import is_run
from workbench.runs.layout import RunFolder
from workbench.runs.registry import find_job

DESCRIPTION = """\
Show the keys in which two configs differ, both values, and who states each. A and B are configs, as
-t takes them, or runs: a run folder, a job id, or the name of a run.
"""

EXAMPLES = (
    ("diff demo 1gpu_llama_7b/default", "two configs"),
    ("diff demo output/demo-1", "a config, and what a run of it was"),
    ("diff demo-1 demo-2 --json", "two runs, for machines"),
)

OUTPUT_FOLDER = "training.output_dir"


class Side(NamedTuple):
    """One of the two that are compared.

    Attributes:
        name: as it was typed.
        kind: ``config`` or ``run``.
        path: its file, or the run folder.
        leaves: every key.
    """

    name: str
    kind: str
    path: Path
    leaves: dict[str, Leaf]


def run(arguments: list[str]) -> int:
    """Compare two configs or runs; 1 only where ``--exit-code`` asks for it and they differ."""
    options = _parse(arguments)
    project = project_folder(options.project)
    left, right = (_side(name, project) for name in options.configs)
    found = differences(left.leaves, right.leaves)
    if options.json:
        output.result_json(difference_json(left, right, found))
    else:
        for line in difference_lines(left, right, found):
            output.result(line)
    return 1 if found and options.exit_code else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ConfigArgumentParser(
        prog="workbench diff",
        usage="workbench diff A B [OPTIONS]",
        description=DESCRIPTION,
        epilog=examples_text(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("configs", metavar="CONFIG_OR_RUN", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("-t", "--config", metavar="CONFIG", help="the same as A")
    parser.add_argument(
        "-p", "--project", metavar="PROJECT", help="the folder that holds configs/; default: here"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--exit-code", action="store_true", help="exit with 1 where they differ; otherwise 0"
    )
    options = parser.parse_args(arguments)
    if options.config is not None:
        options.configs.insert(0, options.config)
    for name in options.configs:
        if "=" in name and not Path(name).exists():
            raise ConfigError(
                f"{name} would belong to neither of the two",
                where=parser.prog,
                remedy="make a config of it, and compare that: workbench new -t PARENT NAME "
                + name,
            )
    if len(options.configs) != 2:
        raise ConfigError(
            f"compares two, {len(options.configs)} given",
            where=parser.prog,
            remedy="name two configs or run folders: workbench diff A B",
        )
    return options


# ---- what is compared ---------------------------------------------------------------------------


def _side(name: str, project: Path | None) -> Side:
    """Find what is meant: a run folder, else a config, else a run by its job id or name.

    Raises:
        ConfigError: a config that is not there or has a mistake.
        RunError: a run folder that cannot be read.
        RefusedError: several runs match.
    """
    folder = typed_path(name, "run")
    if is_run(folder):
        return _run_side(name, RunFolder(folder))
    try:
        resolved = resolve(name, project=project)
    except ConfigProblems as error:
        if error.problems[0].source != f"config {name}":
            raise
        if folder.is_dir():
            raise RunError(
                "is a folder, but no run folder",
                where=name,
                remedy="name a run folder such as output/default-1, or a config",
            ) from None
        with contextlib.suppress(ControlError):
            return _run_side(name, find_job(name).folder)
        raise
    return Side(name, "config", resolved.file, resolved.leaves)


def _run_side(name: str, run_folder: RunFolder) -> Side:
    """Read what a run was started with: values from its config, origins from beside it."""
    config = read_resolved(run_folder.config)
    told = _told_origins(run_folder)
    values: dict[str, object] = {}
    for _, key in config_lines(config):
        if key is not None:
            values[key] = _value_at(msgspec.to_builtins(config), key)
    leaves = {}
    for number, (_, key) in enumerate(config_lines(config), start=1):
        if key is None:
            continue
        stated = Origin(f"{run_folder.config.name}:{number}", run_folder.config, number)
        leaf = told.get(key, Leaf(values[key], stated))
        if key == OUTPUT_FOLDER and values[key] == str(run_folder.path):
            # Every run lies in a folder of its own; what was asked for is compared.
            leaves[key] = leaf
        else:
            leaves[key] = Leaf(values[key], leaf.origin, leaf.overrode)
    return Side(name, "run", run_folder.path, leaves)


class _ToldOrigin(msgspec.Struct):
    value: object
    source: str
    file: str | None = None
    line: int | None = None
    overrode: list["_ToldOrigin"] = []

    def origin(self) -> Origin:
        return Origin(self.source, None if self.file is None else Path(self.file), self.line)


class _ToldOrigins(msgspec.Struct):
    leaves: dict[str, _ToldOrigin]


def _told_origins(run_folder: RunFolder) -> dict[str, Leaf]:
    """Read who stated the values of a run; nothing where that was not kept."""
    try:
        told = msgspec.json.decode(run_folder.origins.read_bytes(), type=_ToldOrigins)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot be read: {error}",
            where=str(run_folder.origins),
            remedy="remove it: origins are then the lines of the run's own config",
        ) from error
    return {
        key: Leaf(
            each.value,
            each.origin(),
            tuple(Overridden(old.value, old.origin()) for old in each.overrode),
        )
        for key, each in told.leaves.items()
    }


def _value_at(values: object, key: str) -> object:
    for part in key.split("."):
        assert isinstance(values, dict), key
        values = values[part]
    return values


# ---- what is shown ------------------------------------------------------------------------------


def difference_lines(left: Side, right: Side, found: Sequence[Difference]) -> list[str]:
    """Give the lines of ``diff``: both sides, each key with both values, and how many differ."""
    lines = output.columns(
        [[mark, side.name, side.kind, str(side.path)] for mark, side in (("A", left), ("B", right))]
    )
    lines.append("")
    for each in found:
        lines.append(each.key)
        lines += output.columns(
            [[f"  {mark}", *_told(leaf)] for mark, leaf in (("A", each.left), ("B", each.right))]
        )
    if found:
        lines.append("")
    return [*lines, summary(left, right, found)]


def _told(leaf: Leaf | None) -> list[str]:
    if leaf is None:
        return ["-", "no such key"]
    return [write_scalar(leaf.value), leaf.origin.source]


def summary(left: Side, right: Side, found: Sequence[Difference]) -> str:
    """Say in one line how many keys differ."""
    num_keys = len({*left.leaves, *right.leaves})
    if not found:
        return f"equal in all {num_keys} keys"
    if [each.key for each in found] == ["description"]:
        return f"equal but for the description, in {num_keys} keys"
    return f"{len(found)} of {num_keys} keys differ"


def difference_json(left: Side, right: Side, found: Sequence[Difference]) -> dict[str, object]:
    """Give the difference for machines."""
    return {
        "left": {"name": left.name, "kind": left.kind, "path": str(left.path)},
        "right": {"name": right.name, "kind": right.kind, "path": str(right.path)},
        "equal": not found,
        "only_description": [each.key for each in found] == ["description"],
        "keys": {
            each.key: {"left": _leaf_json(each.left), "right": _leaf_json(each.right)}
            for each in found
        },
    }


def _leaf_json(leaf: Leaf | None) -> dict[str, object] | None:
    if leaf is None:
        return None
    return {"value": leaf.value, "origin": origin_json(leaf.origin)}
