"""Serving on a GPU: the tokens of transformers there, both seeds and cancelling as on the CPU."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.inference.tiny_model import write_tiny_model
from workbench.data.tokenizer import load_tokenizer
from workbench.inference.generate import Engine
from workbench.inference.reply import Generation, GenerationError
from workbench.inference.sampling import Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GREEDY = Sampling(max_tokens=40, temperature=0)
PROMPT = [2, 40, 50, 60, 3]


async def text_of(generation: Generation) -> str:
    return "".join([piece.text async for piece in generation.pieces()])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_gives_the_tokens_of_transformers_there(dtype: str, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to("cuda:0")
    ids = model.generate(
        torch.tensor([PROMPT], device="cuda:0"),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=None,
    )
    tokenizer = load_tokenizer(folder)
    expected = tokenizer.decode(ids[0, 5:].tolist(), skip_special_tokens=True)

    async def ask() -> None:
        engine = Engine(folder, tokenizer, "auto", dtype)  # type: ignore[arg-type]
        await engine.start()
        assert (engine.device, engine.dtype) == ("cuda:0", dtype)
        assert await text_of(engine.submit(PROMPT, GREEDY)) == expected.rstrip("\ufffd")
        seeded = replace(GREEDY, temperature=1.0, top_p=0.9, top_k=40, min_p=0.01, seed=7)
        twice = [await text_of(engine.submit(PROMPT, seeded)) for _ in range(2)]
        assert twice[0] == twice[1]
        long = engine.submit(PROMPT, replace(GREEDY, max_tokens=900))
        async for _ in long.pieces():
            break
        long.cancel()
        num_tokens = long.num_tokens
        await text_of(engine.submit(PROMPT, GREEDY))
        assert long.num_tokens <= num_tokens + 1
        assert engine.close()

    asyncio.run(ask())


def test_a_conversation_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")

    async def ask() -> None:
        engine = Engine(folder, load_tokenizer(folder), "cuda", "auto")
        await engine.start()
        free_bytes, _ = torch.cuda.mem_get_info()
        hoard = torch.empty(max(free_bytes - (64 << 20), 0), dtype=torch.uint8, device="cuda")
        with pytest.raises(GenerationError, match="too little memory"):
            await text_of(engine.submit(PROMPT * 10_000, GREEDY))
        del hoard
        torch.cuda.empty_cache()
        assert await text_of(engine.submit(PROMPT, GREEDY))
        assert engine.close()

    asyncio.run(ask())
