"""E9: seconds from ``workbench --batch`` to the end of the first step, with no kernel compiled yet.

    python benchmarks/first_step.py --shapes mistral-7b --row 4096 --rows 4 --budget-gib 22.8

Writes a model folder of these shapes with random weights, a small packed data set and a config into
a scratch folder, then runs the real command with empty caches for Triton, torch's compiler and
prepared data. The weights have just been written, so they lie in the page cache. Counted is from
the start of the process to the moment its first record of a step can be read, preflight, data,
supervisor, loading and compilation included. Needs as much disk as the weights; ``--scratch`` says
where. On an H200: 60 s, most of it for writing 14.5 GB.
"""

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import REPOSITORY, choose_device, describe
from our_step import Trial
from result_file import write_result
from settings import SETTINGS, judge
from shapes import SHAPES, dimensions, draw_weights
from torch import Tensor

from workbench.model.decoder import parameter_shapes
from workbench.model.families import Dimensions
from workbench.model.weights import write_weights

_DEMO = REPOSITORY / "configs" / "demo"
_CONFIG = """\
extends: base/training.yaml
description: the first step, measured
model: {{path: {model}, dtype: {dtype}}}
data:
  sources: {{demo: {{path: {data}}}}}
  max_length: {row}
  packing: best_fit
  pad_to: context
batch: {{train: {rows}}}
memory: {{budget_gib: {budget}}}
logging: {{every_steps: 1}}
evaluation: {{every_steps: 0}}
checkpoints: {{save_strategy: "no"}}
training: {{max_steps: 2, device: auto}}
"""


def write_model(folder: Path, dims: Dimensions, dtype: torch.dtype) -> None:
    """Write a model folder: config, the demo's tokenizer, random weights drawn on the GPU."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(_DEMO / "model" / name, folder / name)
    config = json.loads((_DEMO / "model" / "config.json").read_text()) | {
        "hidden_size": dims.hidden_size,
        "intermediate_size": dims.intermediate_size,
        "num_hidden_layers": dims.num_layers,
        "num_attention_heads": dims.num_heads,
        "num_key_value_heads": dims.num_key_value_heads,
        "head_dim": dims.head_dim,
        "vocab_size": dims.vocabulary_size,
        "max_position_embeddings": 1 << 17,
        "dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    device = choose_device()

    def drawn() -> Iterator[tuple[str, Tensor]]:
        for name, shape in parameter_shapes(dims).items():
            tensor = torch.empty(shape, dtype=dtype, device=device)
            draw_weights([(name, tensor)], device)
            yield name, tensor.cpu()

    write_weights(folder, drawn())


def measure(trial: Trial, scratch: Path) -> dict[str, Any]:
    """Write the model, run the command, give the seconds to its first step and what came when.

    Raises:
        RuntimeError: the command ended without a step.
    """
    dims = dimensions(trial.shapes, trial.layers)
    project = scratch / "project"
    (project / "configs").mkdir(parents=True)
    begin = time.perf_counter()
    write_model(project / "model", dims, getattr(torch, trial.dtype))
    writing_seconds = time.perf_counter() - begin
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    (project / "configs" / "first_step.yaml").write_text(
        _CONFIG.format(
            model=project / "model",
            data=_DEMO / "conversations.json",
            dtype=trial.dtype,
            row=trial.row,
            rows=trial.rows,
            budget="null" if trial.budget_gib is None else trial.budget_gib,
        )
    )
    environment = dict(os.environ)
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        environment[name] = str(scratch / name.lower())
    runtime = scratch / "run"
    runtime.mkdir(mode=0o700)
    environment["XDG_RUNTIME_DIR"] = str(runtime)
    command = [sys.executable, "-m", "workbench", "--batch", "-t", "first_step.yaml"]
    started = time.time()
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        records, seconds = [], None
        for line in process.stdout:
            records.append(json.loads(line))
            if seconds is None and "tokens_per_second" in records[-1]:
                seconds = time.time() - started
    if seconds is None:
        raise RuntimeError(f"exit status {process.returncode}, no step: {records[-1:]}")
    metrics = [each for each in records if "tokens_per_second" in each]
    states = {
        each["state"]: round(each["time"] - started, 2)
        for each in reversed(records)
        if each.get("event") == "state"
    }
    return {
        "trial": dataclasses.asdict(trial),
        "system": "workbench",
        "seconds_to_first_step": round(seconds, 2),
        "since_supervisor": metrics[0]["first_step_seconds"],
        "states": dict(sorted(states.items(), key=lambda each: each[1])),
        "step_seconds": [each["step_seconds"] for each in metrics],
        "writing_seconds": round(writing_seconds, 1),
        "exit_status": process.returncode,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="mistral-7b")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--row", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--budget-gib", type=float, default=None)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--scratch", type=Path, help="a folder on a disk with room")
    parser.add_argument("--results", type=Path, help="write the result file of E9 here")
    parser.add_argument("--commit", help="of the code, where it is no checkout")
    options = parser.parse_args(arguments)
    trial = Trial(
        shapes=options.shapes,
        row=options.row,
        rows=options.rows,
        layers=options.layers,
        budget_gib=options.budget_gib,
        dtype=options.dtype,
        label="first step",
    )
    with tempfile.TemporaryDirectory(prefix="first", dir=options.scratch) as scratch:
        record = measure(trial, Path(scratch))
    print(json.dumps(record))
    setting = SETTINGS["E9"]
    verdict = judge(setting.target, record)
    print(f"E9 {verdict}", file=sys.stderr)
    if options.results is not None:
        machine = describe(choose_device())
        if options.commit:
            machine["commit"] = options.commit
        path = write_result(
            options.results,
            setting,
            command=shlex.join(
                ["python", "benchmarks/first_step.py", *(arguments or sys.argv[1:])]
            ),
            machine=machine,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            records=[record],
            verdict=verdict,
            measured=f"{record['seconds_to_first_step']:.1f} s",
            notes=[
                f"states of the job, seconds since the command began: {record['states']}",
                f"from the supervisor's start {record['since_supervisor']:.1f} s",
            ],
        )
        print(path, file=sys.stderr)
    return int(not verdict.is_hit)


if __name__ == "__main__":
    sys.exit(main())
