"""A resolved config as a program: what the trainer does, step by step, with the config's values.

The program calls the parts that ``training/build.py`` calls, in the same order, with the values
written out where they are used, and has its own loop in place of ``training/loop.py``. Its texts
are in ``program_parts``; nothing here imports the trainer. Invariants: every value in the program
is the config's, and the text is as ``ruff format`` would leave it, at 88 columns and at 100.
"""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec

from workbench.config import checks
from workbench.config import program_parts as parts
from workbench.config.find import shipped_configs
from workbench.config.inherit import DEFAULT_ORIGIN
from workbench.config.load import ResolvedConfig, at_origins
from workbench.config.problems import ConfigProblems
from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection, SourceSection
from workbench.config.schema.keys import keys_of
from workbench.config.yaml_reader import write_scalar

WIDTH = 88
"""What formatters take for the end of a line unless they are told otherwise."""

_PLACE = re.compile(r"<(=?)([a-z_]+\.[^<>=]+)>")


def python_code(resolved: ResolvedConfig) -> str:
    """Write the program that trains as a config says.

    Raises:
        ConfigProblems: a start would be refused, so there is nothing to write down.
    """
    problems = at_origins(checks.refused_at_start(resolved.config), resolved)
    if problems:
        raise ConfigProblems(problems)
    paragraphs = "\n".join(_paragraphs(resolved.config, Values(resolved)))
    functions = f"{parts.SHOWN}\n\n{parts.MAIN}{paragraphs}{parts.END}"
    return f"{_head(resolved)}\n{_imports(functions)}\n\n\n{functions}"


def _paragraphs(config: Config, values: "Values") -> Iterator[str]:
    """Give the paragraphs of ``main`` that this config needs."""
    yield _folder(config, values)
    yield values.fill(_machine(config))
    yield _model(config, values)
    yield _data(config, values)
    is_padded = config.data.pad_to == "context"
    fixed = "<data.max_length>"
    is_exact = config.optimizer.rounding == "exact"
    plan = parts.PLAN.replace("LENGTH", fixed if is_padded else _LONGEST)
    yield values.fill(plan.replace("EXACT", str(is_exact)))
    evaluates = config.evaluation.every_steps > 0
    rows = parts.ROWS + (parts.VALIDATION if evaluates else "")
    padded_to = fixed if is_padded else "None"
    yield values.fill(rows.replace("LENGTH", f"{padded_to},<=data.pad_to>"))
    yield values.fill(_engine(config))
    yield values.fill(parts.CHECKPOINTS)
    first = _LOADED if config.model.weights == "load" else _RANDOM
    yield values.fill(parts.BEGIN.replace("FIRST_WEIGHTS", first))
    yield values.fill(parts.STEP + _log(config))
    if evaluates:
        yield values.fill(parts.EVALUATE)
    if config.checkpoints.save_strategy != "no":
        yield values.fill(_save(config))


# ---- paragraphs that depend on values ----------------------------------------------------------

_RANDOM = "draw_first_weights(dims, seed, weights, content.low_bits())"
_LOADED = "load_first_weights(model_folder, dims, weights, content.low_bits())"
_LONGEST = "max(prepared.train.longest, prepared.validation.longest)<=data.pad_to>"

_WITHOUT_EVALUATION = """Config(
        data=data,
        evaluation=EvaluationSection(every_steps=<evaluation.every_steps>),
    )"""

_DEVICES = {
    "auto": '"cuda:0" if torch.cuda.is_available() else "cpu"',
    "cpu": '"cpu"',
    "cuda": '"cuda:0"',
}


def _head(resolved: ResolvedConfig) -> str:
    """Say what the program is, in its docstring."""
    stated = " ".join(resolved.config.description.split())
    beside_files = [
        shlex.quote(f"{key}={write_scalar(leaf.value)}")
        for key, leaf in resolved.leaves.items()
        if leaf.origin.file is None and leaf.origin != DEFAULT_ORIGIN
    ]
    command = " ".join(["workbench train -t", shlex.quote(resolved.name), *beside_files])
    what = (
        f"This is what `{command}` does, written out: the same rows, the same weights and the same "
        "losses, in one process and without a supervisor. Beside each value stand its key and who "
        "states it. It runs wherever workbench is installed:"
    )
    return parts.HEAD.format(
        name=_for_docstring(resolved.name),
        description=_paragraph(stated or "Its file does not say what it is for."),
        what=_paragraph(what),
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(
        _for_docstring(text), WIDTH, break_long_words=False, break_on_hyphens=False
    )


def _for_docstring(text: str) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown.replace("\\", "/").replace('"', "'")


def _imports(program: str) -> str:
    """Give the imports of exactly the names a program uses, in the order of isort."""
    used = {node.id for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Name)}
    names_of: dict[str, list[str]] = {}
    for name in sorted(used & parts.MODULES.keys(), key=lambda name: (name[0].islower(), name)):
        names_of.setdefault(parts.MODULES[name], []).append(name)
    lines = ["import argparse", "import time", "from pathlib import Path", "", "import torch"]
    lines += [f"from {module} import {', '.join(names_of[module])}" for module in sorted(names_of)]
    return "\n".join(lines)


def _folder(config: Config, values: "Values") -> str:
    if config.training.output_dir is not None:
        return values.fill(parts.FOLDER.replace("DEFAULT", "<training.output_dir>,"))
    # The trainer numbers its folders; the program has one, so that a second call goes on in it.
    own = literal(f"output/{values.name.rsplit('/', 1)[-1]}-code")
    return values.fill(parts.FOLDER).replace("default=DEFAULT", f"default={own},")


def _machine(config: Config) -> str:
    device = _DEVICES[config.training.device]
    return parts.MACHINE.replace("DEVICE", device).replace("DTYPE", config.model.dtype)


def _model(config: Config, values: "Values") -> str:
    folder = path(str(config.model.path))
    line = f"    model_folder = {folder}\n"
    if len(line) > WIDTH and folder.startswith("Path("):
        line = f"    model_folder = Path(\n        {folder[5:-1]},\n    )\n"
    return values.fill(parts.MODEL) + line + values.fill(parts.TEMPLATE)


def _data(config: Config, values: "Values") -> str:
    """Write the data section as the object that ``prepare`` takes."""
    sources = [
        line
        for name, source in config.data.sources.items()
        if source is not None
        for line in _source(name, source, values)
    ]
    keys = [key for key in keys_of(DataSection) if key not in ("sources", "chat_template")]
    others = [f"        {key}=<data.{key}>," for key in keys]
    # prepare warns where nothing is left to evaluate on, unless nobody asks for that.
    whole = "Config(data=data)" if config.evaluation.every_steps else _WITHOUT_EVALUATION
    return (
        values.fill(parts.DATA)
        + "\n".join([*sources, "        },", ""])
        + values.fill("\n".join([*others, parts.PREPARE.replace("CONFIG", whole)]))
    )


def _source(name: str, source: SourceSection, values: "Values") -> Iterator[str]:
    """Write a data set: its path, and what differs from the schema's defaults."""
    yield f"            {literal(name)}: SourceSection("
    for key, meaning in keys_of(SourceSection).items():
        value = getattr(source, key)
        if key != "path" and value == meaning.default:
            continue
        shown = literal(value)
        if key == "path" and (below := path(source.path)).startswith("shipped"):
            shown = f"str({below})"
        yield values.beside(f"                {key}={shown},", f"data.sources.{name}.{key}")
    yield "            ),"


def _engine(config: Config) -> str:
    clips = config.optimizer.clip_by == "previous_norm"
    return parts.ENGINE.replace("CLIP_NORM", "<optimizer.clip_norm>" if clips else "None")


def _log(config: Config) -> str:
    stops = config.training.nonfinite == "stop"
    # The record of a bad step tells what happened, so it is written before the run ends.
    log = parts.LOG.replace("FAULTS", " or faults" if stops else "")
    each = config.logging.every_steps == 1
    return (parts.LOG_EACH if each else log) + (parts.STOP if stops else parts.SKIP)


def _save(config: Config) -> str:
    by_steps = config.checkpoints.save_strategy == "steps"
    interval = "<checkpoints.every_steps>" if by_steps else "rows.steps_per_epoch"
    best = parts.BEST if config.evaluation.every_steps else ""
    return parts.SAVE.replace("INTERVAL", interval) + best + parts.PRUNE


# ---- values, and who states them ---------------------------------------------------------------


class Values:
    """The config's values as Python, and what is said beside them."""

    def __init__(self, resolved: ResolvedConfig) -> None:
        self._leaves = resolved.leaves
        self._values: dict[str, dict[str, object]] = msgspec.to_builtins(resolved.config)
        self.name = resolved.name

    def fill(self, text: str) -> str:
        """Put values in their places, each with its note."""
        return "".join(f"{self._filled(line)}\n" for line in text.splitlines())

    def _filled(self, line: str) -> str:
        keys = [key for _, key in _PLACE.findall(line)]
        if not keys:
            return line
        return self.beside(_PLACE.sub(self._value, line), *keys)

    def _value(self, place: "re.Match[str]") -> str:
        if place[1]:
            return ""
        section, _, key = place[2].partition(".")
        return literal(self._values[section][key])

    def beside(self, code: str, *keys: str) -> str:
        """Put behind a line of code whose values they are; above it where that is too long."""
        note = "; ".join(f"{key}, {self._source(key)}" for key in keys)
        note = " ".join(note.split())
        indent = code[: len(code) - len(code.lstrip())]
        if code.strip() == "#":
            return f"{indent}# {note}"
        line = f"{code}  # {note}"
        if "#" not in code and len(line) <= WIDTH:
            return line
        return f"{indent}# {note}\n{_broken(code, indent)}"

    def _source(self, key: str) -> str:
        """Say who states a key; of a mapping with free names, who states the names."""
        if key in self._leaves:
            return self._leaves[key].origin.source
        below = [leaf for name, leaf in self._leaves.items() if name.startswith(f"{key}.")]
        return ", ".join(dict.fromkeys(leaf.origin.source for leaf in below))


def _broken(code: str, indent: str) -> str:
    """Give a list or mapping that is too long for its line a line for each entry."""
    found = re.fullmatch(r"\s*(\w+)=([\[{].+[\]}]),", code)
    if len(code) <= WIDTH or found is None:
        return code
    return f"{indent}{found[1]}={literal(ast.literal_eval(found[2]), indent)},"


def literal(value: object, indent: str | None = None) -> str:
    """Write a value as Python, as formatters leave it.

    Args:
        value: None, a boolean, a number, text, or a list or mapping of these.
        indent: of the line it stands in, for a list or mapping to take a line for each entry.
    """
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float):
        return re.sub(r"e([-+])0", r"e\1", repr(value))  # 4e-06 as people write it
    if isinstance(value, dict):
        return _brackets("{}", [f"{literal(k)}: {literal(v)}" for k, v in value.items()], indent)
    if isinstance(value, (list, tuple)):
        return _brackets("[]", [literal(entry) for entry in value], indent)
    return repr(value)


def _brackets(pair: str, entries: list[str], indent: str | None) -> str:
    if indent is None or not entries:
        return pair[0] + ", ".join(entries) + pair[1]
    lines = "".join(f"{indent}    {entry},\n" for entry in entries)
    return f"{pair[0]}\n{lines}{indent}{pair[1]}"


def _quoted(text: str) -> str:
    quote = "'" if text.count('"') > text.count("'") else '"'
    written = []
    for character in text:
        if character in ("\\", quote):
            written.append(f"\\{character}")
        elif character.isprintable():
            written.append(character)
        else:
            written.append(repr(character)[1:-1])
    return f"{quote}{''.join(written)}{quote}"


def path(text: str) -> str:
    """Write a path; what came with workbench is found wherever that is installed."""
    shipped = shipped_configs()
    if Path(text).is_relative_to(shipped):
        return f"shipped_configs() / {_quoted(Path(text).relative_to(shipped).as_posix())}"
    return f"Path({_quoted(text)})"
