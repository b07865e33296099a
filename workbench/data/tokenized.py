"""The tokens of a config's rows before cutting and packing: found in the cache, or made and kept.

Whether they are found depends on what the files hold, on how rows are read and rendered, and on
the tokenizer, never on where files lie or on how rows are cut, packed, mixed and ordered. Memory
does not grow with the text: rows are read by part and number, tokens are written as they come.
"""

import functools
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from workbench.config.schema.data import DataSection
from workbench.data import cache
from workbench.data.duplicates import Duplicates, Split
from workbench.data.encode_processes import encode_in_processes
from workbench.data.encoding import Chunk, EncodedBatch, EncodeJob, Encoder
from workbench.data.findings import Finding, Findings
from workbench.data.raw_rows import Part
from workbench.data.sources import Source, is_of_hub, named_apart, open_source
from workbench.data.token_store import TokenStore, TokenStoreWriter, open_token_store
from workbench.data.tokenizer import (
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    has_llama_class,
)
from workbench.errors import DataError

_PACKAGES = ("tokenizers", "jinja2")
# Modules of this package that neither tokens nor their files depend on; the key has all others, so
# that a version of workbench with another rule never finds what the old rule made.
_BEHIND_THE_TOKENS = frozenset(
    (
        "__main__",
        "batch",
        "loader",
        "losses",
        "packing",
        "prepare",
        "preview",
        "statistics",
        "turns",
    )
)
_TOKENIZER_FILES = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE)
_CHUNK_ROWS = 1024
# Measured on two cores: below this, two processes take longer to start than they save.
_MIN_ROWS_FOR_PROCESSES = 20_000
Result = TypeVar("Result")

_SUMMARY, _FINDINGS = "summary.json", "findings.json"


@dataclass(frozen=True)
class Progress:
    """How far preparing is: reading and hashing (files), tokenizing (rows), packing.

    Of the hub's answer ``total`` is 0: nothing says how long it takes.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Inputs:
    """All that tokens, targets and findings depend on.

    Attributes:
        sources: opened, in the order of the config.
        data: the config's section.
        model_folder: with the tokenizer.
        template: Jinja source of the chat template.
    """

    sources: tuple[Source, ...]
    data: DataSection
    model_folder: Path
    template: str

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of all sources; token stores name them by their number here."""
        return tuple(part for source in self.sources for part in source.parts)


class Summary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the tokens come to as a whole.

    Attributes:
        train: usable conversations of the split; so for the others.
        highest_id: of all tokens; -1 without any.
    """

    train: int
    validation: int
    test: int
    highest_id: int


@dataclass(frozen=True)
class Tokenized:
    """Every document that can be trained on, and what was found while they were made.

    Attributes:
        train: documents of the split.
        validation: documents of the split.
        summary: counts.
        findings: what is odd about rows.
        folder: in the cache; None if they could not be kept.
    """

    train: TokenStore
    validation: TokenStore
    summary: Summary
    findings: Findings
    folder: Path | None


def open_inputs(
    data: DataSection, model_folder: Path, template: str, findings: Findings
) -> Generator[Progress, None, Inputs]:
    """Find the files of every data set, and where their rows are.

    Args:
        data: names the data sets.
        model_folder: with the tokenizer.
        template: Jinja source of the chat template.
        findings: takes what is odd about files as a whole.

    Raises:
        DataError: there is no data set, or a file cannot be used.
    """
    stated = [(name, section) for name, section in data.sources.items() if section is not None]
    if not stated:
        raise DataError(
            "names no data set", where="data.sources", remedy="give one a name and a path"
        )
    sources: list[Source] = []
    errors: list[DataError] = []
    for number, (name, section) in enumerate(stated):
        if is_of_hub(section):
            yield Progress(f"asking the hub for {section.path}", 0, 0)
        else:
            yield Progress("reading", number, len(stated))
        try:
            sources.append(open_source(name, section))
        except DataError as error:
            errors.append(error)
    _raise_first(errors)
    sources = named_apart(sources)
    for source in sources:
        for finding in source.findings:
            findings.add(finding.what, finding)
    yield Progress("reading", len(stated), len(stated))
    return Inputs(tuple(sources), data, model_folder, template)


def _raise_first(errors: Sequence[DataError]) -> None:
    """Raise the first of several errors, with the places of the others.

    Raises:
        DataError: there is an error.
    """
    if len(errors) > 1:
        first, *others = errors
        places = ", ".join(error.where for error in others)
        raise DataError(
            f"{first.what} (nor can these be used: {places})",
            where=first.where,
            remedy=first.remedy,
        ) from first
    if errors:
        raise errors[0]


def make_key(inputs: Inputs) -> Generator[Progress, None, str]:
    """Hash what the tokens depend on.

    Raises:
        DataError: a file cannot be read any more.
    """
    num_parts = len(inputs.parts)
    hashed: list[list[list[str]]] = []
    done = 0
    for source in inputs.sources:
        hashed.append([])
        for part in source.parts:
            yield Progress("hashing", done, num_parts)
            hashed[-1].append([part.label, part.form, part.fingerprint()])
            done += 1
    yield Progress("hashing", num_parts, num_parts)
    data, template = inputs.data, inputs.template
    return cache.key_of(
        {
            "code": _own_code(),
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "tokenizer": {name: _hash(inputs.model_folder / name) for name in _TOKENIZER_FILES},
            "llama class": has_llama_class(inputs.model_folder),
            "template": template,
            # A template that writes the date writes another one tomorrow.
            "date": f"{datetime.now():%Y-%m-%d}" if "strftime_now" in template else None,
            "sources": hashed,
            "split_at": data.split_at,
            "targets": data.targets,
            "roles": data.roles,
            "skip_bad_rows": data.skip_bad_rows,
        }
    )


def finish(steps: Generator[Progress, None, Result]) -> Result:
    """Go through steps that nobody watches."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


@functools.cache  # what runs is what was there when this process began
def _own_code() -> str:
    return hash_code(Path(__file__).parent)


def hash_code(folder: Path) -> str:
    """Hash the modules that make tokens and lay out their files.

    Args:
        folder: of this package.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        if path.stem not in _BEHIND_THE_TOKENS:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def find_tokenized(key: str) -> Tokenized | None:
    """Open what the cache has for a key; an entry that cannot be used is none."""
    try:
        entry = cache.find_entry(cache.cache_folder(), key)
    except OSError:
        return None
    if entry is None:
        return None
    try:
        tokenized = _open(entry, is_kept=True)
    except (OSError, ValueError):
        cache.discard(entry)
        return None
    cache.mark_used(entry)
    return tokenized


def tokenize(inputs: Inputs, key: str, findings: Findings) -> Generator[Progress, None, Tokenized]:
    """Read, render and tokenize every row, and fill the cache with what comes of it.

    Where the cache cannot be written, the system's temporary folder takes the tokens for as long
    as this process lives, and a warning says so.

    Args:
        inputs: to tokenize.
        key: of them.
        findings: takes that warning; what is odd about rows is kept with the tokens.

    Raises:
        DataError: a file cannot be read any more or changes while it is read, a process died, or
            there is no space anywhere.
    """
    where = "the cache of prepared data"
    try:
        where = str(cache.cache_folder())
        with cache.filling(cache.cache_folder(), key) as filling:
            yield from _write(inputs, filling.folder)
            _refuse_changes(inputs, key)
            return _open(filling.finish(), is_kept=True)
    except OSError as error:
        findings.add("no cache", _cannot_be_kept(error, where))
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="workbench-data-"))
        yield from _write(inputs, folder)
        # Mapped files can be read when their names are gone; so not even a kill leaves them behind.
        return _open(folder, is_kept=False)
    except OSError as error:
        raise DataError(
            f"tokens cannot be written there either: {error.strerror or error}",
            where=str(folder or tempfile.gettempdir()),
            remedy="free space, or set XDG_CACHE_HOME to a folder with room",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_changes(inputs: Inputs, key: str) -> None:
    """Hash the files again: what was read is kept under the key of what was hashed."""
    if finish(make_key(inputs)) != key:
        raise DataError(
            "changed while it was read",
            where="data.sources",
            remedy="start again when nothing writes to the files any more",
        )


def _cannot_be_kept(error: OSError, where: str) -> Finding:
    return Finding(
        "warning",
        str(error.filename or where),
        f"prepared data cannot be kept: {error.strerror or error}; every start tokenizes anew",
        "free space there, or set XDG_CACHE_HOME to a folder that can be written",
    )


def _write(inputs: Inputs, folder: Path) -> Generator[Progress, None, None]:
    """Write the tokens of both splits, the summary and the findings into a folder."""
    data, parts = inputs.data, inputs.parts
    job = EncodeJob(
        parts, inputs.model_folder, inputs.template, data.targets, data.roles, data.skip_bad_rows
    )
    chunks = list(chunks_of(inputs.sources, data.split_at))
    done, total = 0, sum(source.num_rows for source in inputs.sources)
    findings, duplicates = Findings(), Duplicates()
    num_usable: Counter[Split] = Counter()
    yield Progress("tokenizing", 0, total)
    with (
        TokenStoreWriter(folder / "train") as train,
        TokenStoreWriter(folder / "validation") as validation,
        closing(_encode(job, chunks, total, data.num_workers)) as batches,
    ):
        for batch in batches:
            split = batch.chunk.split
            for kind, finding in batch.findings:
                findings.add(kind, finding)
            for row, digest in batch.digests:
                where = parts[batch.chunk.part].where(row)
                repeated = duplicates.seen_hash(digest, where, split)
                if repeated is not None:
                    findings.add(*repeated)
            num_usable[split] += batch.num_usable
            if split != "test":
                writer = train if split == "train" else validation
                writer.append(batch.chunk.part, batch.documents)
            done += batch.num_rows
            yield Progress("tokenizing", done, total)
    if data.skip_bad_rows and num_usable.total() < total:
        findings.add("dropped rows", _dropped(total - num_usable.total(), total))
    summary = Summary(
        train=num_usable["train"],
        validation=num_usable["validation"],
        test=num_usable["test"],
        highest_id=max(train.highest_id, validation.highest_id),
    )
    (folder / _SUMMARY).write_bytes(msgspec.json.encode(summary))
    (folder / _FINDINGS).write_bytes(findings.encode())


def _dropped(number: int, total: int) -> Finding:
    return Finding(
        "warning",
        "data.skip_bad_rows",
        f"{number:,} of {total:,} rows cannot be used as they are, and are dropped",
        "correct them to train on them too",
    )


def _open(folder: Path, *, is_kept: bool) -> Tokenized:
    return Tokenized(
        train=open_token_store(folder / "train"),
        validation=open_token_store(folder / "validation"),
        summary=msgspec.json.decode((folder / _SUMMARY).read_bytes(), type=Summary),
        findings=Findings.decode((folder / _FINDINGS).read_bytes()),
        folder=folder if is_kept else None,
    )


def chunks_of(sources: Sequence[Source], split_at: Sequence[float]) -> Iterator[Chunk]:
    """Cut every source into chunks that lie in one part and in one split.

    Each source is split by position: rows before ``int(0.80 * n)`` are trained, those before
    ``int(0.95 * n)`` evaluated.
    """
    part = -1
    for source in sources:
        borders = [int(share * source.num_rows) for share in split_at]
        starts: dict[Split, int] = {"train": 0, "validation": borders[0], "test": borders[1]}
        ends = [*borders, source.num_rows]
        first = 0  # row of the source that is the part's first
        for opened in source.parts:
            part += 1
            for (split, start), end in zip(starts.items(), ends, strict=True):
                begin, stop = max(start - first, 0), min(end - first, opened.num_rows)
                for row in range(begin, stop, _CHUNK_ROWS):
                    yield Chunk(part, row, min(row + _CHUNK_ROWS, stop), split)
            first += opened.num_rows


def _encode(
    job: EncodeJob, chunks: Sequence[Chunk], num_rows: int, num_workers: int
) -> Generator[EncodedBatch, None, None]:
    """Encode in this process, or in several where there is much to do.

    One process beside this one gains nothing: this one already reads and tokenizes at once.
    """
    num_processes = min(num_workers, len(os.sched_getaffinity(0)), len(chunks))
    if num_processes < 2 or num_rows < _MIN_ROWS_FOR_PROCESSES:
        yield from Encoder(job).encode(chunks)
    else:
        yield from encode_in_processes(job, chunks, num_processes)
