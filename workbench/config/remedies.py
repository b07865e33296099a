"""What to do about a key or a value that cannot be: the last part of a message.

Pure words about one mistake; knows nothing of files. Invariant: a remedy is an imperative or a
question that names the answer.
"""

import contextlib
import difflib
import re
from collections.abc import Sequence

import msgspec

from workbench.config.schema.data import SourceSection
from workbench.config.schema.keys import (
    MISSING,
    Key,
    accepts,
    all_keys,
    bounds_of,
    choices_of,
    first_wrong_item,
    item_type_of,
    keys_of,
    kind_of,
)
from workbench.config.yaml_reader import read_value, write_scalar

_BOOLEAN_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
"""Words that older YAML took for booleans."""

_SYNONYMS = {
    "gpu": "cuda", "cpu": "pinned", "host": "pinned", "bf16": "bfloat16", "fp32": "float32",
    "full_fp32": "float32", "off": "none", "flash": "varlen", "constant": "none",
}  # fmt: skip
"""Words of other tools, and ours for the same, where a key takes it."""

_KEYS_ELSEWHERE = {
    "lr": "optimizer.learning_rate",
    "batch_size": "batch.train",
    "per_device_train_batch_size": "batch.train",
    "per_device_eval_batch_size": "batch.evaluation",
    "gradient_accumulation_steps": "batch.microbatches",
    "gradient_checkpointing": "memory.recompute",
    "max_seq_length": "data.max_length",
    "max_grad_norm": "optimizer.clip_norm",
    "num_train_epochs": "training.epochs",
    "num_epochs": "training.epochs",
    "save_steps": "checkpoints.every_steps",
    "save_total_limit": "checkpoints.keep",
    "logging_steps": "logging.every_steps",
    "eval_steps": "evaluation.every_steps",
    "model_name_or_path": "model.path",
    "model_id_or_path": "model.path",
    "dataset": "data.sources",
    "gpus": "pipeline.ranks",
    "num_gpus": "pipeline.ranks",
}
"""Keys of other tools, and ours for the same."""

_THOUSANDS = re.compile(r"\d{1,3}([,_ ]\d{3})+|\d+(_\d+)+")
_NUMBER_AND_MORE = re.compile(r"([-+]?[0-9][0-9_,.]*(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]+)")
_KEY_WITHOUT_BLANK = re.compile(r"([a-z_]+):(\S.*)")


def nearest(name: str, names: Sequence[str]) -> str:
    """Ask whether the nearest name was meant; "" where none is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else ""


def of_unknown_key(name: str, path: Sequence[str], known: Sequence[str]) -> str:
    """Say what to do about a key that is none, below the section ``path``."""
    if "." in name:
        first, rest = name.split(".", 1)
        return f"nest it: `{first}:`, and `{rest.replace('.', ': ')}: …` indented below it"
    if flag := re.fullmatch(r"--[a-z][a-z0-9-]*", name):
        return f"put {flag.group()} below `args:`, or set its key"
    by_last_part = {key.rsplit(".", 1)[-1]: key for key in reversed(all_keys())}
    if tuple(path) == ("data",):
        by_last_part |= {key: f"data.sources.NAME.{key}" for key in keys_of(SourceSection)}
    # A key that is spelled right stands in the wrong section.
    meant = by_last_part.get(name) or _KEYS_ELSEWHERE.get(name.lower())
    if meant:
        return f"did you mean {meant}?"
    if near := nearest(name, known):
        return near
    close = difflib.get_close_matches(name, by_last_part, n=1)
    if close:
        return f"did you mean {by_last_part[close[0]]}?"
    return f"{path[-1] if path else 'a config'} has {', '.join(known)}"


def of_missing(key: Key) -> str:
    """Say what to do about a key that has to be there."""
    meaning = f": {key.description[0].lower()}{key.description[1:]}" if key.description else ""
    return f"add `{key.name}: …`{meaning}"


def of_section(name: str, section: type[msgspec.Struct], value: object) -> str:
    """Say what to do about a value where keys of a section should be."""
    first = next(iter(keys_of(section)))
    if isinstance(value, str) and value:
        return f"write {name}: {{{first}: {write_scalar(value)}}}"
    return f"indent its keys below it: {first}, …"


def of_value(annotation: object, value: object, default: object) -> str:
    """Say what to do about a value that is not of its key's type."""
    kind = kind_of(annotation)
    if kind == "list":
        return _of_list(annotation, value, default)
    if isinstance(value, str):
        return _of_text(annotation, kind, value) or _example(default)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _of_number(annotation, kind, value) or _example(default)
    if isinstance(value, list) and kind in ("text", "choice"):
        return "give one value, not a list"
    if value is None:
        return "give a value" if default in (MISSING, None) else "give a value, or remove the line"
    return _example(default)


def _of_list(annotation: object, value: object, default: object) -> str:
    if value is None:
        shown = write_scalar([] if default is MISSING else default)
        return f"give a list such as {shown}, or remove the line"
    if not isinstance(value, (list, dict)):
        return "write it as a list: [" + write_scalar(value) + "]"
    item = item_type_of(annotation)
    wrong = first_wrong_item(annotation, value)
    if wrong is None or isinstance(wrong[1], (list, dict)):
        return _example(default)
    return of_value(item, wrong[1], MISSING)


def _of_number(annotation: object, kind: str, value: float) -> str:
    """Say what to do about a number in the place of something else; "" where nothing is known."""
    if kind == "boolean" and value in (0, 1):
        return "write true" if value == 1 else "write false"
    if accepts(annotation, str(value)):
        return "put it in quotes"
    if isinstance(value, float) and value % 1 == 0 and accepts(annotation, int(value)):
        return f"write {int(value)}"
    bounds = bounds_of(annotation, value)
    return f"give a number {bounds}" if bounds else ""


def _of_text(annotation: object, kind: str, text: str) -> str:
    """Say what to do about text in the place of something else; "" where nothing is known."""
    choices = choices_of(annotation)
    if _SYNONYMS.get(text.lower()) in choices and text.lower() not in choices:
        return f"did you mean {_SYNONYMS[text.lower()]}?"
    if near := nearest(text.lower(), choices):
        return near
    if kind == "boolean" and text.lower() in _BOOLEAN_WORDS:
        return f"write {_BOOLEAN_WORDS[text.lower()]}"
    if kind not in ("number", "integer", "boolean"):
        return ""
    with contextlib.suppress(ValueError):
        if accepts(annotation, read_value(text)):
            return "take the quotes away"
    if _THOUSANDS.fullmatch(text):
        return f"write the number without separators: {re.sub('[,_ ]', '', text)}"
    if re.fullmatch(r"\d+,\d+", text):
        return f"write it with a point: {text.replace(',', '.')}"
    if text.endswith("%") and text[:-1].isdecimal():
        return f"write the share: {write_scalar(int(text[:-1]) / 100)}"
    if amount := _NUMBER_AND_MORE.fullmatch(text):
        return f"write the number alone: {amount.group(1)}"
    return ""


def _example(default: object) -> str:
    if default in (MISSING, None, "") or default == []:
        return "correct the value, or remove the line"
    return f"write for instance {write_scalar(default)}"


def of_text_for_section(text: str) -> str:
    """Say what to do about text where keys should be: most often a blank is missing."""
    if found := _KEY_WITHOUT_BLANK.fullmatch(text):
        return f"put a blank behind the colon: {found.group(1)}: {found.group(2)}"
    return "indent its keys below it, or remove the line"
