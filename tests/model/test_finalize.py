"""A published model is the checkpoint's, whole, and carries nothing of the training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.inference.tiny_model import add_checkpoint, write_tiny_model
from workbench.errors import RunError, WorkbenchError
from workbench.model import finalize as module
from workbench.model.families import read_dimensions
from workbench.model.finalize import difference_from_reference, finalize
from workbench.model.safetensors_reader import read_header, read_tensor
from workbench.model.streamed_logits import probe_ids, streamed_logits
from workbench.model.weights import INDEX_FILE, write_weights
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import hash_file, verify, write_manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def checkpoint(model: Path, tmp_path: Path) -> Path:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    with_state = tmp_path / "with_state"
    shutil.copytree(model, with_state)
    generation = json.loads((with_state / "generation_config.json").read_text())
    generation["eos_token_id"] = generation["eos_token_id"][:1]
    (with_state / "generation_config.json").write_text(json.dumps(generation))
    made = add_checkpoint(run, with_state, 7)
    (made / "training_state").mkdir()
    (made / "training_state" / "optimizer-00000.safetensors").write_bytes(b"statistics")
    files = {
        path.relative_to(made).as_posix(): hash_file(path)
        for path in made.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    write_manifest(made, files, 7, num_ranks=1)
    return made


def logits_of(folder: Path) -> torch.Tensor:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return reference(probe_ids(read_dimensions(folder))).logits


def test_a_published_model_has_the_checkpoints_logits_and_no_training_state(
    checkpoint: Path, tmp_path: Path
) -> None:
    stages: list[str] = []
    made = finalize(
        [checkpoint], tmp_path / "out", tell=lambda stage, done, total: stages.append(stage)
    )
    assert sorted(path.name for path in made.path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert torch.equal(logits_of(made.path), logits_of(checkpoint))
    assert made.difference == 0.0
    assert made.reference_difference is not None
    assert made.reference_difference < 1e-5
    assert verify(made.path).total_bytes == made.bytes
    assert (made.path / "model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()
    assert list(dict.fromkeys(stages))[:2] == ["copying", "logits"]
    assert AutoTokenizer.from_pretrained(made.path).encode("Samantha")


def test_every_token_that_ends_a_reply_is_in_the_generation_config(
    checkpoint: Path, tmp_path: Path
) -> None:
    before = json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"]
    made = finalize([checkpoint], tmp_path / "out")
    after = json.loads((made.path / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert before == ends[:1]
    assert after["eos_token_id"] == sorted(ends) == made.stop_ids
    assert after["pad_token_id"] == tokenizer.pad_token_id


def test_an_end_of_turn_that_is_no_token_is_told(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    template = (other / "chat_template.jinja").read_text().replace("<|im_end|>", "<end of turn>")
    (other / "chat_template.jinja").write_text(template)
    notices: list[str] = []
    finalize([other], tmp_path / "out", warn=lambda what, remedy: notices.append(what))
    assert len(notices) == 1
    assert "'<end of turn>', which is no single token" in notices[0]


def test_a_checkpoint_that_is_not_what_was_saved_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match=r"model\.safetensors has other content"):
        finalize([checkpoint], tmp_path / "out")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model\.safetensors is missing"):
        finalize([checkpoint], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_weights_that_give_no_numbers_are_refused(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    header = read_header(broken / "model.safetensors")
    weights = {name: read_tensor(stored) for name, stored in header.items()}
    weights["model.norm.weight"][0] = float("nan")
    write_weights(broken, weights)
    with pytest.raises(WorkbenchError):
        finalize([broken], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_logits_that_differ_leave_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for a decoder that computes something else than transformers."""
    monkeypatch.setattr(
        module, "reference_logits", lambda folder, ids: streamed_logits(folder, ids) * 1.01
    )
    with pytest.raises(WorkbenchError, match="differ from those of transformers") as raised:
        finalize([checkpoint], tmp_path / "out")
    assert raised.value.exit_status == 1
    assert not list(tmp_path.glob("out*"))


def test_logits_come_block_by_block_as_transformers_has_them(model: Path) -> None:
    told: list[tuple[int, int]] = []
    ours = streamed_logits(
        model, probe_ids(read_dimensions(model)), lambda done, total: told.append((done, total))
    )
    assert float((ours - logits_of(model)).norm() / ours.norm()) < 1e-5
    assert len(told) == 2 + 1 + 1 + 1
    assert told[-1][0] == told[-1][1]
    assert difference_from_reference(model) < 1e-5


def test_a_model_folder_can_be_published_too(model: Path, tmp_path: Path) -> None:
    made = finalize([model], tmp_path / "out")
    assert made.step is None
    assert torch.equal(logits_of(made.path), logits_of(model))


def test_a_model_too_large_for_the_reference_is_published_with_a_notice(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "num_fp32_bytes", lambda folder: 1 << 60)
    notices: list[str] = []
    made = finalize([checkpoint], tmp_path / "out", warn=lambda what, remedy: notices.append(what))
    assert made.reference_difference is None
    assert "not compared with transformers" in notices[0]


# ---- shards of several hosts ---------------------------------------------------------------------


@pytest.fixture
def hosts(model: Path, tmp_path: Path) -> list[Path]:
    """One step as two hosts hold it: each its own shards, and the common files."""
    whole = tmp_path / "whole"
    whole.mkdir()
    header = read_header(model / "model.safetensors")
    weights = {name: read_tensor(stored) for name, stored in header.items()}
    write_weights(whole, weights, max_shard_bytes=60_000)
    shards = sorted(whole.glob("*.safetensors"))
    assert len(shards) > 2
    files = {path.name: hash_file(path) for path in shards}
    folders = []
    for number, own in enumerate((shards[:1], shards[1:])):
        folder = tmp_path / f"host{number}" / "checkpoint-7"
        shutil.copytree(model, folder)
        (folder / "model.safetensors").unlink()
        for shard in own:
            shutil.copy(shard, folder)
        held = {path.name: hash_file(path) for path in folder.iterdir()}
        others = {name: file for name, file in files.items() if name not in held}
        write_manifest(folder, held, 7, num_ranks=2, elsewhere={f"host{1 - number}": others})
        folders.append(folder)
    return folders


def test_shards_that_hosts_keep_are_gathered(
    hosts: list[Path], model: Path, tmp_path: Path
) -> None:
    made = finalize(hosts, tmp_path / "out")
    assert torch.equal(logits_of(made.path), logits_of(model))
    index = json.loads((made.path / INDEX_FILE).read_text())
    assert set(index["weight_map"]) == set(read_header(model / "model.safetensors"))
    assert index["metadata"]["total_size"] == sum(
        stored.num_bytes for stored in read_header(model / "model.safetensors").values()
    )
    verify(made.path)


def test_a_host_whose_shards_are_not_there_is_named(hosts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"host host1 holds model-00002.*--shards"):
        finalize(hosts[:1], tmp_path / "out")


def test_hosts_with_other_common_files_or_steps_are_refused(
    hosts: list[Path], tmp_path: Path
) -> None:
    (hosts[1] / "config.json").write_text("{}")
    held = {
        path.name: hash_file(path) for path in hosts[1].iterdir() if path.name != "manifest.json"
    }
    write_manifest(hosts[1], held, 7, num_ranks=2)
    with pytest.raises(RunError, match=r"config\.json is not what it is"):
        finalize(hosts, tmp_path / "out")
    write_manifest(hosts[1], held, 8, num_ranks=2)
    with pytest.raises(RunError, match="step 8"):
        finalize(hosts, tmp_path / "out")


# ---- killed --------------------------------------------------------------------------------------


def test_a_publication_killed_at_any_point_leaves_nothing_that_looks_complete(
    checkpoint: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.model.killed_publications", checkpoint, tmp_path]
    result = subprocess.run(
        [*command, "16"], capture_output=True, text=True, timeout=150, check=True
    )
    seen = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(seen) == 16
    assert all(each["state"] in ("absent", "whole") for each in seen), seen
    assert sum(each["killed"] for each in seen) >= 6
    assert sum(each["partial"] for each in seen) >= 3
    made = finalize([checkpoint], tmp_path / "out")
    verify(made.path)
    assert not (tmp_path / "out.partial").exists()
