"""``workbench tree``: which file extends which, and what each replaces, as text, SVG or JSON.

Invariant: the three forms show the same files and the same replaced values.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import read_config_arguments
from workbench.cli.configs import origin_json
from workbench.cli.text_result import add_text_options, give_text
from workbench.config.family_tree import FamilyTree, TreeFile, family_tree
from workbench.config.inherit import Leaf
from workbench.config.tree_svg import draw
from workbench.config.yaml_reader import write_scalar

FORMATS = {"text": "txt", "svg": "svg", "json": "json"}
"""Form, and suffix of its file."""


def run(arguments: list[str]) -> int:
    """Show which file extends which, how many keys each states, and every override."""
    read = read_config_arguments(
        arguments,
        verb="tree",
        summary="Show which file extends which, and what each overrides.",
        add_options=_add_options,
        examples=(
            ("tree -t demo", "in the terminal"),
            ("tree -t demo -o demo.svg", "as a picture, in a file"),
            ("tree -t demo --format svg -e", "as a picture, in the editor"),
        ),
    )
    form = _form(read.options)
    text = tree_in(form, family_tree(read.resolved))
    give_text(text, read.options, name=f"{read.resolved.name}.tree.{FORMATS[form]}")
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_text_options(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--format",
        choices=list(FORMATS),
        help="default: that of the file's suffix, else text",
    )
    form.add_argument("--json", action="store_true", help="the same as --format json")


def _form(options: argparse.Namespace) -> str:
    """Give the form that is asked for: by name, or by the suffix of the file."""
    if options.format is not None or options.json:
        form: str = options.format or "json"
        return form
    suffix = Path(options.output or "").suffix.removeprefix(".").lower()
    return suffix if suffix in FORMATS else "text"


def tree_in(form: str, tree: FamilyTree) -> str:
    """Give the family tree as ``text``, ``svg`` or ``json``."""
    match form:
        case "svg":
            return draw(tree)
        case "json":
            return output.as_json(tree_json(tree))
        case _:
            return tree_text(tree)


def tree_text(tree: FamilyTree) -> str:
    """Give the family tree for a terminal, its overrides below it."""
    files = {file.path: file for file in tree.files}
    rows = list(_file_rows(tree.files[0], files, set(), "", ""))
    if tree.beside:
        sources = dict.fromkeys(leaf.origin.source for leaf in tree.beside.values())
        rows.append([f"+ {', '.join(sources)}", _keys(len(tree.beside)), ""])
    lines = output.columns(rows, right=(1, 2))
    lines += ["", f"{len(tree.leaves)} keys, {len(tree.overridden)} override another"]
    overrides = [row for key, leaf in tree.overridden.items() for row in _chain_rows(key, leaf)]
    key_width = max((len(key) for key, _, _ in overrides), default=0)
    value_width = max(
        (len(value) for _, value, _ in overrides if len(value) <= _WIDEST_VALUE), default=0
    )
    return "\n".join(
        [
            *lines,
            *(
                f"  {key.ljust(key_width)}  {value.ljust(value_width)}  {source}"
                for key, value, source in overrides
            ),
        ]
    )


_WIDEST_VALUE = 32
"""Longer values push their origin to the right, and none but their own."""


def _chain_rows(key: str, leaf: Leaf) -> Iterator[tuple[str, str, str]]:
    """Give the value that counts, and below it each one it took the place of."""
    yield key, write_scalar(leaf.value), leaf.origin.source
    for old in leaf.overrode:
        yield "", write_scalar(old.value), f"before: {old.origin.source}"


def _file_rows(
    file: TreeFile, files: dict[Path, TreeFile], shown: set[Path], first: str, other: str
) -> Iterator[list[str]]:
    if file.path in shown:
        yield [first + file.shown, "see above", ""]
        return
    shown.add(file.path)
    shadowed = f"{file.num_shadowed} shadowed" if file.num_shadowed else ""
    yield [first + file.shown, _keys(file.num_keys), shadowed]
    for index, path in enumerate(file.extends):
        is_last = index == len(file.extends) - 1
        yield from _file_rows(
            files[path],
            files,
            shown,
            other + ("└─ extends " if is_last else "├─ extends "),
            other + ("   " if is_last else "│  "),
        )


def _keys(number: int) -> str:
    return f"{number} key" + ("" if number == 1 else "s")


def tree_json(tree: FamilyTree) -> dict[str, object]:
    """Give the family tree for machines."""
    shown = {file.path: file.shown for file in tree.files}
    return {
        "name": tree.name,
        "description": tree.description,
        "num_keys": len(tree.leaves),
        "files": [
            {
                "file": file.shown,
                "path": str(file.path),
                "num_keys": file.num_keys,
                "num_shadowed": file.num_shadowed,
                "extends": [shown[path] for path in file.extends],
            }
            for file in tree.files
        ],
        "beside": [
            {"key": key, "value": leaf.value, "source": leaf.origin.source}
            for key, leaf in tree.beside.items()
        ],
        "overrides": [
            {
                "key": key,
                "value": leaf.value,
                "origin": origin_json(leaf.origin),
                "overrode": [
                    {"value": old.value, "origin": origin_json(old.origin)} for old in leaf.overrode
                ],
            }
            for key, leaf in tree.overridden.items()
        ],
    }
