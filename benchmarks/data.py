"""How long preparing 100,000 conversations takes, how much memory, and how full packed rows are.

    python benchmarks/data.py [--conversations 100000] [--workers 1 2] [--json]

Makes ShareGPT conversations of about 500 tokens in several turns from words of a made-up language
(Zipf's law, a fixed seed) and trains a byte-level BPE of 32,000 tokens on some of them. Everything
is measured from outside, in fresh processes: wall time from before a process is made until it has
ended, imports included; memory is the sum of the resident sets of the process and its children,
read fifty times a second, so that pages they share count more than once.

* first preparation: reads, tokenizes and fills an empty cache
* second start: hashes the files, opens the cache, cuts and packs
* first batch: in the second start, from prepared data to the arrays of step 1
* preview: ``python -m workbench.data preview`` until the first row is on its stdout

How full rows are is counted on lengths as of the Samantha data (half within 512 tokens, nine of
ten within 1,300, the longest about 4,000) in rows of 4,096.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from workbench.config.schema.batch import BatchSection
from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection, SourceSection
from workbench.config.schema.model import ModelSection
from workbench.config.template_source import template_source
from workbench.data.loader import Loader
from workbench.data.packing import assign
from workbench.data.prepare import PreparedData, Progress, prepare_in_steps

VOCABULARY_SIZE = 32_000
NUM_WORDS = 30_000
MEAN_TOKENS = 500
TOKENS_PER_WORD = 1.31  # of this language by this tokenizer, so that the mean is met
CONTEXT = 4096
METHODS = ("none", "greedy", "first_fit", "best_fit")
TOKENIZER_SAMPLE = 10_000
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|pad|>")
MODEL_CONFIG = {
    "model_type": "llama", "vocab_size": VOCABULARY_SIZE, "hidden_size": 16,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
}  # fmt: skip


# ---- what is prepared ------------------------------------------------------------------------


def make_words(generator: np.random.Generator) -> list[str]:
    """Make words of one to five syllables, frequent ones short."""
    onsets = ["b", "br", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "w"]
    syllables = [onset + vowel for onset in onsets for vowel in ("a", "e", "i", "o", "u", "ei")]
    syllables += [syllable + end for syllable in syllables for end in ("n", "r", "s")]
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        most = 1 + min(4, len(words) // 400)
        chosen = generator.integers(0, len(syllables), size=int(generator.integers(1, most + 1)))
        words["".join(syllables[index] for index in chosen)] = None
    return list(words)


def make_conversations(file: Path, number: int) -> None:
    """Write a JSON list of ShareGPT rows of two to ten turns, the same on every machine."""
    generator = np.random.default_rng(20261122)
    words = make_words(generator)
    frequencies = 1 / (np.arange(NUM_WORDS) + 2.7)
    cumulative = np.cumsum(frequencies / frequencies.sum())
    lengths = generator.lognormal(0, 0.727, size=number).clip(0.05, 8)
    num_words = (lengths / lengths.mean() * MEAN_TOKENS / TOKENS_PER_WORD).astype(int)
    with file.open("w", encoding="utf-8") as out:
        for row in range(number):
            drawn = np.searchsorted(cumulative, generator.random(num_words[row])).tolist()
            num_turns = min(2 * int(generator.integers(1, 6)), 2 * max(1, len(drawn) // 20))
            borders = [len(drawn) * turn // num_turns for turn in range(num_turns + 1)]
            turns = [
                {
                    "from": ("human", "gpt")[turn % 2],
                    "value": " ".join(words[at] for at in drawn[borders[turn] : borders[turn + 1]])
                    + ("?", ".")[turn % 2],
                }
                for turn in range(num_turns)
            ]
            out.write("[\n" if row == 0 else ",\n")
            json.dump({"id": f"row-{row}", "conversations": turns}, out)
        out.write("\n]\n")


def make_model(folder: Path, conversations: Path) -> None:
    """Train a tokenizer on some of the conversations and write what a model folder has."""
    rows = json.loads(conversations.read_bytes())[:TOKENIZER_SAMPLE]
    backend = Backend(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        (turn["value"] for row in rows for turn in row["conversations"]), trainer
    )
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    stated = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG))


def config_of(folder: Path, num_workers: int) -> Config:
    return Config(
        model=ModelSection(path=str(folder / "model")),
        batch=BatchSection(train=4),
        data=DataSection(
            sources={"made up": SourceSection(path=str(folder / "conversations.json"))},
            chat_template="chatml",
            max_length=CONTEXT,
            packing="best_fit",
            num_workers=num_workers,
        ),
    )


# ---- measured in a process of its own --------------------------------------------------------


def prepare_once(config: Config) -> dict[str, Any]:
    """Prepare, make the first batch, and say when each stage began and what it came to."""
    folder = Path(config.model.path or "")
    began: dict[str, float] = {}
    prepared = None
    for item in prepare_in_steps(config, folder, template_source("chatml", folder)):
        if isinstance(item, Progress):
            began.setdefault(item.stage, time.perf_counter())
        else:
            prepared = item
    assert isinstance(prepared, PreparedData)
    end = time.perf_counter()
    loader = Loader(
        prepared.train,
        rows_per_step=config.batch.train,
        shuffle=True,
        seed=42,
        pad_id=prepared.pad_id,
        row_length=None,
    )
    step = loader.step(0)
    batch_seconds = time.perf_counter() - end
    ends = [*list(began.values())[1:], end]
    rows = prepared.train
    return {
        "stages": {
            stage: ended - start for (stage, start), ended in zip(began.items(), ends, strict=True)
        },
        "batch_seconds": batch_seconds,
        "step_tokens": step.num_tokens,
        "was_cached": prepared.was_cached,
        "conversations": prepared.lengths_train.size + prepared.lengths_validation.size,
        "tokens": int(prepared.lengths_train.sum(dtype=np.int64))
        + int(prepared.lengths_validation.sum(dtype=np.int64)),
        "rows": len(rows),
        "fill": rows.num_tokens / (len(rows) * CONTEXT),
        "findings": len(list(prepared.findings)),
        "cache_bytes": sum(path.stat().st_size for path in (prepared.cache or Path()).rglob("*")),
    }


# ---- measured from outside -------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    """Sum the resident sets of a process and all below it."""
    try:
        status = Path(f"/proc/{pid}/statm").read_text().split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = int(status[1]) * os.sysconf("SC_PAGE_SIZE")
    return own + sum(resident_bytes(int(child)) for child in children)


def measure(config: Config, cache: Path) -> dict[str, Any]:
    """Run ``prepare_once`` in a fresh process and watch its memory."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "--prepare"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    peak, is_done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(0.02):
            peak = max(peak, resident_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    answer, _ = process.communicate(msgspec.json.encode(config))
    seconds = time.perf_counter() - began
    is_done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"preparing ended with {process.returncode}")
    return {"seconds": seconds, "peak_bytes": peak, **json.loads(answer)}


def measure_preview(config: Config, cache: Path) -> float:
    """Seconds from before the data worker is made to its first row of the first step."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "workbench.data", "preview"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"config": msgspec.to_builtins(config), "statistics": False}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            if json.loads(line)["type"] == "row":
                return time.perf_counter() - began
    raise SystemExit("the preview showed no row")


def packing_fill() -> dict[str, tuple[float, float]]:
    """Give the useful share of positions and the seconds of each method on chat-like lengths."""
    generator = np.random.default_rng(7)
    drawn = generator.lognormal(np.log(512), 0.727, size=20_000)
    lengths = drawn[(drawn >= 30) & (drawn <= 4000)].astype(int)[:5000]
    assert abs(float(np.median(lengths)) - 512) < 25
    assert abs(float(np.percentile(lengths, 90)) - 1300) < 60
    found = {}
    for method in METHODS:
        began = time.perf_counter()
        groups = assign(lengths.tolist(), CONTEXT, method)
        seconds = time.perf_counter() - began
        found[method] = (float(lengths.sum()) / (len(groups) * CONTEXT), seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        config = msgspec.json.decode(sys.stdin.buffer.read(), type=Config)
        print(json.dumps(prepare_once(config)))
        return
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="workbench-benchmark-") as temporary:
        folder = Path(temporary)
        make_conversations(folder / "conversations.json", arguments.conversations)
        make_model(folder / "model", folder / "conversations.json")
        size = (folder / "conversations.json").stat().st_size
        results = []
        for workers in arguments.workers:
            config, cache = config_of(folder, workers), folder / f"cache-{workers}"
            first, second = measure(config, cache), measure(config, cache)
            assert second["was_cached"]
            assert not first["was_cached"]
            preview = measure_preview(config, cache)
            results.append(
                {"workers": workers, "first": first, "second": second, "preview": preview}
            )
    fill = packing_fill()
    if arguments.json:
        print(json.dumps({"results": results, "fill": fill}, indent=2))
        return
    print(
        f"{os.cpu_count()} cores, load average {load_before:.2f} before · "
        f"Python {platform.python_version()}, tokenizers {version('tokenizers')}, "
        f"numpy {version('numpy')}"
    )
    first = results[0]["first"]
    print(
        f"{arguments.conversations:,} conversations, {size / 1e6:.0f} MB of JSON, "
        f"{first['tokens']:,} tokens in {first['conversations']:,} of them "
        f"({first['tokens'] / first['conversations']:.0f} each; the test split is not tokenized), "
        f"{first['cache_bytes'] / 1e6:.0f} MB of cache\n"
    )
    header = ["data.num_workers", *(str(result["workers"]) for result in results)]
    lines = [
        ("first preparation, s", lambda r: f"{r['first']['seconds']:.1f}"),
        ("… tokens per second", lambda r: f"{r['first']['tokens'] / r['first']['seconds']:,.0f}"),
        ("… peak memory, MiB", lambda r: f"{r['first']['peak_bytes'] / 2**20:,.0f}"),
        ("second start, s", lambda r: f"{r['second']['seconds']:.2f}"),
        *(
            (f"… of it {stage}, s", lambda r, stage=stage: f"{r['second']['stages'][stage]:.2f}")
            for stage in results[0]["second"]["stages"]
        ),
        ("… peak memory, MiB", lambda r: f"{r['second']['peak_bytes'] / 2**20:,.0f}"),
        ("first batch after that, s", lambda r: f"{r['second']['batch_seconds']:.3f}"),
        ("preview to its first row, s", lambda r: f"{r['preview']:.2f}"),
    ]
    print("| " + " | ".join(header) + " |")
    print("|---|" + "---|" * len(results))
    for name, of in lines:
        print("| " + " | ".join([name, *(of(result) for result in results)]) + " |")
    print(f"\n| packing, rows of {CONTEXT} | useful positions | s per 5,000 |\n|---|---|---|")
    for method, (share, seconds) in fill.items():
        print(f"| {method} | {100 * share:.2f} % | {seconds:.3f} |")


if __name__ == "__main__":
    main()
