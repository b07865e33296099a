"""Weights that do not all fit: where they go, what is said of it, and that no reply changes."""

import asyncio
import builtins
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.inference.test_generate import GREEDY, PROMPT, text_of
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import RefusedError, RunError
from workbench.inference.generate import Engine
from workbench.inference.load import load_model, place


def test_the_device_is_filled_first_then_the_host_and_a_token_waits_for_all() -> None:
    rates = {"memory_rate": 500.0, "up_rate": 10.0, "file_rate": 1.0}
    shared = place(33, 10, 20, **rates)
    assert (shared.device_bytes, shared.host_bytes, shared.disk_bytes) == (10, 20, 3)
    assert 1 / shared.tokens_per_second == pytest.approx(10 / 500 + 20 / 10 + 3)
    whole = place(9, 10, 20, **rates)
    assert (whole.device_bytes, whole.host_bytes, whole.disk_bytes) == (9, 0, 0)


def test_what_is_expected_of_a_shared_out_model_is_said_in_words() -> None:
    # A 30B in bf16 on a 12 GB card, over 10 GB/s of copies that are not pinned.
    shared = place(60 * 10**9, 9 * 10**9, 64 * 10**9, memory_rate=800e9, up_rate=10e9)
    assert shared.words == (
        "9.00 GB of weights on the device, 51.00 GB in host memory: about 0.2 tokens/s expected"
    )


async def test_a_model_larger_than_its_memory_says_so_and_gives_the_same_replies(
    tiny_model: Path,
) -> None:
    said: list[str] = []
    tokenizer = load_tokenizer(tiny_model)
    whole = Engine(tiny_model, tokenizer, "cpu", "auto")
    # About half of its 150 kB.
    shared = Engine(
        tiny_model, tokenizer, "cpu", "auto", memory_gib=75e3 / 2**30, narrate=said.append
    )
    for engine in (whole, shared):
        await engine.start()
    weights = shared._model.hf_device_map
    assert "disk" in weights.values()
    assert len(said) == 1
    assert "on disk: about " in said[0]
    assert said[0].endswith(" tokens/s expected")
    replies = [
        await asyncio.gather(
            *(text_of(engine.submit([*PROMPT, *range(9, 9 + n)], GREEDY)) for n in range(3))
        )
        for engine in (whole, shared)
    ]
    assert replies[0] == replies[1]
    assert shared.device == "cpu"
    assert whole.close()
    assert shared.close()


def test_nothing_is_said_of_a_model_that_fits(tiny_model: Path) -> None:
    said: list[str] = []
    model, device = load_model(tiny_model, "cpu", "float32", narrate=said.append)
    assert said == []
    assert (device.type, model.device.type) == ("cpu", "cpu")


def test_without_accelerate_a_model_that_does_not_fit_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name)
    )
    with pytest.raises(RefusedError, match=r"pip install 'workbench\[offload\]'"):
        load_model(tiny_model, "cpu", "auto", memory_gib=0)


def test_remote_code_is_never_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "hostile", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("import builtins\nbuiltins.it_ran = True\n")
    with pytest.raises(RunError, match="cannot be loaded"):
        load_model(folder, "cpu", "auto")
    assert not hasattr(builtins, "it_ran")


def test_weights_keep_their_numbers_wherever_they_lie(tiny_model: Path) -> None:
    ids = torch.tensor([PROMPT])
    shared, _ = load_model(tiny_model, "cpu", "auto", memory_gib=75e3 / 2**30)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.inference_mode():
        assert torch.equal(shared(ids).logits, plain(ids).logits)
