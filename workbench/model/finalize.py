"""Publish a checkpoint: a model folder that every other tool accepts, proved before it has a name.

Files are copied as they are and hashed on the other side; nothing of the training's own state goes
along. Shards that hosts kept for themselves come together. Then the logits of the new folder are
compared with the checkpoint's, and with those transformers computes. Invariant: the source is only
read, and whatever fails leaves nothing at the destination.
"""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor

from workbench.config.inherit import is_file
from workbench.config.json_file import check_there
from workbench.config.template_source import own_template
from workbench.config.weight_files import file_inside
from workbench.data.chat_template import ChatTemplate
from workbench.data.stops import end_ids_of, stops_of
from workbench.data.tokenizer import load_tokenizer, read_json
from workbench.errors import RunError, WorkbenchError
from workbench.model.families import CONFIG_FILE, read_dimensions
from workbench.model.safetensors_reader import read_header
from workbench.model.streamed_logits import (
    num_fp32_bytes,
    probe_ids,
    reference_logits,
    relative_difference,
    streamed_logits,
)
from workbench.model.weights import INDEX_FILE, find_tensors, stored_weights
from workbench.runs.host_memory import available_host_memory
from workbench.runs.layout import CheckpointFolder
from workbench.runs.manifest import (
    Manifest,
    WrittenFile,
    hash_file,
    read_manifest,
    write_hashed,
    write_manifest,
)
from workbench.runs.whole_folder import whole_folder

GENERATION_FILE = "generation_config.json"
WEIGHTS_SUFFIX = ".safetensors"

# What lies beside the weights of a model folder that is no checkpoint.
_SMALL_FILES = (
    CONFIG_FILE,
    GENERATION_FILE,
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
# What an earlier publication wrote beside the model.
_MADE_ANEW = (".gguf", "Modelfile")
_COPY_BYTES = 64 << 20
_SLACK_BYTES = 16 << 20
_MAX_THREADS = 4
# Of the same weights by the same program: only the order of sums within a product may differ.
_SAME = 1e-6
# Two programs in fp32; a wrong base, bias or window shows from 1e-2 on.
_NEARLY_SAME = 1e-4

Tell = Callable[[str, int, int], None]
"""Told the stage, and how many bytes of how many are done."""

Warn = Callable[[str, str], None]
"""Told what should be known, and what to do about it."""


@dataclass(frozen=True)
class _Source:
    """A file to publish: where it is, and what it has to be."""

    path: Path
    written: WrittenFile


@dataclass(frozen=True)
class Finalized:
    """A model folder that was written: see ``control.publish_records.Published``."""

    path: Path
    step: int | None
    files: Mapping[str, WrittenFile]
    stop_ids: list[int]
    difference: float
    reference_difference: float | None
    gguf: str | None

    @property
    def bytes(self) -> int:
        """Sum over all files."""
        return sum(written.bytes for written in self.files.values())


def finalize(
    folders: Sequence[Path],
    destination: Path,
    *,
    gguf: str | None = None,
    tell: Tell = lambda stage, done, total: None,
    warn: Warn = lambda what, remedy: None,
) -> Finalized:
    """Write a published model and prove that it is the checkpoint's.

    Args:
        folders: the checkpoint, or a model folder; further ones are the same checkpoint as other
            hosts hold it.
        destination: a folder that is not there yet.
        gguf: also write the model as one GGUF file of this type: q8_0, bf16 or f16.
        tell: how far it is.
        warn: what should be known.

    Raises:
        RunError: a file is missing or not what was saved, the destination is taken or too small.
        WorkbenchError: logits differ. Nothing is at the destination in either case.
    """
    sources, step, num_ranks = _gathered(folders)
    with whole_folder(destination, folders[0]) as partial:
        _check_space(partial, sources, gguf)
        files = _copied(sources, partial, tell)
        if len(folders) > 1:
            files |= _joined_index(partial, [name for name in files if _is_weights(name)])
        stop_ids, generation = _generation_config(partial, warn)
        if generation is not None:
            files[GENERATION_FILE] = write_hashed(partial / GENERATION_FILE, generation)
        # Every file is the source's, byte for byte, but for shards that one host alone lacks.
        stored_weights(partial, read_dimensions(partial))
        difference, logits = _compared(folders, partial, tell)
        reference_difference = _compared_with_reference(partial, logits, tell, warn)
        gguf_name = None
        if gguf is not None:
            from workbench.model.gguf_file import write_gguf

            made = write_gguf(partial, gguf, destination.name, tell=tell, warn=warn)
            files |= made
            gguf_name = next(iter(made))
        write_manifest(partial, files, step or 0, num_ranks)
    return Finalized(
        destination, step, files, stop_ids, difference, reference_difference, gguf_name
    )


# ---- what goes along -----------------------------------------------------------------------------


def _gathered(folders: Sequence[Path]) -> tuple[dict[str, _Source], int | None, int]:
    """List what is published by name; of several hosts' folders, what they hold together."""
    if not is_file(CheckpointFolder(folders[0]).manifest):
        return _of_model_folder(folders[0]), None, 1
    manifests = {folder: read_manifest(folder) for folder in folders}
    first = manifests[folders[0]]
    found: dict[str, _Source] = {}
    for folder, manifest in manifests.items():
        if (manifest.step, manifest.num_ranks) != (first.step, first.num_ranks):
            raise RunError(
                f"is step {manifest.step} of {manifest.num_ranks} ranks, "
                f"the first is step {first.step} of {first.num_ranks}",
                where=str(folder),
                remedy="name the folders in which hosts saved the same step of one run",
            )
        for name, written in _published(manifest).items():
            if _differs(name, found, written):
                raise RunError(
                    f"{name} is not what it is in {found[name].path.parent}",
                    where=str(folder),
                    remedy="name the folders in which hosts saved the same step of one run",
                )
            found.setdefault(name, _Source(folder / name, written))
    for manifest in manifests.values():
        for host, files in manifest.elsewhere.items():
            absent = sorted(name for name in files if _is_published(name) and name not in found)
            if absent:
                raise RunError(
                    f"host {host} holds {', '.join(absent[:5])}",
                    where=str(folders[0]),
                    remedy="copy its checkpoint to this machine and name it too: --shards PATH",
                )
    if not any(_is_weights(name) for name in found):
        raise RunError(
            "its manifest lists no weights", where=str(folders[0]), remedy="name another checkpoint"
        )
    return found, first.step, first.num_ranks


def _differs(name: str, found: Mapping[str, _Source], written: WrittenFile) -> bool:
    """Say whether hosts hold different files of one name; an index tells of a host's own shards."""
    return name in found and name != INDEX_FILE and found[name].written != written


def _published(manifest: Manifest) -> dict[str, WrittenFile]:
    return {name: written for name, written in manifest.files.items() if _is_published(name)}


def _is_published(name: str) -> bool:
    """Say whether a checkpoint's file is one of the model's: those lie at its top."""
    return len(PurePosixPath(name).parts) == 1 and not name.endswith(_MADE_ANEW)


def _is_weights(name: str) -> bool:
    return name.endswith(WEIGHTS_SUFFIX)


def _of_model_folder(folder: Path) -> dict[str, _Source]:
    """List the files of a model folder that no manifest describes, as they are now."""
    read_dimensions(folder)
    paths = {path.name: path for path in find_tensors(folder).values()}
    if not all(map(_is_weights, paths)):
        raise RunError(
            "its weights are no safetensors",
            where=str(folder),
            remedy=f"write them anew first: workbench convert {folder} DST",
        )
    names = [*_SMALL_FILES, *([INDEX_FILE] if len(paths) > 1 else [])]
    for name in names:
        if os.path.lexists(folder / name):
            check_there(file_inside(folder, name))
            paths[name] = folder / name
    return {name: _Source(path, hash_file(path)) for name, path in paths.items()}


def _check_space(partial: Path, sources: Mapping[str, _Source], gguf: str | None) -> None:
    weights = sum(each.written.bytes for name, each in sources.items() if _is_weights(name))
    needed = sum(each.written.bytes for each in sources.values()) + _SLACK_BYTES
    needed += weights if gguf is not None else 0
    free = shutil.disk_usage(partial).free
    if free < needed:
        raise RunError(
            f"needs {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free",
            where=str(partial.parent),
            remedy="free space, or name a folder on another disk",
        )


# ---- copying -------------------------------------------------------------------------------------


def _copied(sources: Mapping[str, _Source], into: Path, tell: Tell) -> dict[str, WrittenFile]:
    """Copy files, durable, and read each back: what is there has the hash that it had."""
    total = sum(each.written.bytes for each in sources.values())
    done, lock = 0, threading.Lock()

    def count(num_bytes: int) -> None:
        nonlocal done
        with lock:
            done += num_bytes
            tell("copying", done, total)

    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)), len(sources))
    with ThreadPoolExecutor(max(1, num_threads)) as threads:
        copies = {
            name: threads.submit(_copy, source, into / name, count)
            for name, source in sources.items()
        }
        try:
            return {name: copy.result() for name, copy in copies.items()}
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _copy(source: _Source, into: Path, count: Callable[[int], None]) -> WrittenFile:
    try:
        with source.path.open("rb") as reader, into.open("wb") as writer:
            _copy_bytes(reader.fileno(), writer.fileno())
            os.fsync(writer.fileno())
    except FileNotFoundError as error:
        raise RunError(
            f"{source.path.name} is missing",
            where=str(source.path.parent),
            remedy="name another checkpoint",
        ) from error
    written = hash_file(into)
    if written != source.written:
        raise RunError(
            f"{source.path.name} has other content than when it was saved",
            where=str(source.path.parent),
            remedy="name another checkpoint; `workbench checkpoints verify` tells which are whole",
        )
    count(written.bytes)
    return written


def _copy_bytes(reader: int, writer: int) -> None:
    """Copy a file within the kernel; some file systems only share its blocks then."""
    try:
        while os.copy_file_range(reader, writer, _COPY_BYTES):
            pass
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
    while os.sendfile(writer, reader, None, _COPY_BYTES):
        pass


def _joined_index(folder: Path, names: Sequence[str]) -> dict[str, WrittenFile]:
    """Write the index of shards that come from several hosts, each of which knew its own."""
    headers = {name: read_header(folder / name) for name in sorted(names)}
    index = {
        "metadata": {
            "total_size": sum(each.num_bytes for held in headers.values() for each in held.values())
        },
        "weight_map": {tensor: name for name, held in headers.items() for tensor in held},
    }
    content = json.dumps(index, indent=2).encode() + b"\n"
    return {INDEX_FILE: write_hashed(folder / INDEX_FILE, content)}


# ---- generation config ---------------------------------------------------------------------------


def _generation_config(folder: Path, warn: Warn) -> tuple[list[int], bytes | None]:
    """Give every token that ends a reply: of the configs, the tokenizer, the template.

    Returns:
        Their ids, and the generation config that names them all; None where it does already.

    Raises:
        DataError: the tokenizer, the template or a config cannot be read.
    """
    tokenizer = load_tokenizer(folder)
    found = set(end_ids_of(folder, tokenizer))
    if (source := own_template(folder)) is not None:
        ids, texts = stops_of(ChatTemplate(source, tokenizer.special_tokens), tokenizer)
        found |= ids
        for text in texts:
            warn(
                f"replies end with {text!r}, which is no single token and in no generation config",
                "name it as a stop text where the model is served",
            )
    stop_ids = sorted(found)
    stated = read_json(folder / GENERATION_FILE)
    named = stated.get("eos_token_id")
    if set(named if isinstance(named, list) else [named]) == set(stop_ids):
        return stop_ids, None
    stated["eos_token_id"] = stop_ids
    return stop_ids, json.dumps(stated, indent=2, ensure_ascii=False).encode() + b"\n"


# ---- logits --------------------------------------------------------------------------------------


def _compared(folders: Sequence[Path], made: Path, tell: Tell) -> tuple[float, Tensor]:
    """Give how far the new folder's logits are from the checkpoint's, not at all, and the logits.

    Shards of several hosts are one model only in the new folder: there is nothing to compare.

    Raises:
        WorkbenchError: they differ.
        RunError: the checkpoint's are not finite.
    """
    ids = probe_ids(read_dimensions(made))
    ours = streamed_logits(made, ids, lambda done, total: tell("logits", done, total))
    if not bool(ours.isfinite().all()):
        raise RunError(
            "its logits are not finite",
            where=str(folders[0]),
            remedy="publish an earlier checkpoint: --step N",
        )
    if len(folders) > 1:
        return 0.0, ours
    source = streamed_logits(
        folders[0], ids, lambda done, total: tell("logits of the checkpoint", done, total)
    )
    difference = relative_difference(ours, source)
    if not difference <= _SAME:
        raise WorkbenchError(
            f"logits differ from the checkpoint's by {difference:.1e}",
            where=str(folders[0]),
            remedy="see that nothing writes into it, then start again",
        )
    return difference, ours


def _compared_with_reference(made: Path, logits: Tensor, tell: Tell, warn: Warn) -> float | None:
    """Give how far the logits are from those of transformers; None where it would not fit."""
    needed = num_fp32_bytes(made)
    memory = available_host_memory()
    if memory is not None and memory.available_bytes < 1.3 * needed + _SLACK_BYTES:
        warn(
            f"not compared with transformers, which needs {needed / 1e9:.3g} GB of host memory "
            f"for it; {memory.available_bytes / 1e9:.3g} GB are available",
            "compare where there is more: workbench checkpoints verify --logits",
        )
        return None
    tell("logits of transformers", 0, 0)
    return difference_from_reference(made, logits)


def difference_from_reference(folder: Path, ours: Tensor | None = None) -> float:
    """Give how far our logits of a folder are from those of transformers, relative to their norm.

    Args:
        folder: a model folder.
        ours: our logits of ``probe_ids``; None computes them.

    Raises:
        WorkbenchError: they differ, or transformers cannot load the folder.
    """
    ids = probe_ids(read_dimensions(folder))
    if ours is None:
        ours = streamed_logits(folder, ids)
    try:
        reference = reference_logits(folder, ids)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RunError(
            f"transformers cannot load it: {error}",
            where=str(folder),
            remedy="see what its config.json names",
        ) from error
    difference = relative_difference(ours, reference)
    if not difference <= _NEARLY_SAME:
        raise WorkbenchError(
            f"logits differ from those of transformers by {difference:.1e}, "
            f"allowed is {_NEARLY_SAME:.0e}",
            where=str(folder),
            remedy="report it with the model's config.json",
        )
    return difference
