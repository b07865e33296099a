"""The engine: transformers' own tokens, replies made together, each cancelled within one token."""

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
from workbench.inference import generate, load
from workbench.inference.generate import Engine
from workbench.inference.reply import Generation, GenerationError
from workbench.inference.sampling import Sampling

GREEDY = Sampling(max_tokens=40, temperature=0)
LONG = Sampling(max_tokens=900, temperature=0)
PROMPT = [2, 40, 50, 60, 3]


@asynccontextmanager
async def running(folder: Path, dtype: load.DtypeName = "auto") -> AsyncIterator[Engine]:
    engine = Engine(folder, load_tokenizer(folder), "cpu", dtype, most_rows=generate.MOST_ROWS)
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
        first = [engine.submit(PROMPT, GREEDY) for _ in range(generate.MOST_ROWS)]
        second = engine.submit(PROMPT, LONG)
        second.cancel()
        await asyncio.gather(*map(text_of, first))
        await text_of(engine.submit(PROMPT, GREEDY))
        assert second.num_tokens == 0
        assert engine.num_tokens_made == 40 * (generate.MOST_ROWS + 1)


async def ids_alone(folder: Path, prompt: list[int], num_tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None
    )
    return [int(number) for number in ids[0, len(prompt) :]]


async def test_replies_that_are_asked_for_together_are_made_together(tiny_model: Path) -> None:
    order: list[str] = []

    async def follow(name: str, generation: Generation) -> None:
        async for _ in generation.pieces():
            order.append(name)

    async with running(tiny_model) as engine:
        generations = [engine.submit(PROMPT, GREEDY) for _ in range(3)]
        await asyncio.gather(*map(follow, "abc", generations))
    assert set(order) == set("abc")
    # All three begin before any has ended.
    assert {order.index(name) < len(order) // 2 for name in "abc"} == {True}
    assert order != sorted(order)


async def test_who_shares_a_batch_changes_no_reply(tiny_model: Path) -> None:
    prompts = [[2, 40 + n, *range(30, 30 + 9 * n), 3] for n in range(5)]
    rules = [
        GREEDY,
        replace(GREEDY, temperature=1.0, seed=4),
        replace(GREEDY, temperature=0.8, seed=5, top_p=0.9, max_tokens=25),
        replace(GREEDY, temperature=1.2, seed=6, top_k=20, min_p=0.02, repetition_penalty=1.3),
        replace(GREEDY, repetition_penalty=1.5, max_tokens=60),
    ]
    async with running(tiny_model) as engine:
        alone = [
            await text_of(engine.submit(prompt, rule))
            for prompt, rule in zip(prompts, rules, strict=True)
        ]
        early = [engine.submit(*pair) for pair in list(zip(prompts, rules, strict=True))[:2]]
        # The others come while these two are at work, at whatever token that is.
        async for _ in early[1].pieces():
            break
        late = [engine.submit(*pair) for pair in list(zip(prompts, rules, strict=True))[2:]]
        together = await asyncio.gather(*map(text_of, [early[0], *late]))
    assert len(set(alone)) == 5
    assert [alone[0], *alone[2:]] == together


async def test_a_prompt_that_is_read_in_parts_gets_the_same_reply(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [5 + (at * 7) % 250 for at in range(100)]
    expected = await ids_alone(tiny_model, prompt, 20)
    monkeypatch.setattr(generate, "_AT_ONCE", {"cpu": 16})
    async with running(tiny_model) as engine:
        beside = engine.submit(PROMPT, LONG)
        async for _ in beside.pieces():
            break
        asked = replace(GREEDY, max_tokens=20, num_top=0)
        generation = engine.submit(prompt, asked)
        made = [entry.token_id async for piece in generation.pieces() for entry in piece.logprobs]
        beside.cancel()
    assert made == expected


@pytest.mark.parametrize("num_rows", [2, 5])
async def test_short_memory_makes_replies_wait_and_changes_none(
    tiny_model: Path, num_rows: int
) -> None:
    """A device that holds two rows of such a width: more of them, and it is out of memory."""
    prompts = [[2, 40 + n, *range(30, 40 + n), 3] for n in range(num_rows)]
    expected = [await ids_alone(tiny_model, prompt, 30) for prompt in prompts]
    asked = replace(GREEDY, max_tokens=30, num_top=0)
    refused = 0

    def refuse(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal refused
        if inputs[0].shape[0] > 2:
            refused += 1
            raise torch.OutOfMemoryError

    async with running(tiny_model) as engine:
        # The first block has appended its columns by then.
        engine._model.model.layers[1].register_forward_pre_hook(refuse)
        generations = [engine.submit(prompt, asked) for prompt in prompts]

        async def ids_of(generation: Generation) -> list[int]:
            return [
                entry.token_id async for piece in generation.pieces() for entry in piece.logprobs
            ]

        assert await asyncio.gather(*map(ids_of, generations)) == expected
    assert (refused > 0) == (num_rows > 2)


async def test_too_little_memory_for_one_reply_is_said(tiny_model: Path) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError

    async with running(tiny_model) as engine:
        handle = engine._model.model.layers[1].register_forward_pre_hook(refuse)
        with pytest.raises(GenerationError, match="too little memory for this conversation"):
            await text_of(engine.submit(PROMPT, GREEDY))
        handle.remove()
        assert await text_of(engine.submit(PROMPT, GREEDY))


async def test_log_probabilities_are_those_of_the_model(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    asked = replace(GREEDY, max_tokens=8, num_top=3, of_prompt=True, temperature=1.0, seed=2)
    async with running(tiny_model) as engine:
        beside = engine.submit([7, 8, 9], replace(LONG, num_top=9))
        generation = engine.submit(PROMPT, asked)
        entries = [entry async for piece in generation.pieces() for entry in piece.logprobs]
        beside.cancel()
    ids = PROMPT + [entry.token_id for entry in entries]
    assert len(entries) == 8
    with torch.inference_mode():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for at, entry in enumerate([*generation.prompt_logprobs, *entries]):
        assert entry.token_id == ids[at + 1]
        assert entry.logprob == pytest.approx(float(logs[at, ids[at + 1]]), abs=1e-4)
        best = logs[at].topk(3)
        assert len(entry.top) == 3
        assert [number for number, _ in entry.top] == best.indices.tolist()
        assert [log for _, log in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_no_more_rows_are_at_work_than_was_said(tiny_model: Path) -> None:
    engine = Engine(tiny_model, load_tokenizer(tiny_model), "cpu", "auto", most_rows=2)
    await engine.start()
    generations = [engine.submit(PROMPT, LONG) for _ in range(3)]
    async for _ in generations[0].pieces():
        break
    assert (engine.num_running, engine.num_waiting) == (2, 1)
    generations[0].cancel()
    async for _ in generations[2].pieces():
        break
    for generation in generations:
        generation.cancel()
    assert engine.close()


async def test_more_than_can_wait_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "MOST_WAITING", 1)
    monkeypatch.setattr(generate, "MOST_ROWS", 1)
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
    with pytest.raises(RunError, match=r"damaged.*no complete header"):
        await engine.start()
