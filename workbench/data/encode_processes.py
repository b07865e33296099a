"""Encoding in several processes; ``python -m workbench.data.encode_processes`` is one of them.

Each process knows from the start which chunks are its own, reads them from the files itself and
answers in order, so the parent takes from one after the other and the order is that of the data.
A process that is ahead waits for its pipe to be read: nothing piles up. It ends when that pipe
closes. Started afresh in place of forked or spawned by ``multiprocessing``: it never runs the
parent's main module again, imports no torch and inherits no threads.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from workbench.data.encoding import Chunk, EncodedBatch, EncodeJob, Encoder
from workbench.errors import DataError

_MODULE = "workbench.data.encode_processes"
# One thread each: the processes are parallel, and more threads than cores only wait for each other.
_ONE_THREAD = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def encode_in_processes(
    job: EncodeJob, chunks: Sequence[Chunk], num_processes: int
) -> Iterator[EncodedBatch]:
    """Encode chunks by several processes; what comes back is what one would give.

    Args:
        job: what to encode, and how.
        chunks: in the order of the data.
        num_processes: at least one.

    Raises:
        DataError: a file cannot be read any more, or a process died.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(num_processes):
            processes.append(_start(job, chunks[number::num_processes]))
        for number in range(len(chunks)):
            yield from _chunk_from(processes[number % num_processes])
    finally:
        for process in processes:
            process.kill()  # whoever is done has left already
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # a dead process takes nothing any more
                        pipe.close()
            process.wait()


def _start(job: EncodeJob, chunks: Sequence[Chunk]) -> "subprocess.Popen[bytes]":
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
        )
    except OSError as error:
        raise _died() from error
    assert process.stdin is not None
    # One that dies at once is noticed when nothing comes from it.
    with contextlib.suppress(BrokenPipeError):
        pickle.dump((job, tuple(chunks)), process.stdin)
        process.stdin.flush()
    return process


def _chunk_from(process: "subprocess.Popen[bytes]") -> Iterator[EncodedBatch]:
    assert process.stdout is not None
    while True:
        try:
            answer = pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise _died() from error
        if not isinstance(answer, EncodedBatch):
            what, where, remedy = answer
            raise DataError(what, where=where, remedy=remedy)
        yield answer
        if answer.ends_chunk:
            return


def _died() -> DataError:
    return DataError(
        "a process that tokenizes died, perhaps for lack of memory",
        where="data.num_workers",
        remedy="set data.num_workers: 0",
    )


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Read one job and its chunks, answer with batches, or with what is wrong, and end.

    Args:
        requests: gives the job and the chunks, pickled.
        answers: takes ``EncodedBatch`` es, or (what, where, remedy) of an error as the last.
    """
    job, chunks = pickle.load(requests)
    try:
        for batch in Encoder(job).encode(chunks):
            pickle.dump(batch, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except DataError as error:
        pickle.dump((error.what, error.where, error.remedy), answers)
        answers.flush()


def _main() -> None:
    # Whatever a library prints goes to stderr, never between the answers.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        main(sys.stdin.buffer, answers)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _main()
