"""The engine: transformers' own tokens, one reply at a time, cancelled within one token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.inference.tiny_model import write_tiny_model
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, RefusedError, RunError
from workbench.inference import generate
from workbench.inference.generate import Engine, Generation, GenerationError, Sampling

GREEDY = Sampling(max_tokens=40, temperature=0)
LONG = Sampling(max_tokens=900, temperature=0)
PROMPT = [2, 40, 50, 60, 3]


@asynccontextmanager
async def running(folder: Path, dtype: generate.DtypeName = "auto") -> AsyncIterator[Engine]:
    engine = Engine(folder, load_tokenizer(folder), "cpu", dtype)
    await engine.start()
    try:
        yield engine
    finally:
        assert engine.close()


async def text_of(generation: Generation) -> str:
    return "".join([piece.text async for piece in generation.pieces()])


async def test_the_likeliest_tokens_are_those_of_transformers(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None
    )
    expected = load_tokenizer(tiny_model).decode(ids[0, 5:].tolist(), skip_special_tokens=True)
    async with running(tiny_model) as engine:
        generation = engine.submit(PROMPT, GREEDY)
        assert await text_of(generation) == expected.rstrip("\ufffd")
        assert generation.num_tokens == 40
    assert len(set(ids[0, 5:].tolist())) > 5


async def test_a_seed_repeats_a_reply_and_no_seed_does_not(tiny_model: Path) -> None:
    seeded = replace(GREEDY, temperature=1.0, seed=11)
    async with running(tiny_model) as engine:
        replies = [
            await text_of(engine.submit(PROMPT, sampling))
            for sampling in (seeded, seeded, replace(seeded, seed=None), replace(seeded, seed=12))
        ]
    assert replies[0] == replies[1]
    assert len(set(replies)) == 3


@pytest.mark.parametrize(
    "change", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=["top_k", "top_p", "min_p"]
)
async def test_the_narrowest_choice_is_the_likeliest_token(
    tiny_model: Path, change: dict[str, float]
) -> None:
    async with running(tiny_model) as engine:
        likeliest = await text_of(engine.submit(PROMPT, GREEDY))
        free = replace(GREEDY, temperature=1.0, seed=5)
        assert await text_of(engine.submit(PROMPT, free)) != likeliest
        assert await text_of(engine.submit(PROMPT, replace(free, **change))) == likeliest


async def test_a_repetition_penalty_changes_what_repeats(tiny_model: Path) -> None:
    async with running(tiny_model) as engine:
        plain = await text_of(engine.submit(PROMPT, GREEDY))
        assert (
            await text_of(engine.submit(PROMPT, replace(GREEDY, repetition_penalty=5.0))) != plain
        )


async def test_a_cancelled_reply_stops_within_one_token(tiny_model: Path) -> None:
    async with running(tiny_model) as engine:
        generation = engine.submit(PROMPT, LONG)
        async for _ in generation.pieces():
            break
        generation.cancel()
        num_tokens = generation.num_tokens
        # Answered only when the thread has left the first.
        await text_of(engine.submit(PROMPT, GREEDY))
        assert 0 < generation.num_tokens <= num_tokens + 1
        assert [piece async for piece in generation.pieces() if piece.finish_reason] == []


async def test_a_reply_cancelled_while_it_waits_is_never_begun(tiny_model: Path) -> None:
    async with running(tiny_model) as engine:
        first, second = engine.submit(PROMPT, GREEDY), engine.submit(PROMPT, LONG)
        second.cancel()
        await text_of(first)
        await text_of(engine.submit(PROMPT, GREEDY))
        assert second.num_tokens == 0
        assert engine.num_tokens_made == 80


async def test_replies_are_made_one_after_the_other(tiny_model: Path) -> None:
    order: list[str] = []

    async def follow(name: str, generation: Generation) -> None:
        async for _ in generation.pieces():
            order.append(name)

    async with running(tiny_model) as engine:
        generations = [engine.submit(PROMPT, GREEDY) for _ in range(3)]
        await asyncio.gather(*map(follow, "abc", generations))
    assert order == sorted(order)
    assert set(order) == set("abc")


async def test_more_than_can_wait_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "MOST_WAITING", 1)
    async with running(tiny_model) as engine:
        running_now = engine.submit(PROMPT, LONG)
        async for _ in running_now.pieces():
            break
        waiting = engine.submit(PROMPT, GREEDY)
        with pytest.raises(RefusedError, match="waiting already"):
            engine.submit(PROMPT, GREEDY)
        running_now.cancel()
        await text_of(waiting)


async def test_an_ending_server_tells_those_who_wait(tiny_model: Path) -> None:
    async with running(tiny_model) as engine:
        generations = [engine.submit(PROMPT, LONG) for _ in range(2)]
        async for _ in generations[0].pieces():
            break
        engine.cancel_all()
        for generation in generations:
            with pytest.raises(GenerationError, match="it is ending"):
                await text_of(generation)
        with pytest.raises(GenerationError, match="it is ending"):
            engine.submit(PROMPT, GREEDY)


async def test_a_reply_that_fails_does_not_end_the_server(tiny_model: Path) -> None:
    async with running(tiny_model) as engine:
        with pytest.raises(GenerationError, match="the model failed"):
            await text_of(engine.submit([99_999], GREEDY))
        assert await text_of(engine.submit(PROMPT, GREEDY))


async def test_weights_are_loaded_in_the_precision_asked_for(tiny_model: Path) -> None:
    async with running(tiny_model, "bfloat16") as engine:
        assert engine.dtype == "bfloat16"
        assert engine.device == "cpu"


async def test_an_unknown_device_is_refused(tiny_model: Path) -> None:
    for name in ("cuda:99", "abacus"):
        engine = Engine(tiny_model, load_tokenizer(tiny_model), name, "auto")
        with pytest.raises(ConfigError, match="there is no device"):
            await engine.start()


async def test_damaged_weights_are_refused_with_their_folder(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not a safetensors file")
    engine = Engine(folder, load_tokenizer(folder), "cpu", "auto")
    with pytest.raises(RunError, match="damaged: cannot be loaded"):
        await engine.start()
