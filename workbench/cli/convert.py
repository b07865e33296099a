"""``workbench convert``: prepare a model: dtype, longest document, chat template, added tokens.

Training needs none of it: a model of the hub is trained as it is. Invariant: at the destination
there is nothing, or a folder that was compared with the source; a dry run writes nothing.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from workbench.cli import output
from workbench.cli.config_arguments import (
    ConfigArgumentParser,
    examples_text,
    typed_model,
    typed_path,
)
from workbench.cli.narration import size
from workbench.config.added_tokens_file import PAD_ALONE, AddedTokens, read_added_tokens
from workbench.config.find import template_names
from workbench.config.hub_id import looks_like_hub_id
from workbench.errors import RunError
from workbench.jobs import model_worker
from workbench.jobs.model_worker import Converted, Planned, Progress
from workbench.jobs.publishing import CONVERT_DTYPES, check_place, named_template

DESCRIPTION = """\
Prepare a model: another dtype or longest document, another chat template, added tokens, .bin to
safetensors. Not needed to train: a model of the hub is trained as it is. The new folder is compared
with the source, every tensor and the logits; where they differ, it goes.
"""

EXAMPLES = (
    ("convert ~/models/mistral_7b ~/models/mistral_4k --max-length 4096 -t chatml", ""),
    ("convert ~/models/old_7b ~/models/new_7b --dtype bfloat16", ".bin to safetensors, too"),
    ("convert meta-llama/Llama-3.2-1B llama_chat --add-tokens chat.yaml -t chatml", "by its id"),
    ("convert SRC DST --add-tokens --dry-run", "say what it would do; a pad token if none is"),
)

NOTHING_TO_CONVERT_BACK = (
    "checkpoints and models are in the Hugging Face layout already, of whatever family: there is "
    "nothing to convert back; workbench finalize RUN DEST copies a checkpoint to publish it"
)

_GIB = 1 << 30


def run(arguments: list[str]) -> int:
    """Convert, or say what that would do."""
    parser = _parser()
    if any(each.split("=")[0] in ("--reverse", "--model-type") for each in arguments):
        output.usage_error(NOTHING_TO_CONVERT_BACK)
        return 2
    options = parser.parse_args(arguments)
    source = _source(str(options.source), downloads=options.download)
    destination = typed_path(options.destination, "destination")
    check_place(destination, [source])
    template = None if options.template is None else _template(options.template, source)
    planned, made = _convert(
        source, destination, options, template=template, added=_added(options.add_tokens)
    )
    if options.json:
        output.result_json(_as_json(planned, made))
        return 0
    for line in _lines(planned, made, destination):
        output.result(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ConfigArgumentParser(
        prog="workbench convert",
        description=DESCRIPTION,
        epilog=examples_text(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="model folder, or an id on the hub")
    parser.add_argument("destination", metavar="DST", type=Path, help="a folder to make")
    parser.add_argument("--dtype", choices=CONVERT_DTYPES, help="of all weights")
    parser.add_argument(
        "--max-length", type=_positive, metavar="TOKENS", help="longest document the model is for"
    )
    parser.add_argument(
        "-t", "--chat-template", dest="template", metavar="NAME|FILE", help="chat template"
    )
    parser.add_argument(
        "--add-tokens",
        nargs="?",
        const="",
        metavar="FILE",
        help="tokens to add, in YAML; without a file: [PAD], if there is no padding token",
    )
    parser.add_argument(
        "--max-shard-gib", type=_positive_float, metavar="GIB", help="longest file; default: 2"
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch an id of the hub that is not here yet"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would do, write nothing"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise ValueError(text)
    return number


def _source(text: str, *, downloads: bool) -> Path:
    """Find the model that was named: a folder, or by its id in the hub's cache.

    Raises:
        RunError: it is not there.
    """
    folder = typed_model(text, "source")
    if folder.is_dir():
        return folder
    if not folder.exists() and looks_like_hub_id(text):
        if downloads:
            output.narrate(f"fetching {text}")
            return model_worker.fetch_model(text)
        raise RunError(
            "is no folder, and no model of the hub that was downloaded",
            where=f"source {text}",
            remedy="correct the path; or fetch it: --download",
        )
    raise RunError(
        "is a file" if folder.exists() else "is not there",
        where=f"source {folder}",
        remedy="name a model folder, or an id on the hub: OWNER/NAME",
    )


def _template(choice: str, source: Path) -> str:
    """Give the source of a template: by its name, the project's first, or a file.

    Raises:
        ConfigError, DataError: there is none, or it cannot be read.
    """
    is_file = "/" in choice or choice.endswith(".jinja") or choice.startswith(("~", "$"))
    if is_file and choice not in template_names():
        choice = str(typed_path(choice, "--chat-template").absolute())
    return named_template(choice, source)


def _added(stated: str | None) -> AddedTokens | None:
    if stated is None:
        return None
    return read_added_tokens(typed_path(stated, "--add-tokens")) if stated else PAD_ALONE


def _convert(
    source: Path,
    destination: Path,
    options: argparse.Namespace,
    *,
    template: str | None,
    added: AddedTokens | None,
) -> tuple[Planned, Converted | None]:
    shard_gib = options.max_shard_gib
    planned: Planned | None = None
    made: Converted | None = None
    try:
        for record in model_worker.convert(
            source,
            destination,
            dtype=options.dtype,
            max_length=options.max_length,
            template=template,
            added=added,
            max_shard_bytes=None if shard_gib is None else max(1, int(shard_gib * _GIB)),
            is_dry=options.dry_run,
        ):
            match record:
                case Progress():
                    output.passing(f"{record.stage} {size(record.done)} of {size(record.total)}")
                case Planned():
                    planned = record
                    for notice in record.notices:
                        output.narrate(f"note: {notice}")
                case Converted():
                    made = record
                case _:
                    assert_never(record)
    finally:
        output.passing("")
    assert planned is not None, "a worker that ends well has planned"
    return planned, made


def _lines(planned: Planned, made: Converted | None, destination: Path) -> Iterator[str]:
    if made is None:
        yield f"would write {destination}: {size(planned.bytes)}; a dry run writes nothing"
    else:
        yield f"converted, {size(made.bytes)} in {len(made.files)} files: {destination}"
    yield f"changes   {planned.changes[0] if planned.changes else 'none'}"
    for change in planned.changes[1:]:
        yield f"          {change}"
    if made is not None:
        yield f"logits    equal the source's (difference {made.difference:.0e})"
        if made.rounding:
            yield f"          the new dtype moves them by {made.rounding:.0e}"


def _as_json(planned: Planned, made: Converted | None) -> dict[str, object]:
    found: dict[str, object] = {
        "source": planned.source,
        "changes": planned.changes,
        "notices": planned.notices,
        "vocabulary_size": planned.vocabulary_size,
        "bytes": planned.bytes,
        "is_dry_run": made is None,
    }
    if made is not None:
        found |= {name: getattr(made, name) for name in made.__struct_fields__}
    return found
