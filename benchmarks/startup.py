"""How long `workbench` takes to its first frame, and which imports that time goes to.

Each start is a fresh process in a pseudo-terminal of 120×36; the time runs from before the process
is made until the footer, the last row of the frame, has come out of the terminal. Usage:

    python benchmarks/startup.py [--runs 5] [--json]
"""

import argparse
import fcntl
import json
import os
import platform
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from importlib.metadata import version
from pathlib import Path

LAST_WORD_OF_THE_FRAME = b"Detach"
LIMIT_SECONDS = 30.0
HEAVY = ("torch", "transformers", "tokenizers", "datasets", "numpy", "httpx", "fastapi")


def first_frame_seconds(project: Path, state: Path) -> float:
    """Start the program once; give the seconds to its first whole frame."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "XDG_STATE_HOME": str(state),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "-p", str(project)],
        stdin=other,
        stdout=other,
        stderr=other,
        env=environment,
        start_new_session=True,
    )
    os.close(other)
    seen = b""
    try:
        while LAST_WORD_OF_THE_FRAME not in seen:
            left = LIMIT_SECONDS - (time.perf_counter() - began)
            if left <= 0 or not select.select([main], [], [], left)[0]:
                raise SystemExit(f"no frame within {LIMIT_SECONDS:.0f} s; it wrote {seen[-400:]!r}")
            seen += os.read(main, 65536)
        return time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(main)


def import_table(num_rows: int = 15) -> list[tuple[str, float]]:
    """Give the packages that the first frame imports, in their own milliseconds, slowest first."""
    said = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-c",
            "import workbench.cli.tui, workbench.tui.app, workbench.tui.screens.configs",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    totals: dict[str, float] = {}
    for line in said.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdigit():
            package = parts[2].strip().split(".")[0]
            totals[package] = totals.get(package, 0.0) + int(parts[0]) / 1000
    return sorted(totals.items(), key=lambda pair: -pair[1])[:num_rows]


def heavy_modules() -> list[str]:
    """Name the heavy packages that are loaded by then; there should be none."""
    code = (
        "import sys, workbench.cli.tui, workbench.tui.app, workbench.tui.screens.configs;"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="fresh processes; the best counts")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project, state = Path(folder) / "project", Path(folder) / "state"
        project.mkdir()
        first_frame_seconds(project, state)  # compiles what is not compiled yet; not counted
        times = [first_frame_seconds(project, state) * 1000 for _ in range(options.runs)]
    report = {
        "best_ms": round(min(times)),
        "all_ms": [round(each) for each in times],
        "heavy_modules": heavy_modules(),
        "imports_ms": {name: round(value, 1) for name, value in import_table()},
        "python": platform.python_version(),
        "textual": version("textual"),
        "cores": len(os.sched_getaffinity(0)),
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"first frame  {report['best_ms']} ms, best of {options.runs}: {report['all_ms']}")
    print(
        f"Python {report['python']}, Textual {report['textual']}, {report['cores']} cores available"
    )
    print(f"heavy packages loaded: {', '.join(report['heavy_modules']) or 'none'}")
    print("imports, each package's own time:")
    for name, value in report["imports_ms"].items():
        print(f"  {value:7.1f} ms  {name}")


if __name__ == "__main__":
    main()
