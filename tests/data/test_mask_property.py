"""For any conversations: the tokens shown as trained are those whose loss is summed, no others."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.demo.demo_files import MODEL
from tests.training.tiny import dimensions, tiny_engine
from workbench.config.find import shipped_templates
from workbench.config.flags import parse_overrides
from workbench.config.load import resolve
from workbench.config.schema.config import Config
from workbench.control.data_records import Row, Step
from workbench.data.chat_template import ChatTemplate
from workbench.data.loader import StepRows
from workbench.data.prepare import PreparedData, prepare_in_steps
from workbench.data.preview import Preview
from workbench.data.tokenizer import load_tokenizer
from workbench.model import decoder
from workbench.training.loss import target_rows

CHATML = (shipped_templates() / "chatml.jinja").read_text("utf-8")
TOKENIZER = load_tokenizer(MODEL)
TEMPLATE = ChatTemplate(CHATML, TOKENIZER.special_tokens)
DIMENSIONS = replace(dimensions(layers=1), vocabulary_size=2048, max_positions=256)

content = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw turns in turn, some of them left out of the loss, sometimes with a system turn."""
    turns: list[dict[str, Any]] = []
    if draw(st.booleans()):
        turns.append({"role": "system", "content": draw(content)})
    for _ in range(draw(st.integers(1, 3))):
        turns.append({"role": "user", "content": draw(content)})
        train = draw(st.sampled_from([True, True, False]))
        turns.append({"role": "assistant", "content": draw(content), "train": train})
    return {"messages": turns}


ways = st.tuples(
    st.sampled_from(["none", "best_fit", "first_fit", "greedy"]),
    st.sampled_from(["truncate", "split"]),
    st.sampled_from(["longest", "context"]),
    st.sampled_from(["assistant", "last", "all"]),
    st.integers(32, 120),
    st.integers(1, 3),
)


def config_of(file: Path, way: tuple[str, str, str, str, int, int]) -> Config:
    packing, overlong, pad_to, targets, max_length, microbatches = way
    settings = {
        "data.sources": f"{{demo: {{path: {file}}}}}",
        "data.split_at": "[1.0, 1.0]",
        "data.skip_bad_rows": "true",
        "data.packing": packing,
        "data.overlong": overlong,
        "data.pad_to": pad_to,
        "data.targets": targets,
        "data.max_length": max_length,
        "batch.microbatches": microbatches,
        "batch.train": 3,
        "evaluation.every_steps": 0,
    }
    overrides = parse_overrides([f"{key}={value}" for key, value in settings.items()])
    return resolve("demo", overrides=overrides).config


def prepared_of(config: Config) -> PreparedData:
    *_, prepared = prepare_in_steps(config, MODEL, CHATML)
    assert isinstance(prepared, PreparedData)
    return prepared


def loss_of_shown(rows: Sequence[Row], weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum the loss of the targets shown, each document alone: slow, obvious, without a batch."""
    total = torch.zeros(())
    for document in itertools.chain.from_iterable(row.documents for row in rows):
        ids = torch.tensor([[token.id for token in document.tokens]])
        starts = torch.tensor([[0, ids.shape[1]]], dtype=torch.int32)
        context = decoder.row_context(starts, ids.shape[1], DIMENSIONS, torch.float32, "dense")
        logits = decoder.forward(weights, ids, context, DIMENSIONS)[0]
        chosen = [at for at, token in enumerate(document.tokens) if token.is_target]
        labels = ids[0, chosen].long()
        total = total + F.cross_entropy(logits[[at - 1 for at in chosen]], labels, reduction="sum")
    return total


def compare(
    file: Path, rows: list[dict[str, Any]], way: tuple[str, str, str, str, int, int]
) -> int:
    """Train one step on rows and hold it against what is shown of it; give its targets."""
    file.write_text(json.dumps(rows), encoding="utf-8")
    config = config_of(file, way)
    prepared = prepared_of(config)
    if not len(prepared.train):
        return 0
    preview = Preview(config, prepared, "train", TOKENIZER, TEMPLATE)
    head, *shown = preview.step(1, None)
    assert isinstance(head, Step)
    seen = [row for row in shown if isinstance(row, Row)]
    num_shown = sum(
        token.is_target for row in seen for doc in row.documents for token in doc.tokens
    )

    step: StepRows = preview.loader.step(0)
    labels = np.concatenate(
        [target_rows(batch.ids, batch.targets)[1] for batch in step.microbatches]
    )
    assert num_shown == head.num_targets == step.num_targets == labels.size > 0

    tiny = tiny_engine(DIMENSIONS, microbatch_tokens=3 * 120)
    expected = loss_of_shown(seen, tiny.weights())
    result = tiny.engine.step(step, 1, 1e-3)
    assert result.num_targets == num_shown
    assert result.loss_sum.item() == pytest.approx(expected.item(), rel=1e-4)
    return num_shown


def test_what_is_shown_as_trained_is_what_the_loss_counts(tmp_path: Path) -> None:
    compared = []

    @settings(max_examples=25)
    @given(rows=st.lists(conversations(), min_size=2, max_size=6), way=ways)
    def of_any(rows: list[dict[str, Any]], way: tuple[str, str, str, str, int, int]) -> None:
        compared.append(compare(tmp_path / "rows.json", rows, way))

    of_any()
    assert sum(number > 0 for number in compared) > len(compared) / 2
