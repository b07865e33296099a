"""``workbench estimate``, and the check of memory before a start."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.short_folder import short_folder
from workbench.cli.estimate import bar
from workbench.cli.main import main
from workbench.config.find import shipped_configs
from workbench.config.known_models import KNOWN_MODELS
from workbench.config.load import parse_overrides, resolve
from workbench.config.memory_fit import Machine
from workbench.config.memory_parts import GIB
from workbench.config.rates import CARDS, MeasuredRates, card_typed
from workbench.jobs.fit import estimate_of_start, find_model, machine_here, usable_gpus
from workbench.jobs.preflight import Check, check_memory, preflight
from workbench.runs.create import create_run, plan_run
from workbench.runs.environment import Surroundings
from workbench.runs.rates_file import write_rates

DEMO_MODEL = shipped_configs() / "demo" / "model"

MISTRAL_7B = {
    "model_type": "mistral",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "sliding_window": 4096,
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with short_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield work


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a nvidia-smi on the path that tells of one card with 20 GiB free."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, NVIDIA GeForce RTX 4090, 24564, 20480, 580.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["estimate", *arguments])
    told = capsys.readouterr()
    assert told.err == "" or status == 2, told.err
    return status, told.out + told.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    status, told = said(capsys, *arguments, "--json")
    content = json.loads(told)
    assert isinstance(content, dict)
    return status, content


def test_a_known_name_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = said(capsys, "-t", "1gpu_llama_7b/packed", "-M", "mistral-7b")
    assert status == 0
    for words in (
        "mistral, 7,241.7 M parameters", "weights, 32/32 blocks resident", "13.49",
        "block inputs", "gradient sums", "factored optimizer state", "where a block computes",
        "CUDA context", "of 22.80 GiB  FITS", "host memory", "per checkpoint", "tokens/s",
        "workbench data prepare -t 1gpu_llama_7b/packed", "basis", "assumed",
    ):  # fmt: skip
        assert words in told, words


def test_a_config_json_by_itself_is_enough(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MISTRAL_7B))
    (folder / "theirs.json").write_text(json.dumps(MISTRAL_7B))
    totals, names = set(), []
    for model in (folder, folder / "config.json", folder / "theirs.json", "mistral-7b"):
        status, found = as_json(capsys, "-t", "1gpu_llama_7b/packed", "-M", str(model))
        assert status == 0
        totals.add(found["total_bytes"])
        names.append(found["model"]["name"])  # type: ignore[index]
    assert len(totals) == 1
    assert names == ["mine", "mine", "theirs", "mistral-7b"]


def test_what_would_not_fit_exits_4_with_a_config_that_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = ["-t", "1gpu_llama_7b/packed", "-M", "mistral-7b", "--gpu-gib", "12"]
    status, told = said(capsys, *typed)
    assert status == 4
    assert "WON'T FIT  over by" in told
    lines = [line.strip() for line in told.splitlines()]
    ready = [line for line in lines if line.startswith("workbench train")]
    assert len(ready) == 1
    assert [line for line in lines if line.startswith("workbench new")]
    again = shlex.split(ready[0])[2:]
    assert "memory.budget_gib=12.0" in again
    assert "training needs the model's folder: --model DIR" in told
    assert said(capsys, *again)[0] == 0


def test_the_smallest_budget_that_is_told_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["-t", "1gpu_llama_7b/8gb", "-M", "mistral-7b", "--host-gib", "32", "--gpu-gib"]
    status, told = said(capsys, *typed, "2")
    assert status == 4
    (line,) = [line for line in told.splitlines() if line.startswith("least ")]
    assert line.endswith("GiB, the smallest budget for these settings")
    least = float(line.split()[1])
    assert said(capsys, *typed, f"{least:.2f}")[0] == 0
    assert said(capsys, *typed, f"{least - 0.01:.2f}")[0] == 4
    (line,) = [line for line in said(capsys, *typed, "7.2")[1].splitlines() if "are enough" in line]
    assert float(line.split()[1]) == least


def test_what_is_lacking_is_never_told_as_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["-t", "1gpu_llama_7b/8gb", "-M", "mistral-7b", "--host-gib", "32", "--gpu-gib"]
    least = as_json(capsys, *typed, "2")[1]["least_budget_bytes"]
    assert isinstance(least, int)
    status, told = said(capsys, *typed, repr((least - (1 << 20)) / GIB))
    assert (status, "WON'T FIT  over by 0.01 GiB" in told) == (4, True)


def test_preparing_is_named_with_what_was_typed_and_a_folder_to_tokenize_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changed = "data.max_length=1024"
    _, told = said(capsys, "-t", "1gpu_llama_7b/packed", "-M", "mistral-7b", changed)
    ready = f"workbench data prepare -t 1gpu_llama_7b/packed {changed} --model DIR"
    assert f"prepare the data first: {ready}\n" in told
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(MISTRAL_7B))
    _, told = said(capsys, "-t", "1gpu_llama_7b/packed", "-M", str(tmp_path / "mine"), changed)
    assert f"packed --model {tmp_path / 'mine'} {changed}\n" in told


def test_the_child_config_that_is_proposed_can_be_made_and_fits(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    status, told = said(
        capsys, "-t", "1gpu_llama_7b/packed", "-M", "mistral-7b", "memory.budget_gib=7.2"
    )
    assert status == 4
    (ready, *_) = [line.strip() for line in told.splitlines() if "workbench new" in line]
    assert main(shlex.split(ready)[1:]) == 0
    capsys.readouterr()
    assert (workplace / "configs" / "packed_fits.yaml").is_file()
    status, told = said(capsys, "-t", "packed_fits", "-M", "mistral-7b")
    assert (status, "FITS" in told) == (0, True)


def test_json_says_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = as_json(
        capsys, "-t", "1gpu_llama_7b/packed", "-M", "llama-2-7b", "--gpu-gib", "10",
        "--tflops", "150", "--link-gbps", "25",
    )  # fmt: skip
    assert (status, found["verdict"], found["budget_source"]) == (4, "will_not_fit", "--gpu-gib")
    assert found["budget_bytes"] == 10 * GIB
    rank = found["ranks"][0]  # type: ignore[index]
    assert sum(part["bytes"] for part in rank["parts"]) == found["total_bytes"]
    time, plan = found["time"], found["plan"]
    assert isinstance(time, dict)
    assert isinstance(plan, dict)
    assert "150 TFLOP/s as stated" in time["rates"]
    parts = {name: seconds for name, seconds in time["predicted_parts"].items()
             if name not in ("up", "down")}  # fmt: skip
    assert sum(parts.values()) == pytest.approx(time["seconds_per_step"])
    assert plan["microbatches"] == found["microbatches"]
    assert found["least_budget_bytes"] <= found["total_bytes"]  # type: ignore[operator]
    assert found["levers"]
    assert found["proposals"]


def test_a_pipeline_shows_one_row_per_rank(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = said(capsys, "-t", "pipeline_llama_30b/1f1b_4gpu", "-M", "llama-30b")
    assert status == 0
    rows = [line.split() for line in told.splitlines() if line.endswith(("FITS", "TIGHT"))]
    assert [row[0] for row in rows[:4]] == ["0", "1", "2", "3"]
    assert "which decides" in told
    assert "the sums must go to pinned RAM" in told


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-t", "1gpu_llama_7b/packed"], "mistral-7b"),
        (["-t", "1gpu_llama_7b/packed", "-M", "mistral-8b"], "did you mean mistral-7b"),
        (["-t", "1gpu_llama_7b/packed", "-M", "mistral-7b", "--gpu-gib", "0"], "not above 0"),
        (["-t", "1gpu_llama_7b/packed", "-M", "mistral-7b", "--gpu-gib", "nan"], "not above 0"),
        (["-t", "demo", "--gpu-gib", "1e300"], "at most 100,000"),
        (["-t", "demo", "--tflops", "fast"], "--tflops: 'fast' is not a number"),
        (["-t", "1gpu_llama_7b/packd", "-M", "mistral-7b"], "did you mean"),
        (["-M", "mistral-7b"], "no config is named"),
        (["-t", "1gpu_llama_7b/packed", "-M", "/dev/null"], "is not there"),
    ],
)
def test_mistakes_exit_2_and_name_what_there_is(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    status, told = said(capsys, *arguments)
    assert status == 2
    assert named in told


@pytest.mark.parametrize("model", ["qwen2.5-0.5b", "qwen3-0.6b"])
def test_families_with_biases_and_norms_of_heads_are_offered_to_start(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = said(capsys, "-t", "1gpu_llama_7b/packed", "-M", model, "--gpu-gib", "16")
    assert status == 0
    assert "cannot train" not in told
    larger = "qwen2.5-7b" if "qwen2" in model else "qwen3-8b"
    status, told = said(capsys, "-t", "1gpu_llama_7b/packed", "-M", larger, "--gpu-gib", "12")
    assert status == 4
    assert "workbench train" in told


def test_what_keeps_a_config_from_starting_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    _, told = said(
        capsys, "-t", "1gpu_llama_7b/8gb", "-M", "tinyllama-1.1b", "data.max_length=4096"
    )
    assert "data.max_length: the model takes 2048 positions, not 4096; set" in told
    assert "not in this version" not in told, "what streams is built"
    _, told = said(capsys, "-t", "pipeline_llama_7b/zb_6gpu", "-M", "mistral-7b")
    assert "the pipeline engine is not in this version yet" in told


def test_what_is_assumed_of_a_machine_without_a_gpu_is_noted(
    capsys: pytest.CaptureFixture[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(workplace))
    assumed = "no GPU here and no budget: the CPU is taken to train"
    assert assumed in said(capsys, "-t", "demo")[1]
    assert assumed not in said(capsys, "-t", "demo", "--gpu-gib", "8")[1]
    _, told = said(capsys, "-t", "demo", "training.device=cpu", "--gpu-gib", "8")
    assert "the budget of a GPU does not count" in told


@pytest.mark.parametrize("gib", ["1e-9", "100000"])
def test_budgets_of_any_size_are_judged(capsys: pytest.CaptureFixture[str], gib: str) -> None:
    status, told = said(capsys, "-t", "demo", "--gpu-gib", gib)
    assert (status, "WON'T FIT" in told) == ((4, True) if gib == "1e-9" else (0, False))
    # Levers of a small model are not nothing in GiB.
    assert "-0.00" not in told


def test_an_estimate_loads_neither_torch_nor_numpy(tmp_path: Path) -> None:
    arguments = ["estimate", "-t", "1gpu_llama_70b/24gb", "-M", "llama-2-70b"]
    program = (
        "import json, sys\n"
        "from workbench.cli.main import main\n"
        f"status = main({arguments!r})\n"
        "heavy = [name for name in ('torch', 'numpy', 'transformers', 'tokenizers', 'datasets',"
        " 'pyarrow', 'textual', 'httpx') if name in sys.modules]\n"
        "print(json.dumps([status, heavy]), file=sys.stderr)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "68,976.6 M parameters" in process.stdout
    assert json.loads(process.stderr) == [0, []]


def test_the_host_memory_of_the_machine_that_is_meant_is_stated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With less of it the plan keeps less there; with too little nothing is promised."""
    needed = []
    for gib in ("64", "32", "12"):
        status, told = said(
            capsys, "-t", "1gpu_llama_7b/8gb", "-M", "mistral-7b", "--host-gib", gib, "--json"
        )
        found = json.loads(told)
        assert (status, found["verdict"]) == ((4, "will_not_fit") if gib == "12" else (0, "fits"))
        needed.append(found["host"]["needed_bytes"])
    assert 32 << 30 < needed[0] <= 64 << 30
    assert 13 << 30 < needed[1] <= 32 << 30
    _, told = said(capsys, "-t", "1gpu_llama_7b/8gb", "-M", "mistral-7b", "--host-gib", "64")
    assert "of 64.00 GiB (--host-gib)" in told


@pytest.mark.parametrize("model", KNOWN_MODELS)
def test_any_known_model_is_estimated(capsys: pytest.CaptureFixture[str], model: str) -> None:
    status, told = said(capsys, "-t", "1gpu_llama_7b/8gb", "-M", model)
    assert status in (0, 4)
    assert "TOTAL" in told


def test_a_card_that_is_here_gives_its_rates_and_its_free_memory(
    capsys: pytest.CaptureFixture[str], card: Path
) -> None:
    assert card.exists()
    status, told = said(capsys, "-t", "base/training", "-M", "smollm2-135m")
    assert status == 0
    assert "of 20.00 GiB" in told
    assert "free on the GPU" in told
    assert "RTX 4090: " in told


def test_what_a_card_reached_before_comes_before_the_table(
    capsys: pytest.CaptureFixture[str],
    card: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert card.exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = MeasuredRates(products=140e12, memory=9e11, up=24e9, down=23e9, both=20e9)
    write_rates("NVIDIA GeForce RTX 4090", "2.13.0", seen)
    _, told = said(capsys, "-t", "base/training", "-M", "smollm2-135m")
    assert "measured here: 140 TFLOP/s, link 24 up, 23 down, 20 both GB/s" in told


@pytest.mark.parametrize(
    ("share", "drawn"), [(0.0, ""), (1e-6, "▏"), (0.5, "██"), (0.53, "██▏"), (1.0, "████")]
)
def test_bars_are_drawn_in_eighths(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


# ---- a run of the same settings ----------------------------------------------------------------


def test_the_newest_run_with_the_same_settings_is_the_basis(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    resolved = resolve("demo", overrides=parse_overrides(["training.device=cpu"]))
    for number, host_gib in ((1, 3), (2, 2)):
        run = create_run(
            resolved,
            plan_run(resolved, workplace / "output"),
            template="",
            surroundings=Surroundings({}, b""),
        )
        assert run.name == f"demo-{number}"
        run.plan.write_text(
            json.dumps({"predicted": {}, "measured": {"peak_host_bytes": host_gib * GIB}})
        )
    status, told = said(capsys, "-t", "demo", "training.device=cpu")
    assert status == 0
    assert "measured run demo-2: 2.00 GiB, predicted 0." in told
    assert "TOTAL, measured" in told
    status, told = said(capsys, "-t", "demo", "training.device=cpu", "batch.train=4")
    assert "measured" not in told


def test_prepared_data_gives_the_steps_of_an_epoch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # other tests prepare the same data
    typed = ["-t", "demo", "data.max_length=200"]
    assert "workbench data prepare -t demo" in said(capsys, *typed)[1]
    assert main(["data", "prepare", *typed]) == 0
    capsys.readouterr()
    _, found = as_json(capsys, *typed)
    time = found["time"]
    assert isinstance(time, dict)
    assert time["steps_per_epoch"] >= 1
    assert "steps, " in said(capsys, *typed)[1]


# ---- before a start ------------------------------------------------------------------------------


def memory_checks(*texts: str, devices: str | None = None) -> list[Check]:
    resolved = resolve("demo", overrides=parse_overrides(texts))
    found = list(preflight(resolved, devices=devices))
    return [each for each in found if isinstance(each, Check) and each.name == "memory"]


def test_data_that_cannot_be_prepared_are_told_and_the_bytes_are_given_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "absent.json"
    assert main(["estimate", "-t", "demo", f"data.sources.demo.path={path}"]) == 0
    said = capsys.readouterr()
    assert said.err == f"! data: {path}: there is no such file or folder; check data.sources\n"
    assert "prepare the data first" in said.out
    assert "FITS" in said.out


def test_preflight_says_that_a_small_run_fits_the_host() -> None:
    (check,) = memory_checks("training.device=cpu")
    assert check.state == "ok"
    assert check.message.startswith("host memory 0.")
    assert "FITS" in check.message


def test_preflight_refuses_what_does_not_fit_the_budget(card: Path) -> None:
    assert card.exists()
    (check,) = memory_checks("memory.budget_gib=0.5")
    assert (check.state, check.exit_status) == ("error", 4)
    assert "WON'T FIT" in check.message
    assert "workbench estimate -t demo memory.budget_gib=0.5 shows more" in check.remedy
    (told,) = re.findall(r"the smallest budget for these settings is ([\d.]+) GiB", check.message)
    assert f"set memory.budget_gib to {told} or more" in check.remedy
    (check,) = memory_checks(f"memory.budget_gib={told}")
    assert check.state == "warning", "tight, and enough"


def test_preflight_says_that_a_budget_does_not_count_where_the_cpu_trains() -> None:
    (check,) = memory_checks("memory.budget_gib=0.5", "training.device=cpu")
    assert check.state == "ok"
    assert "memory.budget_gib: 0.5, the budget of a GPU, does not count" in check.message


def test_preflight_refuses_what_does_not_fit_the_free_memory(card: Path) -> None:
    card.write_text("#!/bin/sh\necho '0, NVIDIA GeForce RTX 4090, 24564, 512, 580.1'\n")
    (check,) = memory_checks("memory.budget_gib=22.8")
    assert (check.state, check.exit_status) == ("error", 4)
    assert "512.0 MiB free" in check.message


def test_preflight_names_what_host_memory_does_not_hold_and_what_takes_less_of_it() -> None:
    resolved = resolve(
        "1gpu_llama_30b/24gb",
        overrides=parse_overrides(["optimizer.rounding=exact", "data.max_length=2048"]),
    )
    here = Machine(
        gpu_name="NVIDIA GeForce RTX 4090", gpu_free_bytes=23 << 30, host_bytes=100 << 30
    )
    (check,) = check_memory(resolved, KNOWN_MODELS["llama-30b"], None, machine=here)
    assert (check.state, check.exit_status) == ("error", 4)
    assert "may take 95.0 GiB of the 100.0 GiB that can be had" in check.message
    # Block inputs stay on the GPU, which has room for them.
    for words in ("60.59 streamed weights", "60.59 low bits"):
        assert words in check.message, words
    assert check.remedy.startswith(
        "end what else takes host memory, or set optimizer.rounding=stochastic, with which it fits"
    )


TWO_CARDS = """#!/bin/sh
echo '0, NVIDIA H200, 143771, 300, 580.1'
echo '1, NVIDIA GeForce RTX 4090, 24564, 20480, 580.1'
"""


def test_preflight_looks_at_the_gpu_that_is_named(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.write_text(TWO_CARDS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # Rank 0 takes the first GPU, however full it is.
    (check,) = memory_checks("memory.budget_gib=22.8")
    assert (check.state, check.exit_status) == ("error", 4)
    assert "300.0 MiB free" in check.message
    (check,) = memory_checks("memory.budget_gib=22.8", devices="1")
    assert check.state == "ok"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    (check,) = memory_checks("memory.budget_gib=22.8")
    assert check.state == "ok"


def test_another_card_than_the_one_that_is_here_can_be_asked_about(
    card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("-t", "1gpu_llama_7b/8gb", "-M", "mistral-7b", "--gpu-gib", "7.2")
    _, here = said(capsys, *asked)
    _, other = said(capsys, *asked, "--gpu", "rtx 4060")
    assert "RTX 4090: 72% of 165 TFLOP/s" in here
    assert "RTX 4060: 72% of 30 TFLOP/s, link 12 GB/s" in other
    status, told = said(capsys, *asked, "--gpu", "voodoo")
    assert status == 2
    assert "'voodoo' is not in the table: --known lists the cards" in told


@pytest.mark.parametrize(
    ("typed", "card_name"),
    [("3090", "RTX 3090"), ("4060ti", "RTX 4060 Ti"), ("rtx-4060-ti", "RTX 4060 Ti"),
     ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("a6000", "RTX A6000"), ("h200", "H200")],
)  # fmt: skip
def test_a_card_is_found_as_people_type_it(typed: str, card_name: str) -> None:
    assert card_typed(typed) == card_name


def test_near_names_of_a_card_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = said(capsys, "-t", "demo", "--gpu", "3090x")
    assert status == 2
    assert "did you mean RTX 3090?" in told
    assert card_typed("30") is None
    assert card_typed("RTX 4090 Laptop GPU") is None


def test_what_is_known_by_name_is_listed_without_a_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["estimate", "--known"]) == 0
    told = capsys.readouterr().out
    first_words = {line[2:].split("  ")[0] for line in told.splitlines() if line.startswith("  ")}
    assert set(CARDS) | set(KNOWN_MODELS) <= first_words


def test_a_named_card_has_no_more_memory_than_it_is_sold_with(
    card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = ("-t", "1gpu_llama_7b/packed", "-M", "mistral-7b", "--host-gib", "64")
    status, told = said(capsys, *packed, "--gpu", "RTX 4060")
    assert (status, "of 7.60 GiB  WON'T FIT" in told) == (4, True)
    assert "95% of the 8 GiB that RTX 4060 has at most, less than memory.budget_gib (22.8)" in told
    assert told.count("memory.budget_gib=7.6\n") == 2, "a config for that card, to run and to keep"
    # Of the card that is here 20 GiB are free: they are not those of another.
    status, told = said(capsys, *packed, "--gpu", "RTX 4090")
    assert (status, "of 22.80 GiB  FITS" in told) == (0, True)
    # Who states a budget knows the card.
    assert "of 15.50 GiB" in said(capsys, *packed, "--gpu", "A100", "--gpu-gib", "15.5")[1]
    status, told = said(capsys, "-t", "demo", "--gpu", "H200")
    assert (status, "of 133.00 GiB  FITS" in told) == (0, True)


def test_where_host_memory_is_short_the_levers_are_those_of_host_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exact = ("optimizer.rounding=exact", "data.max_length=2048")
    status, told = said(
        capsys, "-t", "1gpu_llama_30b/24gb", "-M", "llama-30b", "--host-gib", "100", *exact
    )
    assert status == 4
    (short,) = re.findall(r"host memory is short by ([\d.]+) GiB: a run may take 95.00 of", told)
    (needed,) = re.findall(r"host memory  ([\d.]+) GiB of 100.00 GiB", told)
    assert float(short) == pytest.approx(float(needed) - 95, abs=0.02)
    _, _, ways = told.partition("each of these alone makes it fit, cheapest first:\n")
    alone = ways.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in alone] == ["optimizer.rounding=stochastic"]
    assert "levers, cheapest first" not in told


def test_what_cannot_help_is_not_listed_and_hardware_that_would_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("-t", "1gpu_llama_70b/24gb", "-M", "llama-2-70b", "--gpu", "3090")
    status, told = said(capsys, *asked, "--host-gib", "120")
    assert status == 4
    assert "no single change makes it fit\nno changes of the config make it fit\n" in told
    (host, gpu) = re.findall(
        r"what would hold it: (\d+) GiB of host memory, or a GPU with (\d+) GiB free", told
    )[0]
    assert said(capsys, *asked, "--host-gib", host)[0] == 0
    assert said(capsys, *asked, "--host-gib", str(int(host) - 1))[0] == 4
    larger = ("--host-gib", "120", "memory.resident_fraction=auto", "--gpu-gib")
    assert said(capsys, *asked, *larger, gpu)[0] == 0
    assert said(capsys, *asked, *larger, str(int(gpu) - 1))[0] == 4


def test_the_fewest_changes_that_fit_together_are_proposed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("-t", "1gpu_llama_30b/12gb", "-M", "llama-30b", "--host-gib", "64", "--gpu", "3060")
    asked += ("data.max_length=2048",)
    status, told = said(capsys, *asked)
    assert status == 4
    assert "no single change makes it fit" in told
    (line,) = [line for line in told.splitlines() if line.startswith("  workbench train ")]
    changes = line.partition(" --model llama-30b ")[2].split()
    needed = [each for each in changes if not each.startswith("memory.budget_gib=")]
    assert len(needed) >= 2
    assert said(capsys, *asked, *needed)[0] == 0
    for left_out in needed:
        assert said(capsys, *asked, *(each for each in needed if each != left_out))[0] == 4


def test_a_gpu_that_is_not_here_is_a_mistake(card: Path) -> None:
    card.write_text(TWO_CARDS)
    found = list(preflight(resolve("demo"), devices="5"))
    (error,) = [each for each in found if isinstance(each, Check) and each.state == "error"]
    assert (error.name, error.exit_status) == ("device", 2)
    assert str(error) == "-d/--devices: GPU 5 is not here; name one of 0, 1, or leave it out"


def test_gpus_are_those_that_a_rank_would_see(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card.write_text(TWO_CARDS)

    def seen(devices: str | None) -> list[object]:
        return [gpu["index"] for gpu in usable_gpus(devices)]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert seen(None) == [0, 1]
    assert seen("cuda:1,0") == [1, 0]
    for variable, expected in (
        ("1", [1]),
        ("", []),
        ("-1", []),
        ("1,7,0", [1]),
        ("GPU-4f", [0, 1]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert seen(None) == expected
        assert seen("0") == [0]
    assert machine_here("1,0", ranks=2).gpu_free_bytes == 300 << 20
    assert machine_here("1,0").gpu_name == "NVIDIA GeForce RTX 4090"


# Nothing is left to the planner, which would make room.
STATED = (
    "memory.resident_fraction=1",
    "memory.block_inputs=gpu",
    "memory.recompute=none",
    "batch.microbatches=1",
)


def total_gib(*texts: str) -> float:
    resolved = resolve("demo", overrides=parse_overrides([*texts, "memory.budget_gib=20"]))
    _, facts = find_model(resolved)
    machine = machine_here()
    return estimate_of_start(resolved, facts, Path("output"), machine=machine).total / GIB


def test_preflight_warns_when_it_is_tight_and_names_a_lever(card: Path) -> None:
    assert card.exists()
    texts = [*STATED, "model.dtype=float32"]
    total = total_gib(*texts)
    (check,) = memory_checks(*texts, f"memory.budget_gib={1.005 * total}")
    assert check.state == "warning"
    assert "TIGHT" in check.message
    assert "takes" in check.remedy
    assert "MiB off" in check.remedy
    (check,) = memory_checks(*texts, f"memory.budget_gib={0.93 * total}")
    assert (check.state, check.exit_status) == ("error", 4)
    changed = re.findall(r"[a-z_]+\.[a-z_]+=\S+", check.remedy.partition(", with which it fits")[0])
    assert changed, "a way that makes it fit is named"
    (check,) = memory_checks(*texts, f"memory.budget_gib={0.93 * total}", *changed)
    assert check.state != "error", "and it does"


def test_rows_that_may_be_shorter_are_judged_when_the_data_is_known(card: Path) -> None:
    assert card.exists()
    texts = [
        *STATED, "data.packing=none", "data.pad_to=longest", "batch.train=64", "data.max_length=256"
    ]  # fmt: skip
    # Made to lie between what rows of 256 tokens take and what the longest conversation takes.
    checks = memory_checks(*texts, f"memory.budget_gib={0.9 * total_gib(*texts)}")
    assert checks[0].state == "warning"
    assert "if a row is 256 tokens long" in checks[0].message
    assert checks[-1].state in ("ok", "warning")
    assert len(checks) == 2


def test_a_dry_run_is_held_against_the_budget_of_the_host_it_is_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = ["train", "-t", "demo", "--dry-run", "memory.budget_gib=8"]
    assert main(typed) == 0
    told = capsys.readouterr()
    assert "of 8.00 GiB  FITS" in told.err
    assert "where a block computes" in told.err
    assert "TOTAL" in told.err
    assert "torch.distributed.run" in told.out


def test_a_family_of_another_skeleton_is_an_error_before_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "gemma"
    folder.mkdir()
    for file in DEMO_MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    stated = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(stated | {"model_type": "gemma2"}))
    resolved = resolve("demo", overrides=parse_overrides([f"model.path={folder}"]))
    errors = [
        each for each in preflight(resolved) if isinstance(each, Check) and each.state == "error"
    ]
    (error,) = errors
    assert error.name == "model"
    assert "gemma2" in error.message
    resolved = resolve("demo", overrides=parse_overrides([f"model.path={folder}/config.json"]))
    assert any(each.name == "model" and each.state == "error" for each in _checks(resolved))


def _checks(resolved: object) -> list[Check]:
    return [each for each in preflight(resolved) if isinstance(each, Check)]  # type: ignore[arg-type]
