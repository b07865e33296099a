"""Rows that are made together: every family, beyond its window, gets the tokens it gets alone."""

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from workbench.inference.batch import (
    Batch,
    Row,
    RowsFailed,
    bytes_per_place,
    depends_on_longest,
    groups_of,
)
from workbench.inference.reply import Generation
from workbench.inference.sampling import Sampling

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOW: dict[str, Any] = {"sliding_window": 12}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama3": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral": MistralConfig(**SIZES, **WINDOW),
    "qwen2": Qwen2Config(**SIZES, **WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, **WINDOW, use_sliding_window=True, max_window_layers=2),
}
LENGTHS = (3, 30, 9, 14, 41)


def model_of(config: PreTrainedConfig) -> Any:  # noqa: ANN401 - transformers gives it no type
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).eval()


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randint(1, 90, (length,), generator=draw).tolist() for length in LENGTHS]


def row_of(prompt: list[int], **rules: Any) -> Row:  # noqa: ANN401 - any of Sampling
    sampling = Sampling(**{"max_tokens": 24, "temperature": 0, **rules})
    return Row(Generation(prompt, sampling), lambda ids: "", {})


@pytest.mark.parametrize("family", FAMILIES)
async def test_rows_that_come_and_go_get_the_tokens_of_generate(family: str) -> None:
    model = model_of(FAMILIES[family])
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0)[
            0
        ].tolist()
        for prompt in prompts()
    ]
    assert len({tuple(ids[-24:]) for ids in expected}) == len(LENGTHS)
    batch = Batch(model, torch.device("cpu"), most_rows=8, at_once=16)
    rows = [row_of(prompt) for prompt in prompts()]
    # The first two begin, then one by one the others come; prompts of 30 and 41 are read in parts.
    batch.add(rows[:2])
    widths = set()
    for row in rows[2:]:
        for _ in range(4):
            assert batch.step() == []
            widths.add(batch._cache.num_columns)
        batch.add([row])
    while batch.rows:
        batch.step()
    assert [row.ids for row in rows] == expected
    assert max(widths) > 12


@pytest.mark.parametrize("rope_type", ["dynamic", "default"])
async def test_a_model_whose_angles_follow_the_longest_row_makes_one_at_a_time(
    rope_type: str,
) -> None:
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 1e4}
    if rope_type == "dynamic":
        rope["factor"] = 2.0
    config = LlamaConfig(**{**SIZES, "max_position_embeddings": 32}, rope_parameters=rope)
    assert depends_on_longest(config) == (rope_type == "dynamic")
    batch = Batch(model_of(config), torch.device("cpu"), most_rows=8, at_once=16)
    assert batch.most_rows == (1 if rope_type == "dynamic" else 8)


async def test_prompts_of_like_length_are_read_together() -> None:
    rows = [row_of([1] * length) for length in (5, 90, 6, 100, 7)]
    groups = groups_of(rows, 200)
    assert [[len(row.ids) for row in group] for group in groups] == [[5, 6, 7], [90, 100]]
    # As far as they fit, and a prompt that is longer than all is one by itself.
    assert [len(group) for group in groups_of(rows, 14)] == [2, 1, 1, 1]
    assert groups_of([], 14) == []


async def test_a_row_that_fails_takes_no_other_with_it() -> None:
    model = model_of(FAMILIES["llama"])
    batch = Batch(model, torch.device("cpu"), most_rows=8, at_once=16)
    well, ill = row_of(prompts()[1]), row_of([9_999])
    batch.add([well])
    for _ in range(5):
        batch.step()
    batch.add([ill])
    with pytest.raises(Exception, match="1 rows failed"):
        batch.step()
    assert batch.rows == [well]
    while batch.rows:
        batch.step()
    assert len(well.ids) == 30 + 24


async def test_the_cache_has_room_ahead_and_forgets_padding() -> None:
    model = model_of(FAMILIES["llama"])
    batch = Batch(model, torch.device("cpu"), most_rows=8, at_once=64)
    short, long = row_of([5, 6, 7]), row_of(prompts()[4], max_tokens=4)
    batch.add([short, long])
    batch.step()
    batch.step()
    assert batch._cache.num_columns > 41
    while batch.rows == [short, long]:
        batch.step()
    # What the long row needed is gone with it.
    assert batch._cache.num_columns < 12
    buffer = batch._cache.layers[0]._keys_RHCD
    batch.step()
    batch.step()
    assert batch._cache.layers[0]._keys_RHCD.data_ptr() != buffer.data_ptr()
    buffer = batch._cache.layers[0]._keys_RHCD
    batch.step()
    assert batch._cache.layers[0]._keys_RHCD.data_ptr() == buffer.data_ptr()


@pytest.mark.parametrize("num_places", [90, 200])
async def test_the_host_is_not_asked_for_more_than_it_has(num_places: int) -> None:
    """Rows that would take too much wait, and get the tokens that they get alone."""
    model = model_of(FAMILIES["llama"])
    size = bytes_per_place(model.config, torch.float32)
    assert size == 3 * 2 * 2 * 8 * 4
    short = [row_of(prompt[:9]) for prompt in prompts()]
    alone = [row_of(prompt[:9]) for prompt in prompts()]
    for row in alone:
        batch = Batch(model, torch.device("cpu"), most_rows=8, at_once=64)
        batch.add([row])
        while batch.rows:
            batch.step()
    batch = Batch(model, torch.device("cpu"), 8, 64, host_bytes=2 * num_places * size)
    waiting, times_put_back, most = list(short), 0, 0
    while waiting or batch.rows:
        room = batch.most_rows - len(batch.rows)
        batch.add(waiting[:room])
        del waiting[:room]
        put_back = batch.step()
        waiting = put_back + waiting
        times_put_back += bool(put_back)
        assert len(batch._rows) * batch._cache.num_columns <= num_places
        most = max(most, len(batch._rows))
    assert [row.ids for row in short] == [row.ids for row in alone]
    assert times_put_back > 0 or num_places == 200
    assert 1 < most <= 5


async def test_a_single_row_that_the_host_cannot_hold_fails() -> None:
    model = model_of(FAMILIES["llama"])
    size = bytes_per_place(model.config, torch.float32)
    batch = Batch(model, torch.device("cpu"), 8, 64, host_bytes=2 * 20 * size)
    row = row_of(prompts()[3])
    batch.add([row])

    def finish() -> None:
        while batch.rows:
            batch.step()

    with pytest.raises(RowsFailed) as failed:
        finish()
    assert failed.value.rows == [row]
    assert isinstance(failed.value.__cause__, torch.OutOfMemoryError)
    assert 14 < len(row.ids) <= 22
    assert batch.rows == []
