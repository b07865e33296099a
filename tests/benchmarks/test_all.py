"""Many settings in one call: what is run, what is left out, and what is made of the records."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import all as all_settings
import pytest
import write_results
from all import chosen_jobs, expected_seconds, fill_host_memory, jobs_of, main
from our_step import Trial
from readme_table import BEGIN, END
from settings import PREDICTED_TOO, SETTINGS
from stress import BUDGETS, stress_trial
from throughput import run_script

GIB = 1 << 30
PLAN = {
    "microbatches": 4, "sum_dtype": "bfloat16", "resident_blocks": 32, "vocabulary_resident": True,
    "slots": 3, "pinned_records": True, "recompute": {"selective": 32}, "tile_rows": 4096,
    "head_rows": 1048,
}  # fmt: skip


def line(name: str, trial: Trial, **changes: object) -> dict[str, Any]:
    """A line as ``all.py`` writes it, of a GPU."""
    record = {
        "system": "workbench", "trial": dataclasses.asdict(trial), "layers": 32, "plan": PLAN,
        "row_documents": 8, "seconds": [1.5, 1.4, 1.6], "tokens_per_second": 11_500.0,
        "allocated": 15 * GIB, "reserved": 16 * GIB, "on_card": 17 * GIB, "host_peak": 9 * GIB,
        "mfu": 0.5, "predicted_reserved": int(16.2 * GIB), "predicted_seconds": 1.45,
        "times": {"step": 1.5, "up": 0.3, "waiting": 0.03, "optimizer": 0.036},
    }  # fmt: skip
    return {
        "setting": name.partition(".")[0], "name": name, "date": "2026-11-24",
        "command": "python benchmarks/all.py", "wall_seconds": 20.0,
        "machine": {"commit": "abc1234, clean", "gpu": "NVIDIA H200", "torch": "2.11.0"},
        "record": record | changes,
    }  # fmt: skip


def written(folder: Path, *lines: dict[str, Any]) -> Path:
    """Write lines to a file, and what the results are made into beside it."""
    readme = folder / "README.md"
    if not readme.exists():
        readme.write_text(f"{BEGIN}\n{END}\n")
        known = json.loads(write_results.GOLDEN.read_text("utf-8"))
        (folder / "golden.json").write_text(json.dumps(known | {"peaks": []}))
    path = folder / f"{len(list(folder.glob('*.jsonl')))}.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def results(folder: Path, *paths: Path) -> dict[str, str]:
    """Make the results of files of records; give each file's text by its name."""
    made = folder / "results"
    others = ["--golden", str(folder / "golden.json"), "--readme", str(folder / "README.md")]
    assert write_results.main([*map(str, paths), "--results", str(made), *others]) == 0
    return {path.name: path.read_text("utf-8") for path in made.iterdir()}


def test_a_call_writes_a_line_for_each_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "records.jsonl"
    settings = ["--shapes", "demo", "--settings", "E3", "stress.2"]
    assert main([*settings, "--out", str(out)]) == 0
    lines = [json.loads(text) for text in out.read_text("utf-8").splitlines()]
    assert [each["name"] for each in lines] == ["E3.0", "stress.2"]
    assert lines[0]["record"]["tokens_per_second"] > 0
    assert lines[0]["machine"]["gpu"] == "none"
    assert lines[1]["record"]["steps"] == 4
    assert "stress.2" in capsys.readouterr().out


def test_what_takes_too_long_is_ended_and_told() -> None:
    trial = json.dumps(dataclasses.asdict(Trial()))
    assert run_script("our_step.py", trial, limit_seconds=0.1)["failed"] == "not done after 0 s"
    broken = run_script("our_step.py", "no trial", limit_seconds=60)
    assert broken["failed"] == "exit status 1"
    assert "JSONDecodeError" in broken["message"]


def test_a_failed_trial_is_a_line_and_what_would_take_too_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = dataclasses.replace(jobs_of("E3", "demo")[0], arguments=("no trial",))
    endless = dataclasses.replace(broken, name="E3.1", seconds=1e6)
    monkeypatch.setattr(all_settings, "chosen_jobs", lambda names, shapes: [broken, endless])
    out = tmp_path / "records.jsonl"
    assert main(["--out", str(out)]) == 1
    (record,) = (json.loads(text)["record"] for text in out.read_text("utf-8").splitlines())
    assert record["failed"] == "exit status 1"
    assert record["trial"]["shapes"] == "demo"
    assert capsys.readouterr().out.rstrip().endswith("no time was left for: E3.1")


def test_all_of_it_fits_into_the_time_there_is() -> None:
    jobs = chosen_jobs(all_settings.NAMES, None)
    assert sum(job.seconds for job in jobs if job.setting != "E6") < 1300
    assert [job.name for job in jobs if job.script == "rival.py"] == ["E1.1", "E1.3"]
    assert [job.name for job in jobs if job.setting == "stress"] == [
        f"stress.{number}" for number in range(len(BUDGETS))
    ]
    names = {job.name for job in jobs}
    assert names > set(PREDICTED_TOO)
    assert len(PREDICTED_TOO) + len(jobs_of("E11")) == 12
    assert stress_trial("mistral-7b", 2048, 1, 200, 7.2).steps == 200
    large, small = (SETTINGS[name].trials[0] for name in ("E5", "E8"))
    assert expected_seconds("our_step.py", large) > expected_seconds("our_step.py", small)
    with pytest.raises(SystemExit, match="E12: is none of"):
        chosen_jobs(["E12"], None)


def test_host_memory_that_is_there_is_not_filled() -> None:
    assert fill_host_memory(0.001) > 0.001


def test_results_peaks_and_table_come_from_the_records(tmp_path: Path) -> None:
    e1 = line("E1.0", SETTINGS["E1"].trials[0])
    rival = line("E1.1", SETTINGS["E1"].beside[0], system="Hugging Face", reserved=21 * GIB)
    longest, exact = SETTINGS["E7"].trials[:2]
    first = written(
        tmp_path,
        line("E1.0", SETTINGS["E1"].trials[0], tokens_per_second=9000.0),
        line("E7.0", longest, failed="OutOfMemoryError", message="CUDA out of memory"),
    )
    second = written(
        tmp_path,
        e1,
        rival,
        line("E7.1", exact),
        line("E7.2", longest, row=263_168, on_card=23 * GIB),
        line("E11.0", SETTINGS["E1"].trials[0], predicted_seconds=2.0),
        line("E10.0", Trial(shapes="mistral-7b"), telemetry_share=0.001, error=0.0012,
             optimizer_share=0.024,
             seconds_per_step={"on": [1.0], "off": [1.0]}),
        line("stress.0", stress_trial("mistral-7b", 2048, 1, 200, 22.8), steps=200,
             documents=[1, 200], losses=[10.0, 11.0]),
    )  # fmt: skip
    texts = results(tmp_path, first, second)
    assert set(texts) == {
        f"{name}_h200_2026-11-24.md" for name in ("E1", "E7", "E10", "E11", "stress")
    }
    assert "hit: 11,500 tok/s is 4.5 % over 11,000" in texts["E1_h200_2026-11-24.md"]
    assert "by hand, mistral-7b" in texts["E1_h200_2026-11-24.md"]
    assert "hit: 131,072 tokens is 131,072" in texts["E7_h200_2026-11-24.md"]
    assert "263,168 tokens trained, too, and took 23.00 GiB" in texts["E7_h200_2026-11-24.md"]
    assert "OutOfMemoryError" in texts["E7_h200_2026-11-24.md"]
    assert "3 of 4 settings within" in texts["E11_h200_2026-11-24.md"]
    assert (
        "hit: telemetry and control 0.10 ± 0.12 %, optimizer 2.40 %"
        in texts["E10_h200_2026-11-24.md"]
    )
    assert "1 of 1 budgets kept" in texts["stress_h200_2026-11-24.md"]
    assert "200 steps of 1 × 2048 tokens" in texts["stress_h200_2026-11-24.md"]
    assert "| ✓ 11,500 tok/s at 16.00 GiB | 11,500 tok/s at 21.00 GiB, here |" in (
        tmp_path / "README.md"
    ).read_text("utf-8")
    golden = json.loads((tmp_path / "golden.json").read_text("utf-8"))
    labels = [each["trial"]["label"] for each in golden["peaks"]]
    assert [label.split()[0] for label in labels] == [
        "E1.0", "E7.1", "E7.2", "E10.0", "E11.0", "stress.0",
    ]  # fmt: skip
    assert golden["peaks"][0]["reserved"] == 16 * GIB
    assert golden["peaks"][0]["seconds"] == 1.5
    assert golden["shapes"] == json.loads(write_results.GOLDEN.read_text("utf-8"))["shapes"]
    assert golden["machine"] == "NVIDIA H200, torch 2.11.0, expandable_segments:True"


def test_results_of_a_setting_that_failed_say_so(tmp_path: Path) -> None:
    failed = {"failed": "not done after 90 s", "message": "step 1"}
    lines = [line(f"{name}.0", Trial(label=name), **failed)
             for name in ("E3", "E9", "E10", "E11", "stress")]  # fmt: skip
    texts = results(tmp_path, written(tmp_path, *lines))
    assert len(texts) == 5
    assert all("not done after 90 s" in text for text in texts.values())
    assert all("missed" in text for text in texts.values())


def test_of_trials_that_another_call_measured_the_call_is_named(tmp_path: Path) -> None:
    trials = SETTINGS["E1"].trials
    first, second = (line(f"E1.{number}", trial) for number, trial in enumerate(trials))
    second |= {"command": "python benchmarks/all.py --settings E1.1"}
    second["machine"] = first["machine"] | {"commit": "def5678, clean"}
    (text,) = results(tmp_path, written(tmp_path, first, second)).values()
    assert "* E1.1: `python benchmarks/all.py --settings E1.1`, commit def5678, clean\n" in text
    assert "E1.0:" not in text


def test_golden_peaks_of_other_trials_stay() -> None:
    known = json.loads(write_results.GOLDEN.read_text("utf-8")) | {"peaks": []}
    first, again, other = (
        line(name, SETTINGS[name[:2]].trials[0], reserved=reserved * GIB)
        for name, reserved in (("E1.0", 16), ("E1.0", 17), ("E2.0", 14))
    )
    once = json.loads(write_results.golden_text([first], known))
    both = json.loads(write_results.golden_text([other], once))
    assert [each["reserved"] for each in both["peaks"]] == [16 * GIB, 14 * GIB]
    anew = json.loads(write_results.golden_text([again], both))
    assert sorted(each["reserved"] for each in anew["peaks"]) == [14 * GIB, 17 * GIB]
    assert anew["shapes"] == known["shapes"]
