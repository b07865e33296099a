"""``workbench convert``, through the real worker."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.data.hub_server import COMMIT, serving
from tests.model.model_folders import change_json, transformers_logits, write_model_folder
from workbench.cli.main import main
from workbench.config.find import shipped_templates
from workbench.config.hub_id import model_name
from workbench.config.weight_files import INDEX_FILE, SINGLE_FILE
from workbench.model.families import read_dimensions
from workbench.model.weights import random_weights, write_weights

CONVERT = [sys.executable, "-m", "workbench", "convert"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("hub") / "source", num_bin_shards=2)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_all_of_it_at_once(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text('eos_token: "<|im_end|>"\nspecial_tokens: ["<|im_start|>"]\n')
    status, out, err = told(
        capsys, "convert", model, tmp_path / "made", "--dtype", "bfloat16", "--max-length", 64,
        "-t", "chatml", "--add-tokens", tokens, "--max-shard-gib", "2e-5",
    )  # fmt: skip
    assert status == 0, err
    assert out.startswith("converted, ")
    for words in (
        "weights float32 → bfloat16", ".bin → safetensors", "128 → 64 tokens",
        "eos_token </s> → <|im_end|>", "row 97 for <|im_end|>, begins as a copy of row 2",
        "row 98 for <|im_start|>, begins as mean",
        "logits    equal the source's", "the new dtype moves them by",
    ):  # fmt: skip
        assert words in out, words
    made = tmp_path / "made"
    assert len(list(made.glob("model-*.safetensors"))) > 2
    assert not list(made.glob("*.bin*"))
    expected = (shipped_templates() / "chatml.jinja").read_text()
    assert (made / "chat_template.jinja").read_text() == expected
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    assert {97, 98} <= set(ids)
    logits = transformers_logits(made, torch.tensor([ids]))
    assert logits.isfinite().all()


def test_a_dry_run_tells_the_same_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    arguments = (
        "convert",
        model,
        tmp_path / "made",
        "--dtype",
        "float16",
        "--add-tokens",
        "--json",
    )
    status, out, err = told(capsys, *arguments, "--dry-run")
    assert status == 0, err
    planned = json.loads(out)
    assert planned["is_dry_run"]
    assert list(tmp_path.iterdir()) == []
    status, out, err = told(capsys, *arguments)
    assert status == 0, err
    made = json.loads(out)
    assert planned["changes"] == made["changes"]
    assert "row 97 for [PAD], begins as zero" in made["changes"]
    assert (planned["vocabulary_size"], made["vocabulary_size"]) == (98, 98)
    assert made["difference"] == 0
    assert made["rounding"] > 0
    weights = load_file(tmp_path / "made" / SINGLE_FILE)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert (
        0
        <= sum(path.stat().st_size for path in (tmp_path / "made").iterdir()) - planned["bytes"]
        < 1 << 20
    )


@pytest.mark.parametrize("options", [["--reverse"], ["--model-type", "llama"], ["--model-type=x"]])
def test_what_needs_no_conversion_is_explained_in_one_line(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, options: list[str]
) -> None:
    status, out, err = told(capsys, "convert", model, tmp_path / "made", *options)
    assert (status, out) == (2, "")
    assert "nothing to convert back" in err
    assert "workbench finalize" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_converted_is_told_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    made, file = tmp_path / "made", tmp_path / "tokens.yaml"
    file.write_text("eos: x\n")
    for arguments, words in (
        ([tmp_path / "nowhere", made], "is not there"),
        (["nobody/nothing", made], "--download"),
        ([file, made], "is a file"),
        (["$NOT_SET_ANYWHERE/x", made], "NOT_SET_ANYWHERE is not set"),
        ([model, model / "below"], "only read"),
        ([model, model], "is there already"),
        ([model, made, "--add-tokens", file], "tokens.yaml:1 eos: no such key"),
        ([model, made, "-t", "chatmk"], "there is no template 'chatmk'"),
        ([model, made, "-t", tmp_path / "x.jinja"], "cannot be read"),
        ([model, made, "--max-length", "0"], "--max-length"),
        ([model, made, "--dtype", "int8"], "invalid choice"),
        ([model], "DST"),
    ):
        status, printed, err = told(capsys, "convert", *arguments)
        assert (status, printed) == (2, ""), arguments
        assert words in err, (arguments, err)
    assert not list(tmp_path.glob("made*"))


def test_home_and_variables_are_expanded(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    monkeypatch.setenv("OUT", str(tmp_path))
    status, out, err = told(capsys, "convert", "~/source", "$OUT/made", "--json")
    assert status == 0, err
    assert json.loads(out)["path"] == str(tmp_path / "made")


def test_a_command_that_is_interrupted_leaves_nothing(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workbench", "convert", model, tmp_path / "made"]
    process = subprocess.Popen([*command, "--max-shard-gib", "1e-6"], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (tmp_path / "made.partial").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    assert not list(tmp_path.glob("made*"))


def test_an_id_is_fetched_where_that_is_asked_for_and_found_from_then_on(
    model: Path, tmp_path: Path
) -> None:
    hub_folder = tmp_path / "hub" / "me" / "tiny"
    hub_folder.parent.mkdir(parents=True)
    write_model_folder(hub_folder)
    torch.save({}, hub_folder / "pytorch_model.bin")
    (hub_folder / "modeling_own.py").write_text("raise SystemExit")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}

    def convert(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CONVERT, "me/tiny", str(tmp_path / name), *options],
            env={**kept, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    with serving(tmp_path / "hub") as hub:
        without = convert("made")
        assert (without.returncode, hub.requests) == (2, [])
        assert "--download" in without.stderr
        fetched = convert("made", "--download")
        assert fetched.returncode == 0, fetched.stderr
        snapshot = tmp_path / "home" / "hub" / "models--me--tiny" / "snapshots" / COMMIT
        assert model_name(snapshot) == "me/tiny"
        names = {path.name for path in snapshot.iterdir()}
        assert {"config.json", "tokenizer.json", SINGLE_FILE} <= names
        assert not {"pytorch_model.bin", "modeling_own.py"} & names
        assert (snapshot / SINGLE_FILE).is_symlink(), "as the hub's own cache is made"
        asked = len(hub.requests)
        again = convert("again", "--json")
        assert again.returncode == 0, again.stderr
        assert len(hub.requests) == asked
    assert json.loads(again.stdout)["difference"] == 0
    first, second = (load_file(tmp_path / name / SINGLE_FILE) for name in ("made", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_id_that_is_nowhere_is_told(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    (tmp_path / "hub" / "gated" / "x").mkdir(parents=True)
    for name in ("config.json", SINGLE_FILE):
        (tmp_path / "hub" / "gated" / "x" / name).touch()
    with serving(tmp_path / "hub") as hub:
        for name, words in (("me/absent", "is not on the hub"), ("gated/x", "is gated")):
            ended = subprocess.run(
                [*CONVERT, name, str(tmp_path / "made"), "--download"],
                env={**kept, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url},
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert ended.returncode == 2
            assert f"model {name}: {words}" in ended.stderr
            assert "Traceback" not in ended.stderr


def test_a_mismatch_removes_the_destination_and_exits_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A bit changes on the disk between writing and comparing, as a disk that lies would do it."""
    source = write_model_folder(tmp_path / "source")
    change_json(source / "config.json", num_hidden_layers=24, hidden_size=256, head_dim=64)
    write_weights(source, random_weights(read_dimensions(source), 0, torch.float32))
    partial = tmp_path / "made.partial"

    def spoil() -> None:
        limit = time.monotonic() + 60
        while not (partial / INDEX_FILE).exists() and time.monotonic() < limit:
            time.sleep(0.0005)  # the index is written when all shards are
        with max(partial.glob("model-*.safetensors")).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))

    spoiling = threading.Thread(target=spoil)
    spoiling.start()
    status, out, err = told(capsys, "convert", source, tmp_path / "made", "--max-shard-gib", "0.01")
    spoiling.join()
    assert (status, out) == (1, "")
    assert "lm_head.weight is not what was to be written" in err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
