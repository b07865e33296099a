import os
import pickle
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.small_data import row, rows_of, write_rows
from workbench.config.schema.data import SourceSection
from workbench.config.template_source import template_source
from workbench.data import encode_processes
from workbench.data.encode_processes import encode_in_processes
from workbench.data.encoding import Chunk, EncodedBatch, EncodeJob, Encoder
from workbench.data.sources import open_source
from workbench.errors import DataError

WAIT_SECONDS = 60


def job_of(folder: Path, rows: list[object]) -> EncodeJob:
    file = write_rows(folder.parent / "data.json", rows)
    source = open_source("data", SourceSection(path=str(file)))
    template = template_source("chatml", folder)
    return EncodeJob(source.parts, folder, template, "assistant", {}, skip_bad_rows=True)


def chunks_of(num_rows: int, size: int) -> list[Chunk]:
    return [
        Chunk(0, start, min(start + size, num_rows), "test" if start == size else "train")
        for start in range(0, num_rows, size)
    ]


def told(batches: list[EncodedBatch]) -> list[object]:
    """Give all that batches say, so that two lists of them can be compared."""
    return [
        (
            batch.chunk,
            batch.num_rows,
            batch.digests,
            batch.findings,
            batch.ends_chunk,
            *(array.tolist() for array in vars(batch.documents).values()),
        )
        for batch in batches
    ]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_give_what_one_process_gives(chatml_folder: Path, num_processes: int) -> None:
    rows = rows_of(47)
    rows[5] = {"conversations": []}
    rows[30] = row("I say <|im_end|> aloud.")
    job, chunks = job_of(chatml_folder, rows), chunks_of(47, 7)
    here = told(list(Encoder(job).encode(chunks)))
    assert told(list(encode_in_processes(job, chunks, num_processes))) == here
    assert len(here) == len(chunks)


def test_what_is_tokenized_at_once_changes_nothing(
    chatml_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, chunks = job_of(chatml_folder, rows_of(40)), chunks_of(40, 20)
    whole = list(Encoder(job).encode(chunks))
    monkeypatch.setattr("workbench.data.encoding._BATCH_CHARACTERS", 200)
    parts = list(Encoder(job).encode(chunks))
    assert len(parts) > 2 * len(whole)
    assert [batch.ends_chunk for batch in parts].count(True) == len(chunks)
    for name in ("ids", "targets", "lengths", "rows"):
        one, other = (
            np.concatenate([getattr(batch.documents, name) for batch in batches])
            for batches in (whole, parts)
        )
        assert np.array_equal(one, other)
    assert sum(batch.num_rows for batch in parts) == 40


def test_the_test_split_is_counted_and_not_tokenized(chatml_folder: Path) -> None:
    job = job_of(chatml_folder, rows_of(14))
    train, test = Encoder(job).encode(chunks_of(14, 7))
    assert train.documents.lengths.size == 7
    assert (test.documents.ids.size, len(test.digests), test.num_rows) == (0, 7, 7)


def test_a_file_that_goes_away_is_told_by_the_process_that_misses_it(chatml_folder: Path) -> None:
    job = job_of(chatml_folder, rows_of(20))
    (chatml_folder.parent / "data.json").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(encode_in_processes(job, chunks_of(20, 5), 2))


def test_a_process_that_dies_is_told(chatml_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(chatml_folder, rows_of(20))
    started: list[int] = []
    start = encode_processes._start

    def start_and_kill(*arguments: object) -> object:
        process = start(*arguments)  # type: ignore[arg-type]
        started.append(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr(encode_processes, "_start", start_and_kill)
    with pytest.raises(DataError, match="a process that tokenizes died"):
        list(encode_in_processes(job, chunks_of(20, 5), 2))
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_processes_are_gone_when_nobody_wants_the_rest(chatml_folder: Path) -> None:
    job = job_of(chatml_folder, rows_of(20))
    batches = encode_in_processes(job, chunks_of(20, 5), 2)
    next(iter(batches))
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    mine = [
        pid for pid in children if b"encode_processes" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert mine
    batches.close()  # type: ignore[attr-defined]
    assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]


def test_a_job_is_small_enough_for_a_pipe(chatml_folder: Path) -> None:
    # Numbers and names, never text: 2,000 rows of 400 characters are 0.9 MB.
    rows = [row("word " * 80, question=f"Hello {number}?") for number in range(2000)]
    assert len(pickle.dumps(job_of(chatml_folder, rows))) < 60_000


PARENT = """
import os, pickle, sys
from workbench.data.encode_processes import encode_in_processes
job, chunks = pickle.load(sys.stdin.buffer)
batches = encode_in_processes(job, chunks, 2)
next(batches)
children = open(f"/proc/self/task/{os.getpid()}/children").read()
print(children, flush=True)
sys.stdin.buffer.read()
"""


def test_processes_end_when_their_parent_is_killed(chatml_folder: Path) -> None:
    # Far more than a pipe holds, so that none of them can be done before.
    rows: list[object] = [row("word " * 400, question=f"Hello {number}?") for number in range(400)]
    job = job_of(chatml_folder, rows)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pickle.dump((job, chunks_of(400, 20)), parent.stdin)
        parent.stdin.flush()
        children = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(children) == 2
    for child in children:
        ended, _, _ = select.select([child], [], [], WAIT_SECONDS)
        os.close(child)
        assert ended
