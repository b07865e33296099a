"""Serving on a GPU: rows together, weights in host memory, hanging up in time, and vLLM."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.inference.tiny_model import CONTEXT, write_tiny_model
from workbench.data.tokenizer import load_tokenizer
from workbench.inference.generate import Engine
from workbench.inference.reply import Generation, ReplyMaker
from workbench.inference.sampling import Sampling
from workbench.inference.vllm_engine import VllmEngine, is_installed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GREEDY = Sampling(max_tokens=40, temperature=0, num_top=0)
PROMPTS = [[2, 40 + n, *range(30, 30 + 9 * n), 3] for n in range(5)]


async def ids_of(generation: Generation) -> list[int]:
    return [entry.token_id async for piece in generation.pieces() for entry in piece.logprobs]


async def replies_of(engine: ReplyMaker) -> list[list[int]]:
    generations = engine.submit_all([(prompt, GREEDY) for prompt in PROMPTS])
    return await asyncio.gather(*map(ids_of, generations))


def expected_of(folder: Path, dtype: str = "float32") -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to("cuda")
    made = [
        model.generate(
            torch.tensor([prompt], device="cuda"),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    assert len({tuple(ids) for ids in made}) == len(PROMPTS)
    return made


def test_rows_together_get_the_tokens_of_transformers(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")

    async def ask() -> None:
        engine = Engine(folder, load_tokenizer(folder), "cuda", "float32")
        await engine.start()
        assert await replies_of(engine) == expected_of(folder)
        assert engine.close()

    asyncio.run(ask())


def test_a_model_larger_than_its_share_of_the_gpu_gives_the_same_tokens(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    said: list[str] = []

    async def ask() -> None:
        engine = Engine(
            folder,
            load_tokenizer(folder),
            "cuda",
            "float32",
            memory_gib=75e3 / 2**30,
            narrate=said.append,
        )
        await engine.start()
        assert "cpu" in engine._model.hf_device_map.values()
        assert "in host memory: about" in said[0]
        assert await replies_of(engine) == expected_of(folder)
        assert engine.close()

    asyncio.run(ask())


def test_hanging_up_frees_the_gpu_within_half_a_second(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")

    async def ask() -> None:
        engine = Engine(folder, load_tokenizer(folder), "cuda", "float32")
        await engine.start()
        long = replace(GREEDY, max_tokens=CONTEXT - 200)
        generations = engine.submit_all([(prompt, long) for prompt in PROMPTS])
        async for _ in generations[-1].pieces():
            break
        began = time.monotonic()
        for generation in generations:
            generation.cancel()
        while engine.is_busy:
            await asyncio.sleep(0)
        assert time.monotonic() - began < 0.5
        assert engine.close()

    asyncio.run(ask())


@pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
def test_vllm_answers_as_the_other_engine_does(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    # Its attention kernels want heads of an ordinary width.
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.head_dim, config.initializer_range = 256, 64, 0.2
    LlamaForCausalLM(config).save_pretrained(folder)
    expected = expected_of(folder)

    async def ask() -> None:
        engine = VllmEngine(
            folder, tokenizer, "cuda", "float32", context=CONTEXT, most_rows=8, memory_gib=8
        )
        await engine.start()
        assert await replies_of(engine) == expected
        stop = replace(GREEDY, stop_ids=frozenset({expected[0][5]}))
        (stopped,) = engine.submit_all([(PROMPTS[0], stop)])
        assert await ids_of(stopped) == expected[0][: expected[0].index(expected[0][5])]
        (long,) = engine.submit_all([(PROMPTS[0], replace(GREEDY, max_tokens=900))])
        async for _ in long.pieces():
            break
        long.cancel()
        async with asyncio.timeout(5):
            while engine.is_busy:
                await asyncio.sleep(0.01)
        assert long.num_tokens < 900
        assert engine.close()

    asyncio.run(ask())
