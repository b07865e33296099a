"""How long `workbench ls` takes over 500 configs, and `workbench show` over one of them.

The configs are made in a temporary folder: families of ten, of which nine extend the first, which
extends the shipped bases, as a project has them after a year of trials; one in twenty-five has a
typo. Each measurement is the whole of a fresh process, from before it is made until it has ended.
Usage:

    python benchmarks/configs.py [--configs 500] [--runs 11] [--json]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib.metadata import version
from pathlib import Path

FAMILY = 10
ONE_IN_BROKEN = 25


def make_configs(folder: Path, num_configs: int) -> None:
    """Write the configs below ``folder/configs``."""
    for number in range(num_configs):
        family, member = divmod(number, FAMILY)
        path = folder / "configs" / f"family_{family:02}" / f"trial_{member}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = family_base(family) if member == 0 else trial(number, family)
        path.write_text(text)


def family_base(family: int) -> str:
    """Give the config that the others of a family extend."""
    return textwrap.dedent(
        f"""\
        # What the trials of family {family} have in common.

        extends: [base/samantha.yaml, base/1gpu.yaml]
        description: Family {family}, the trial that the others change

        data:
          sources:
            samantha: null
            letters: {{path: ../../letters/{family}.jsonl}}
          max_length: {512 + 64 * family}

        batch:
          train: 8
          evaluation: 16

        optimizer:
          learning_rate: {1 + family}.0e-6
          warmup_steps: 50
        """
    )


def trial(number: int, family: int) -> str:
    """Give a config that changes a few keys of its family; one in twenty-five has a typo."""
    rate = "learning_rte" if number % ONE_IN_BROKEN == 1 else "learning_rate"
    return textwrap.dedent(
        f"""\
        extends: trial_0.yaml
        description: Family {family}, trial {number}

        batch:
          train: {4 + number % 5}
          microbatches: 4

        optimizer:
          {rate}: {1 + number % 9}.5e-6

        memory:
          budget_gib: {8 + number % 16}
        """
    )


def measure(arguments: list[str], folder: Path, num_runs: int) -> dict[str, object]:
    """Run a command in fresh processes; give wall and CPU milliseconds of each run."""
    wall, cpu = [], []
    for _ in range(num_runs + 1):  # the first compiles and fills the page cache; not counted
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "workbench", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        wall.append((time.perf_counter() - began) * 1000)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
    return {
        "command": "workbench " + " ".join(arguments),
        "lines": len(done.stdout.splitlines()),
        "best_ms": round(min(wall[1:])),
        "median_ms": round(statistics.median(wall[1:])),
        "best_cpu_ms": round(min(cpu[1:])),
        "all_ms": [round(each) for each in wall[1:]],
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=500, help="how many are made")
    parser.add_argument("--runs", type=int, default=11, help="fresh processes of each command")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_configs(folder, options.configs)
        commands = [
            ["--version"],
            ["ls"],
            ["ls", "--json"],
            ["show", "-t", "family_01/trial_3"],
            ["show", "-t", "1gpu_llama_7b/16gb", "optimizer.learning_rate=1e-5"],
        ]
        measured = [measure(command, folder, options.runs) for command in commands]
    report = {
        "configs": options.configs,
        "measured": measured,
        "load_average": round(os.getloadavg()[0], 2),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "msgspec": version("msgspec"),
        "pyyaml": version("pyyaml"),
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{options.configs} configs, best and median of {options.runs} fresh processes")
    for each in measured:
        print(
            f"  {each['best_ms']:5} ms  {each['median_ms']:5} ms  ({each['best_cpu_ms']} ms CPU, "
            f"{each['lines']} lines)  {each['command']}"
        )
    print(
        f"Python {report['python']}, msgspec {report['msgspec']}, PyYAML {report['pyyaml']}, "
        f"{report['cores']} cores available, load average {report['load_average']}"
    )


if __name__ == "__main__":
    main()
