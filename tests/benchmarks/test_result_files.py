"""What is held against what, the files it is written to, and the table made from these."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from machine import gpu_slug
from readme_table import BEGIN, END, REPOSITORY, main, newest_summaries, table, with_table
from result_file import write_result
from settings import SETTINGS, Target, Verdict, judge
from shapes import SHAPES
from throughput import measured_words, with_all_blocks

GIB = 1 << 30
MACHINE = {"commit": "abc1234, clean", "gpu": "NVIDIA H200", "driver": "580.1"}


def record(**changes: object) -> dict[str, Any]:
    """A record as ``our_step`` prints it."""
    trial = dataclasses.asdict(SETTINGS["E1"].trials[0])
    return {
        "system": "workbench", "trial": trial, "layers": 32, "seconds": [1.5, 1.4, 1.6],
        "warmup_seconds": [9.0, 1.6], "tokens_per_second": 10923.0, "allocated": 16 * GIB,
        "reserved": 17 * GIB, "on_card": 18 * GIB, "host_peak": 9 * GIB, "mfu": 0.461,
        "predicted_reserved": int(17.2 * GIB), "predicted_seconds": 1.45,
        "ceilings": {"product_flops": 7.7e14, "model_product_flops": 7.2e14,
                     "memory_bytes_per_second": 4e12, "up_bytes_per_second": 55e9,
                     "down_bytes_per_second": 55e9, "both_bytes_per_second": 51e9},
        "plan": {"microbatches": 2, "resident_blocks": 32},
        "times": {"step": 1.5, "up": 0.3, "waiting": 0.03, "optimizer": 0.045},
        **changes,
    }  # fmt: skip


RIVAL = record(
    system="Hugging Face, Liger", tokens_per_second=7760.0, reserved=int(21.7 * GIB),
    predicted_seconds=None, predicted_reserved=None,
)  # fmt: skip


def write(
    folder: Path, *, name: str = "E1", gpu: str = "NVIDIA H200", date: str = "2026-11-23",
    speed: float = 10923.0,
) -> Path:  # fmt: skip
    setting = SETTINGS[name]
    ours = record(tokens_per_second=speed)
    return write_result(
        folder,
        setting,
        command="python benchmarks/throughput.py --settings E1",
        machine=MACHINE | {"gpu": gpu},
        date=date,
        records=[ours, RIVAL],
        verdict=judge(setting.target, ours),
        measured=measured_words(setting, ours),
        notes=["a note"],
    )


def test_a_verdict_says_by_how_much() -> None:
    target = Target(tokens_per_second=11_000, reserved_gib=18.0)
    assert str(judge(target, record())) == (
        "missed: 10,923 tok/s is 0.7 % under 11,000, 17.00 GiB is 5.6 % under 18"
    )
    assert judge(target, record(tokens_per_second=11_000)).is_hit
    assert not judge(target, record(tokens_per_second=12_000, reserved=19 * GIB)).is_hit
    assert judge(Target(seconds=60), {"seconds_to_first_step": 31.5}).is_hit
    assert not judge(Target(row_tokens=131_072), {"row": 100_352}).is_hit
    failed = judge(target, {"failed": "OutOfMemoryError", "message": "CUDA out of memory"})
    assert str(failed) == "missed: OutOfMemoryError: CUDA out of memory"


def test_every_setting_has_a_target_and_shapes_that_exist() -> None:
    assert list(SETTINGS) == [f"E{number}" for number in range(1, 12)]
    for setting in SETTINGS.values():
        assert all(trial.shapes in SHAPES for trial in (*setting.trials, *setting.beside))
        assert setting.kind != "step" or setting.trials
    tokens = {trial.tokens for name in ("E1", "E2", "E3", "E5") for trial in SETTINGS[name].trials}
    assert tokens == {16384}


def test_a_file_states_command_machine_ceilings_both_systems_and_raw_values(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path.name == "E1_h200_2026-11-23.md"
    text = path.read_text("utf-8")
    for wanted in (
        "`python benchmarks/throughput.py --settings E1`",
        "missed: 10,923 tok/s is 0.7 % under 11,000",
        "* commit: abc1234, clean",
        "products 770 TFLOP/s",
        "copies up 55.0 GB/s",
        "| workbench, mistral-7b, 32 blocks, budget 22.8 GiB | 4096 × 4 | 16.00 | 17.00 | 18.00 |",
        "| 1.500 | 1.400 | 14.3 % | 10,923 | 46.1 % | 17.20 | 1.450 |",
        "| by hand, mistral-7b",
        "waiting 0.030 (2.0 %), optimizer 0.045 (3.0 %)",
        "* a note",
    ):
        assert wanted in text, wanted
    raw = text[text.rindex("```json") :].splitlines()[1:-1]
    assert [json.loads(line)["tokens_per_second"] for line in raw] == [10923.0, 7760.0]
    head = text.index("| system |")
    assert len({line.count("|") for line in text[head:].splitlines()[:4]}) == 1


def test_a_file_that_is_there_is_never_changed(tmp_path: Path) -> None:
    first = write(tmp_path)
    before = first.read_bytes()
    second = write(tmp_path, speed=11_500.0)
    assert second.name == "E1_h200_2026-11-23_2.md"
    assert first.read_bytes() == before
    (found,) = newest_summaries(tmp_path)
    assert found["measured"] == "11,500 tok/s at 17.00 GiB"
    assert found["hit"] is True


def test_the_table_takes_the_newest_file_of_a_gpu_for_each_setting(tmp_path: Path) -> None:
    write(tmp_path, name="E8", date="2026-11-23", speed=12_000.0)
    write(tmp_path, name="E8", date="2026-12-01", speed=13_600.0)
    write(tmp_path, name="E8", gpu="none", date="2027-01-01")
    write(tmp_path, name="E1")
    (tmp_path / "E9_notes.md").write_text("no result")
    lines = table(newest_summaries(tmp_path)).splitlines()
    assert [line.split("]")[0] for line in lines[2:]] == ["| [E1", "| [E8"]
    assert "✓ 13,600 tok/s at 17.00 GiB" in lines[3]
    assert "✗ 10,923 tok/s at 17.00 GiB | 7,760 tok/s at 21.70 GiB, here |" in lines[2]
    assert "(benchmarks/results/E8_h200_2026-12-01.md)" in lines[3]


def test_only_what_stands_between_the_markers_changes(tmp_path: Path) -> None:
    write(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    arguments = ["--readme", str(readme), "--results", str(tmp_path)]
    assert main(["--check", *arguments]) == 1
    assert main(arguments) == 0
    assert main(["--check", *arguments]) == 0
    text = readme.read_text("utf-8")
    assert text.startswith(f"before\n\n{BEGIN}\n| | setting |")
    assert text.endswith(f"|\n{END}\n\nafter\n")
    with pytest.raises(SystemExit, match="once each"):
        with_table("no markers", [])


def test_the_readme_holds_the_table_that_the_result_files_give() -> None:
    assert main(["--check"]) == 0, "run: python benchmarks/readme_table.py"
    assert BEGIN in (REPOSITORY / "README.md").read_text("utf-8")


def test_fewer_blocks_are_not_taken_for_all_of_them() -> None:
    setting = SETTINGS["E6"]
    trial = dataclasses.asdict(setting.trials[0])
    fewer = record(trial=trial, layers=60, tokens_per_second=1100.0, reserved=12 * GIB)
    assert measured_words(setting, fewer) == (
        "1,100 tok/s at 12.00 GiB, 60 of 80 blocks (825 tok/s reckoned for all)"
    )
    assert not judge(setting.target, with_all_blocks(fewer)).is_hit
    assert judge(setting.target, with_all_blocks(fewer | {"layers": 80})).is_hit


def test_a_gpu_is_named_as_in_file_names() -> None:
    assert gpu_slug("NVIDIA H200") == "h200"
    assert gpu_slug("NVIDIA GeForce RTX 4090") == "rtx-4090"
    assert gpu_slug("none") == "cpu"


def test_a_verdict_without_a_bound_is_its_words() -> None:
    assert str(Verdict(True, ["12 of 12 settings within"])) == "hit: 12 of 12 settings within"
