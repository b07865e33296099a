"""tree: the same files and overrides as text, as a picture, for machines."""

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.config.configs_on_disk import write_configs
from workbench.cli.main import main
from workbench.cli.tree import FORMATS
from workbench.config.find import shipped_configs
from workbench.config.load import parse_overrides, resolve
from workbench.config.tree_svg import tree_svg

SVG = "{http://www.w3.org/2000/svg}"

PROJECT = {
    "configs/base/bottom.yaml": """
        optimizer: {learning_rate: 5e-6, warmup_steps: 200}
        data: {sources: {poems: {path: poems.json}}}
        args:
          --lr: optimizer.learning_rate
          --name: {path: logging.name, short: -N, help: What it is called}
    """,
    "configs/base/side.yaml": "batch: {train: 4}",
    "configs/7b/top.yaml": """
        extends: [../base/bottom.yaml, ../base/side.yaml]
        description: "a small one: 7b"
        optimizer:
          learning_rate: 3.5e-6
    """,
}

EIGHT_FILES = {
    "configs/a.yaml": """
        extends: [b.yaml, sub/with_a_name_that_is_far_too_long_for_the_box_it_has/c.yaml, d.yaml]
        description: "<svg> & \\"quotes\\" \\x07 and words, many words, more than a line holds"
        data: {sources: {poems: {path: /data/far/down/below/many/folders/poems/of/all/ages.jsonl}}}
        samples: {prompts: ["Who are you, when nobody looks?", "你好，世界你好，世界你好，世界"]}
    """,
    "configs/b.yaml": """
        extends: [e.yaml, f.yaml]
        description: another
        data: {sources: {poems: {path: x.json}}}
        optimizer: {learning_rate: 1e-5, warmup_steps: 3}
    """,
    "configs/sub/with_a_name_that_is_far_too_long_for_the_box_it_has/c.yaml": """
        extends: [../../g.yaml, ../../f.yaml]
        samples: {prompts: ["One prompt"]}
        optimizer: {learning_rate: 2e-5}
    """,
    "configs/d.yaml": "{extends: h.yaml, optimizer: {learning_rate: 3e-5}}",
    "configs/e.yaml": "{extends: [h.yaml, g.yaml], optimizer: {learning_rate: 4e-5}}",
    "configs/f.yaml": "{extends: g.yaml, batch: {train: 3, evaluation: 9}}",
    "configs/g.yaml": "{extends: h.yaml, batch: {train: 4}, checkpoints: {keep: 2}}",
    "configs/h.yaml": """
        optimizer: {learning_rate: 5e-5, rounding: nearest}
        batch: {train: 9, evaluation: 4}
        checkpoints: {keep: 7}
    """,
}

TREE = """\
7b/top.yaml                          2 keys
├─ extends base/bottom.yaml          3 keys  1 shadowed
└─ extends base/side.yaml            1 key
+ flag --name                        1 key

{} keys, 1 override another
  optimizer.learning_rate  3.5e-06  7b/top.yaml:4
                           5.0e-06  before: base/bottom.yaml:1
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_configs(tmp_path, PROJECT)


@pytest.fixture
def eight_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_configs(tmp_path, EIGHT_FILES))
    return tmp_path


def test_tree_shows_every_file_and_every_override(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tree", "-t", "7b/top", "-p", str(project), "-N", "poet"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    expected = TREE.format(len(resolve("7b/top", project=project).leaves))
    assert [line.split() for line in shown.splitlines()] == [
        line.split() for line in expected.splitlines()
    ]
    assert main([*arguments, "--format", "text", "-o", str(tmp_path / "tree.txt")]) == 0
    assert (tmp_path / "tree.txt").read_text() == shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "tree.txt"]


def test_a_file_that_two_extend_is_told_once(
    eight_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tree", "-t", "a"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "extends g.yaml" in line]
    assert len(rows) > 1
    assert ["see above" in row for row in rows] == [False] + [True] * (len(rows) - 1)


def test_the_suffix_of_the_file_says_the_form(project: Path, tmp_path: Path) -> None:
    for form, suffix in FORMATS.items():
        by_name, by_suffix = tmp_path / f"{form}.out", tmp_path / f"tree.{suffix}"
        tree = ["tree", "-t", "7b/top", "-p", str(project)]
        assert main([*tree, "--format", form, "-o", str(by_name)]) == 0
        assert main([*tree, "-o", str(by_suffix)]) == 0
        assert by_name.read_bytes() == by_suffix.read_bytes()
    assert (tmp_path / "tree.svg").read_bytes() != (tmp_path / "tree.txt").read_bytes()


OVERRIDES = ["logging.name=<b>", "optimizer.warmup_steps=9", 'samples.prompts=["a & b"]']
Facts = tuple[set[str], set[str]]


def facts_in_text(text: str) -> Facts:
    tree, overrides = text.split(" override another\n")
    files = {
        re.sub(r"^[│ ]*[├└]─ extends ", "", line).split("  ")[0]
        for line in tree.splitlines()[:-2]
        if not line.startswith("+ ")
    }
    return files, {line.split()[0] for line in overrides.splitlines() if line[2] != " "}


def facts_in_svg(text: str) -> Facts:
    drawing = ElementTree.fromstring(text)
    groups = list(drawing.iter(f"{SVG}g"))
    files = {group.attrib["data-file"] for group in groups if "data-file" in group.attrib}
    replacing = [
        group
        for group in groups
        if "data-key" in group.attrib and " replaces " in (group.findtext(f"{SVG}title") or "")
    ]
    return files, {group.attrib["data-key"] for group in replacing}


def facts_in_json(text: str) -> Facts:
    tree = json.loads(text)
    return {file["file"] for file in tree["files"]}, {each["key"] for each in tree["overrides"]}


@pytest.mark.usefixtures("eight_files")
def test_the_three_forms_hold_the_same_files_and_overrides(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = {}
    for form in FORMATS:
        assert main(["tree", "-t", "a", "--format", form, *OVERRIDES]) == 0
        shown[form] = capsys.readouterr().out
    files, overrides = facts_in_json(shown["json"])
    assert len(files) == 8
    assert {"optimizer.learning_rate", "samples.prompts", "batch.train"} <= overrides
    assert facts_in_text(shown["text"]) == (files, overrides)
    assert facts_in_svg(shown["svg"]) == (files, overrides)


@pytest.mark.usefixtures("eight_files")
def test_the_picture_tells_every_old_value_with_its_line_and_the_new_one() -> None:
    resolved = resolve("a", overrides=parse_overrides(OVERRIDES))
    titles = {
        group.findtext(f"{SVG}title")
        for group in ElementTree.fromstring(tree_svg(resolved)).iter(f"{SVG}g")
    }
    num_steps = 0
    for key, leaf in resolved.leaves.items():
        for old in leaf.overrode:
            num_steps += 1
            told = [title for title in titles if title and f"({old.origin.source})" in title]
            assert [title for title in told if title.startswith(f"{key}: ")]
    assert num_steps > 10


@pytest.mark.usefixtures("eight_files")
def test_the_picture_is_well_formed_and_its_ids_are_unique() -> None:
    drawing = ElementTree.fromstring(tree_svg(resolve("a", overrides=parse_overrides(OVERRIDES))))
    ids = [element.attrib["id"] for element in drawing.iter() if "id" in element.attrib]
    assert len(ids) > 20
    assert len(set(ids)) == len(ids)
    arrows = [
        element
        for element in drawing.iter(f"{SVG}path")
        if element.attrib.get("marker-end") == "url(#head)"
    ]
    files = resolve("a").files
    assert len(files.parents) == 3
    assert len(arrows) == 3 + 2 + 2 + 1 + 2 + 1 + 1 + 1  # of each file, and one in the legend


def box_of(group: ElementTree.Element) -> tuple[float, float, float, float]:
    (rect,) = [each for each in group.iter(f"{SVG}rect") if each.attrib.get("class") == "box"]
    x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


@pytest.mark.usefixtures("eight_files")
def test_no_box_lies_on_another_and_all_lie_on_the_ground() -> None:
    drawing = ElementTree.fromstring(tree_svg(resolve("a", overrides=parse_overrides(OVERRIDES))))
    width, height = float(drawing.attrib["width"]), float(drawing.attrib["height"])
    kinds = ("file root", "file base", "flags")
    boxes = [
        box_of(group) for group in drawing.iter(f"{SVG}g") if group.attrib.get("class") in kinds
    ]
    assert len(boxes) == 9
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert left > 0
        assert top > 0
        assert right < width
        assert bottom < height
        for other_left, other_top, other_right, other_bottom in boxes[:number]:
            is_beside = right <= other_left or other_right <= left
            assert is_beside or bottom <= other_top or other_bottom <= top


@pytest.mark.usefixtures("eight_files")
def test_no_line_of_text_is_wider_than_its_box() -> None:
    drawing = ElementTree.fromstring(tree_svg(resolve("a", overrides=parse_overrides(OVERRIDES))))
    num_lines = 0
    for group in drawing.iter(f"{SVG}g"):
        if "data-file" not in group.attrib:
            continue
        _, _, right, _ = box_of(group)
        for text in group.iter(f"{SVG}text"):
            spans = [(span.attrib["class"], span.text or "") for span in text]
            # Of fixed-pitch characters; text of two columns per character is cut by columns.
            reach = float(text.attrib["x"]) + sum(
                len(words) * 0.605 * (11 if kind == "origin" else 12.5)
                for kind, words in spans
                if "words" not in kind and "path" not in kind
            )
            assert reach <= right, spans
            num_lines += bool(spans)
    assert num_lines > 30


def test_names_that_no_xml_may_hold_are_drawn_with_a_mark_in_their_place(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"odd \xff\x07 <name>")
    write_configs(
        folder,
        {
            "configs/a.yaml": """
                extends: b.yaml
                data: {sources: {"o\\x07<&>": {path: x.json}}}
            """,
            "configs/b.yaml": 'data: {sources: {"o\\x07<&>": {path: y.json}}}',
        },
    )
    for form in ("svg", "text"):
        written = tmp_path / f"tree.{form}"
        given = ["-t", str(folder / "configs/a.yaml"), "--format", form, "-o", str(written)]
        assert main(["tree", *given]) == 0
    drawing = ElementTree.parse(tmp_path / "tree.svg")
    keys = {group.attrib.get("data-key") for group in drawing.iter(f"{SVG}g")}
    assert "data.sources.o\ufffd<&>.path" in keys
    assert b"odd \xff" in (tmp_path / "tree.text").read_bytes()


def test_every_shipped_config_can_be_drawn() -> None:
    names = sorted(
        path.relative_to(shipped_configs()).with_suffix("").as_posix()
        for path in shipped_configs().rglob("*.yaml")
    )
    assert len(names) > 3
    for name in names:
        ElementTree.fromstring(tree_svg(resolve(name)))
