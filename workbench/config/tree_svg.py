"""The family tree of a config as a picture: SVG written here, by no other program.

A box for each file, the config on top, what it extends below; in each box the values it replaces,
the old one struck. Boxes are set in layers, lines around boxes run in gaps of their own. The
picture carries its own light ground, so that it reads the same in a dark viewer, and needs no font
but the viewer's own: widths are reckoned for the widest usual one.

Knows nothing of YAML. Invariant: well-formed XML whatever keys, values and paths hold; a text that
was cut stands whole in the title (the tooltip) of its box or row.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from workbench.config.family_tree import FamilyTree, Replacement, TreeFile, family_tree
from workbench.config.load import ResolvedConfig
from workbench.config.yaml_reader import write_scalar

MARGIN = 44.0
GAP_X = 44.0
GAP_Y = 72.0
COLUMN = 400.0
"""Width of a column of replacements; a box has one, or two where it makes many."""

PADDING = 20.0
HEAD = 68.0
KEY_LINE = 17.0
VALUE_LINE = 18.0
ROW_GAP = 12.0
NUM_ROWS_OF_ONE_COLUMN = 10

CELL = 0.605
"""Width of a character of a fixed-pitch font, as a share of its size."""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_STYLE = """\
text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 12.5px; fill: #1d2433; }
.words { font-family: system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
.name { font-size: 22px; font-weight: 700; }
.description { font-size: 14px; fill: #4a5468; }
.facts { font-size: 12px; fill: #667085; }
.path { font-size: 14px; font-weight: 700; }
.folder { font-weight: 400; fill: #667085; }
.key { fill: #1d2433; }
.section { fill: #667085; }
.old { fill: #7a8496; text-decoration: line-through; }
.origin { font-size: 11px; fill: #7a8496; }
.arrow { fill: #98a2b3; }
.new { fill: #067647; font-weight: 700; }
.same { fill: #4a5468; }
.gone { fill: #7a8496; text-decoration: line-through; }
.box { fill: #ffffff; stroke: #d5dae3; }
.shadow { fill: #101828; fill-opacity: 0.05; }
.root .band { fill: #2f5fd8; } .base .band { fill: #8390a5; } .flags .band { fill: #c4710a; }
.root .path { fill: #2450bf; } .flags .path { fill: #9a5605; }
.flags .box { fill: #fffaf2; stroke: #ecd9b8; }
.rule { stroke: #e8ebf0; }
.rest { fill: #e3e7ee; } .share { fill: #8fb5a3; }
.edge { fill: none; stroke: #94a0b4; stroke-width: 1.6; }
.beside { stroke: #d9a45b; stroke-dasharray: 5 4; }
.head { fill: #94a0b4; } .head-beside { fill: #d9a45b; }
.order { fill: #ffffff; stroke: #c3cad6; } .number { font-size: 10.5px; fill: #667085; }"""


def tree_svg(resolved: ResolvedConfig) -> str:
    """Draw the family tree of a config."""
    return draw(family_tree(resolved))


def draw(tree: FamilyTree) -> str:
    """Draw a family tree: pure, the same tree gives the same bytes."""
    boxes = {file.path: _file_box(tree, file, index) for index, file in enumerate(tree.files)}
    flags = _flags_box(tree)
    places = _layout(tree, boxes)
    width = max(places.width, flags.width if flags else 0.0, 600.0) + 2 * MARGIN
    left = (width - places.width) / 2
    title_height = 78.0 + (20.0 if tree.description else 0.0)
    top = MARGIN + title_height
    flags_height = flags.height + GAP_Y if flags else 0.0
    below = top + flags_height

    parts: list[str] = []
    for edge in places.edges:
        parts += _edge(edge, left, below)
    if flags:
        root = places.spots[tree.files[0].path]
        parts += _flags_edge(left + root.x, top + flags.height, below + root.y)
        parts += flags.drawn(left + root.x - flags.width / 2, top)
    for path, box in boxes.items():
        spot = places.spots[path]
        parts += box.drawn(left + spot.x - box.width / 2, below + spot.y)
    for edge in places.edges:
        parts += _order(edge, left, below)
    height = below + places.height + 90.0 + MARGIN / 2
    legend = _legend(MARGIN, below + places.height + 44.0)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_number(width)}"'
            f' height="{_number(height)}" viewBox="0 0 {_number(width)} {_number(height)}"'
            ' role="img" aria-labelledby="title summary">',
            f'<title id="title">{_xml(tree.name)}: which file extends which</title>',
            f'<desc id="summary">{_xml(_summary(tree))}</desc>',
            f"<style>\n{_STYLE}\n</style>",
            "<defs>",
            *_arrow_head("head", "head"),
            *_arrow_head("head-beside", "head-beside"),
            "</defs>",
            f'<rect id="ground" width="{_number(width)}" height="{_number(height)}"'
            ' fill="#f5f7fa"/>',
            *_title(tree, width),
            *parts,
            *legend,
            "</svg>",
        ]
    )


def _summary(tree: FamilyTree) -> str:
    several = "s" if len(tree.files) > 1 else ""
    told = f"{len(tree.files)} file{several} · {len(tree.leaves)} keys"
    told += f" · {len(tree.overridden)} replace another value"
    if tree.beside:
        told += f" · {len(tree.beside)} set on the command line"
    return told


def _title(tree: FamilyTree, width: float) -> Iterator[str]:
    num_cells = int((width - 2 * MARGIN) / (22 * CELL))
    yield _text(MARGIN, MARGIN + 20, [("name", _end_cut(tree.name, num_cells))])
    y = MARGIN + 44
    if tree.description:
        num_cells = int((width - 2 * MARGIN) / (14 * 0.56))
        told = _end_cut(" ".join(tree.description.split()), num_cells)
        yield _text(MARGIN, y, [("description words", told)])
        y += 20
    yield _text(MARGIN, y, [("facts words", _summary(tree))])


def _legend(x: float, y: float) -> Iterator[str]:
    yield f'<path class="edge" d="M {_number(x)} {_number(y - 4)} h 30" marker-end="url(#head)"/>'
    yield _text(x + 40, y, [("facts words", "extends; of several a later one wins")])
    yield _rect(x + 270, y - 8, "90", "6", 'class="rest" rx="3"')
    yield _rect(x + 270, y - 8, "60", "6", 'class="share" rx="3"')
    yield _text(x + 370, y, [("facts words", "share of its keys that count")])
    y += 22
    old: list[tuple[str, str]] = [("old", "old"), ("origin", " who stated it")]
    new = [("new", "new"), ("facts words", ", "), ("same", "the same again")]
    gone = [("facts words", ", or "), ("gone", "new"), ("facts words", " replaced in turn")]
    yield _text(x, y, [*old, ("arrow", " → "), *new, *gone])


# ---- boxes --------------------------------------------------------------------------------------


@dataclass
class _Row:
    """A replacement inside a box: texts by line, and the whole of it for the tooltip."""

    lines: list[list[tuple[str, str]]]
    title: str
    key: str

    @property
    def height(self) -> float:
        return KEY_LINE + VALUE_LINE * (len(self.lines) - 1) + ROW_GAP


@dataclass
class _Box:
    """A box and what stands in it; ``drawn`` puts it in its place."""

    ident: str
    kind: str
    title: str
    heading: list[tuple[str, str]]
    facts: str
    share: float | None
    rows: list[_Row]
    attribute: str = ""
    columns: list[list[_Row]] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.rows) <= NUM_ROWS_OF_ONE_COLUMN:
            self.columns = [self.rows] if self.rows else []
            return
        half = sum(row.height for row in self.rows) / 2
        first: list[_Row] = []
        while sum(row.height for row in first) < half:
            first.append(self.rows[len(first)])
        self.columns = [first, self.rows[len(first) :]]

    @property
    def width(self) -> float:
        num_columns = max(1, len(self.columns))
        return num_columns * COLUMN + (num_columns + 1) * PADDING

    @property
    def height(self) -> float:
        tallest = max((sum(row.height for row in rows) for rows in self.columns), default=0.0)
        return HEAD + (tallest + 14 if self.rows else 0.0)

    def drawn(self, x: float, y: float) -> Iterator[str]:
        """Give the elements of the box, its upper left corner at (x, y)."""
        width, height = _number(self.width), _number(self.height)
        yield f'<g id="{self.ident}" class="{self.kind}"{self.attribute}>'
        yield f"<title>{_xml(self.title)}</title>"
        yield _rect(x + 1.5, y + 3, width, height, 'class="shadow" rx="9"')
        yield _rect(x, y, width, height, 'class="box" rx="9"')
        yield _rect(x, y + 14, "4", _number(HEAD - 28), 'class="band" rx="2"')
        yield _text(x + PADDING, y + 29, self.heading)
        yield _text(x + PADDING, y + 49, [("facts words", self.facts)])
        if self.share is not None:
            bar_x = x + self.width - PADDING - 90
            yield _rect(bar_x, y + 42, "90", "6", 'class="rest" rx="3"')
            filled = _number(max(90 * self.share, 0.0))
            yield _rect(bar_x, y + 42, filled, "6", 'class="share" rx="3"')
        if self.rows:
            yield (
                f'<path class="rule" d="M {_number(x + PADDING)} {_number(y + HEAD)}'
                f' h {_number(self.width - 2 * PADDING)}"/>'
            )
        for index, rows in enumerate(self.columns):
            row_x = x + PADDING + index * (COLUMN + PADDING)
            row_y = y + HEAD + 24
            for number, row in enumerate(rows):
                ident = f"{self.ident}-{index + 1}-{number + 1}"
                yield f'<g id="{ident}" class="override" data-key={quoteattr(_plain(row.key))}>'
                yield f"<title>{_xml(row.title)}</title>"
                line_y = row_y
                for at, line in enumerate(row.lines):
                    yield _text(row_x + (14 if at else 0), line_y, line)
                    line_y += KEY_LINE if at == 0 else VALUE_LINE
                yield "</g>"
                row_y += row.height
        yield "</g>"


def _file_box(tree: FamilyTree, file: TreeFile, index: int) -> _Box:
    num_cells = int(COLUMN / (14 * CELL))
    folder, slash, name = _start_cut(file.shown, num_cells).rpartition("/")
    num_left = file.num_keys - file.num_shadowed
    several = "" if file.num_keys == 1 else "s"
    facts = f"{file.num_keys} key{several}"
    if file.num_shadowed:
        facts += f" · {file.num_shadowed} shadowed"
    rows = [_row(step) for step in tree.made_in(file.path)]
    if rows:
        facts += f" · {_replaces(len(rows))}"
    return _Box(
        ident=f"file-{index + 1}",
        kind="file root" if index == 0 else "file base",
        title=file.shown,
        heading=[("path folder", folder + slash), ("path", name)],
        facts=facts,
        share=num_left / file.num_keys if file.num_keys else None,
        rows=rows,
        attribute=f" data-file={quoteattr(_plain(file.shown))}",
    )


def _flags_box(tree: FamilyTree) -> _Box | None:
    steps = tree.made_beside()
    if not steps:
        return None
    several = "" if len(tree.beside) == 1 else "s"
    replaced = sum(step.old_origin is not None for step in steps)
    facts = f"{len(tree.beside)} key{several}" + (f" · {_replaces(replaced)}" if replaced else "")
    return _Box(
        ident="beside",
        kind="flags",
        title="flags and key=value, applied last",
        heading=[("path", "+ on the command line")],
        facts=facts,
        share=None,
        rows=[_row(step, with_source=True) for step in steps],
    )


def _replaces(number: int) -> str:
    return f"replaces {number} value{'' if number == 1 else 's'}"


def _row(step: Replacement, *, with_source: bool = False) -> _Row:
    """Lay a replacement out: the key, then old → new in one line, or in two where it is long."""
    value, old = write_scalar(step.value), write_scalar(step.old_value)
    title = f"{step.key}: {value} ({step.origin.source})"
    section, dot, name = _start_cut(step.key, 52).rpartition(".")
    key_line = [("section", section + dot), ("key", name)]
    if with_source:
        key_line.append(("origin", f"  {_end_cut(step.origin.source, 20)}"))
    new_class = _class_of(step)
    num_cells = int((COLUMN - 14) / (12.5 * CELL))
    if step.old_origin is None:
        return _Row([key_line, [(new_class, _cut(value, num_cells))]], title, step.key)
    title += f" replaces {old} ({step.old_origin.source})"
    source = _start_cut(step.old_origin.source, 30)
    # The origin is set in a smaller size.
    source_cells = _cells(source) * 11 / 12.5 + 1
    if _cells(old) + source_cells + 3 + _cells(value) <= num_cells:
        line = [("old", old), ("origin", f" {source}"), ("arrow", " → "), (new_class, value)]
        return _Row([key_line, line], title, step.key)
    return _Row(
        [
            key_line,
            [("old", _cut(old, int(num_cells - source_cells))), ("origin", f" {source}")],
            *_new_lines(value, new_class, num_cells - 2),
        ],
        title,
        step.key,
    )


def _class_of(step: Replacement) -> str:
    if not step.counts:
        return "gone"
    is_same = step.old_origin is not None and write_scalar(step.value) == write_scalar(
        step.old_value
    )
    return "same" if is_same else "new"


def _new_lines(value: str, kind: str, num_cells: int) -> list[list[tuple[str, str]]]:
    """Set a new value in one line, or in two where it is long; a path is cut instead."""
    if _cells(value) <= num_cells or " " not in value[: num_cells // 2]:
        return [[("arrow", "→ "), (kind, _cut(value, num_cells))]]
    at = value.rfind(" ", 0, len(_end_cut(value, num_cells)) - 1)
    first, rest = value[:at], value[at + 1 :]
    return [
        [("arrow", "→ "), (kind, first)],
        [("arrow", "  "), (kind, _end_cut(rest, num_cells))],
    ]


# ---- where boxes stand --------------------------------------------------------------------------


@dataclass
class _Spot:
    """Middle of the upper side of a box, or of the gap a long line runs in."""

    x: float = 0.0
    y: float = 0.0


@dataclass
class _Edge:
    """A line from a file down to one that it extends.

    Attributes:
        points: pairs of upper and lower y at one x: where the line runs straight down.
        number: place in the list of `extends:`, None where there is only one.
    """

    points: list[tuple[float, float, float]]
    number: int | None


@dataclass
class _Places:
    spots: dict[Path, _Spot]
    edges: list[_Edge]
    width: float
    height: float


_Node = Path | tuple[Path, Path, int]
"""A file, or the gap in a layer that the line between two files runs through."""

_GAP_WIDTH = 28.0


def _layout(tree: FamilyTree, boxes: dict[Path, _Box]) -> _Places:
    """Set boxes in layers by their longest way from the config, each below those that extend it."""
    extends = {file.path: file.extends for file in tree.files}
    depth = dict.fromkeys(extends, 0)
    for _ in extends:
        for path, parents in extends.items():
            for parent in parents:
                depth[parent] = max(depth[parent], depth[path] + 1)
    layers: list[list[_Node]] = [[] for _ in range(max(depth.values()) + 1)]
    above: dict[_Node, list[_Node]] = {}
    chains: list[tuple[int | None, list[_Node]]] = []
    for path in extends:
        layers[depth[path]].append(path)
    for path, parents in extends.items():
        for number, parent in enumerate(parents):
            gaps: list[_Node] = [
                (path, parent, layer) for layer in range(depth[path] + 1, depth[parent])
            ]
            for gap in gaps:
                layers[depth[path] + 1 + gaps.index(gap)].append(gap)
            chain: list[_Node] = [path, *gaps, parent]
            for upper, lower in pairwise(chain):
                above.setdefault(lower, []).append(upper)
            chains.append((number + 1 if len(parents) > 1 else None, chain))

    def width(node: _Node) -> float:
        return boxes[node].width if isinstance(node, Path) else _GAP_WIDTH

    centre: dict[_Node, float] = {}
    for layer in layers:
        wanted = {
            node: sum(centre[each] for each in above[node]) / len(above[node])
            if node in above
            else 0.0
            for node in layer
        }
        # Stable: boxes below the same box keep the order of its `extends:`.
        layer.sort(key=lambda node: wanted[node])
        _spread(layer, wanted, width, centre)
    left = min(centre[node] - width(node) / 2 for node in centre)
    right = max(centre[node] + width(node) / 2 for node in centre)
    tops, y = [], 0.0
    for layer in layers:
        tops.append(y)
        y += max(boxes[node].height for node in layer if isinstance(node, Path)) + GAP_Y
    bottoms = [top - GAP_Y for top in tops[1:]] + [y - GAP_Y]
    at = {node: index for index, layer in enumerate(layers) for node in layer}
    leaving = _ports([chain for _, chain in chains], centre, boxes)
    arriving = _ports([chain[::-1] for _, chain in chains], centre, boxes)
    edges = []
    for index, (place, chain) in enumerate(chains):
        first, last = chain[0], chain[-1]
        assert isinstance(first, Path), chain
        under = tops[at[first]] + boxes[first].height
        points = [(leaving[index] - left, under, bottoms[at[first]])]
        points += [(centre[gap] - left, tops[at[gap]], bottoms[at[gap]]) for gap in chain[1:-1]]
        points.append((arriving[index] - left, tops[at[last]], tops[at[last]]))
        edges.append(_Edge(points, place))
    return _Places(
        spots={
            node: _Spot(centre[node] - left, tops[at[node]])
            for node in centre
            if isinstance(node, Path)
        },
        edges=edges,
        width=right - left,
        height=bottoms[-1],
    )


def _spread(
    layer: Sequence[_Node],
    wanted: dict[_Node, float],
    width: Callable[[_Node], float],
    centre: dict[_Node, float],
) -> None:
    """Place a layer's boxes beside each other, as near as can be to where each wants to be."""
    edge = None
    for node in layer:
        half = width(node) / 2
        centre[node] = wanted[node] if edge is None else max(wanted[node], edge + GAP_X + half)
        edge = centre[node] + half
    shift = sum(wanted[node] - centre[node] for node in layer) / len(layer)
    for node in layer:
        centre[node] += shift


def _ports(
    chains: Sequence[Sequence[_Node]], centre: dict[_Node, float], boxes: dict[Path, _Box]
) -> list[float]:
    """Say for each line where it meets its first box, so that lines of one box do not cross."""
    ports = [0.0] * len(chains)
    for box in boxes:
        mine = [index for index, chain in enumerate(chains) if chain[0] == box]
        mine.sort(key=lambda index: centre[chains[index][1]])
        step = min(56.0, boxes[box].width / (len(mine) + 1))
        for number, index in enumerate(mine):
            ports[index] = centre[box] + (number - (len(mine) - 1) / 2) * step
    return ports


# ---- lines --------------------------------------------------------------------------------------


def _edge(edge: _Edge, left: float, top: float) -> Iterator[str]:
    x, upper, lower = edge.points[0]
    path = f"M {_number(left + x)} {_number(top + upper)} V {_number(top + lower)}"
    before = lower
    for point_x, point_upper, point_lower in edge.points[1:]:
        is_last = (point_x, point_upper, point_lower) == edge.points[-1]
        end = point_upper - (3 if is_last else 0)
        bend = (end - before) * 0.55
        path += (
            f" C {_number(left + x)} {_number(top + before + bend)}"
            f" {_number(left + point_x)} {_number(top + end - bend)}"
            f" {_number(left + point_x)} {_number(top + end)}"
        )
        if not is_last:
            path += f" V {_number(top + point_lower)}"
        x, before = point_x, point_lower
    yield f'<path class="edge" d="{path}" marker-end="url(#head)"/>'


def _order(edge: _Edge, left: float, top: float) -> Iterator[str]:
    """Write where a line begins which place its file has in `extends:`, if there are several."""
    if edge.number is not None:
        at_x, at_y, _ = edge.points[0]
        x, y = _number(left + at_x), top + at_y
        yield f'<circle class="order" cx="{x}" cy="{_number(y)}" r="8.5"/>'
        yield (
            f'<text class="number words" x="{x}" y="{_number(y + 3.7)}"'
            f' text-anchor="middle">{edge.number}</text>'
        )


def _flags_edge(x: float, upper: float, lower: float) -> Iterator[str]:
    yield (
        f'<path class="edge beside" d="M {_number(x)} {_number(upper)} V {_number(lower - 3)}"'
        ' marker-end="url(#head-beside)"/>'
    )


def _arrow_head(ident: str, kind: str) -> Iterator[str]:
    yield (
        f'<marker id="{ident}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="9"'
        ' markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">'
        f'<path class="{kind}" d="M 0 0.6 L 10 5 L 0 9.4 L 2.6 5 z"/></marker>'
    )


# ---- small things -------------------------------------------------------------------------------


def _text(x: float, y: float, pieces: Sequence[tuple[str, str]]) -> str:
    """Write pieces of text, each with its class, one behind the other."""
    spans = "".join(f'<tspan class="{kind}">{_xml(text)}</tspan>' for kind, text in pieces if text)
    return f'<text x="{_number(x)}" y="{_number(y)}" xml:space="preserve">{spans}</text>'


def _rect(x: float, y: float, width: str, height: str, attributes: str) -> str:
    return (
        f'<rect x="{_number(x)}" y="{_number(y)}" width="{width}" height="{height}" {attributes}/>'
    )


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _plain(text: str) -> str:
    """Put a mark in place of what no XML may hold, such as control characters."""
    return _NOT_XML.sub("\ufffd", text)


def _xml(text: str) -> str:
    return escape(_plain(text))


def _cells(text: str) -> int:
    """Count the columns a text takes in a fixed-pitch font."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def _cut(text: str, num_cells: int) -> str:
    """Cut a value to a width: a path keeps its end, anything else its beginning."""
    looks_like_path = text.startswith(("/", "~/", "$")) and " " not in text
    return _start_cut(text, num_cells) if looks_like_path else _end_cut(text, num_cells)


def _end_cut(text: str, num_cells: int) -> str:
    if _cells(text) <= num_cells:
        return text
    kept = text[: max(num_cells - 1, 0)]
    while _cells(kept) > num_cells - 1:
        kept = kept[:-1]
    return f"{kept}…"


def _start_cut(text: str, num_cells: int) -> str:
    if _cells(text) <= num_cells:
        return text
    kept = text[-max(num_cells - 1, 1) :]
    while _cells(kept) > num_cells - 1:
        kept = kept[1:]
    return f"…{kept}"
