"""Make the table of the engine in README.md from the result files: newest file of each setting.

    python benchmarks/readme_table.py            # writes README.md
    python benchmarks/readme_table.py --check    # exit status 1 where README.md says otherwise

A result file of ``result_file.py`` states its summary in its first ``json`` fence. The table stands
between two markers; nothing else of the README is touched.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
BEGIN, END = "<!-- engine table -->", "<!-- end of engine table -->"
_NAME = re.compile(r"(E\d+)_(.+)_(\d{4}-\d\d-\d\d)(?:_(\d+))?\.md")
_FENCE = re.compile(r"^```json\n(.*?)\n", re.MULTILINE)


def newest_summaries(folder: Path, gpu: str | None = None) -> list[dict[str, Any]]:
    """Read the summary of each setting's newest file, in the order of the settings.

    Args:
        folder: where result files lie.
        gpu: the slug of a GPU in file names; None takes all but those of the CPU.
    """
    newest: dict[str, tuple[tuple[str, int], Path]] = {}
    for path in folder.glob("E*.md"):
        match = _NAME.fullmatch(path.name)
        if match is None or match[2] == "cpu" or (gpu is not None and match[2] != gpu):
            continue
        age = (match[3], int(match[4] or 1))
        if match[1] not in newest or newest[match[1]][0] < age:
            newest[match[1]] = (age, path)
    summaries = []
    for name in sorted(newest, key=lambda name: int(name[1:])):
        path = newest[name][1]
        fence = _FENCE.search(path.read_text(encoding="utf-8"))
        if fence is None:
            raise SystemExit(f"{path}: has no summary; write it with benchmarks/result_file.py")
        summaries.append({**json.loads(fence[1]), "file": path.name})
    return summaries


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Give the table: one line per setting, each linked to its file."""
    lines = [
        "| | setting | target | measured | best rival |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in summaries:
        mark = "✓" if each["hit"] else "✗"
        name = f"[{each['setting']}](benchmarks/results/{each['file']})"
        lines.append(
            f"| {name} | {each['title']} | {each['target']} | {mark} {each['measured']} | "
            f"{each['rival']} |"
        )
    return "\n".join(lines)


def with_table(readme: str, summaries: Sequence[dict[str, Any]]) -> str:
    """Give the README with the table between its markers.

    Raises:
        SystemExit: a marker is missing.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise SystemExit(f"README.md: needs {BEGIN} and {END}, once each")
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    inside = f"\n{table(summaries)}\n" if summaries else "\n"
    return f"{before}{BEGIN}{inside}{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    old = options.readme.read_text(encoding="utf-8")
    new = with_table(old, newest_summaries(options.results))
    if options.check:
        return int(old != new)
    if old != new:
        options.readme.write_text(new, encoding="utf-8")
    print(f"{options.readme}: {'changed' if old != new else 'as it was'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
