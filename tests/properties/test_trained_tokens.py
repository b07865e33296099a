"""The mask of a conversation is what the loss counts, whatever lies between the two."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from tests.data.conftest import CHATML_TOKENS, TEXTS, model_config
from workbench.config.find import shipped_templates
from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection, SourceSection
from workbench.config.template_source import template_source
from workbench.data.chat_template import ChatTemplate, Targets
from workbench.data.formats import convert
from workbench.data.loader import Loader
from workbench.data.packing import MIN_PACKED_TOKENS
from workbench.data.prepare import prepare
from workbench.data.tokenizer import load_tokenizer
from workbench.training.loss import target_rows

NAMES = sorted(path.stem for path in shipped_templates().glob("*.jinja"))
Packing = Literal["none", "best_fit", "first_fit", "greedy"]

texts = st.lists(
    st.sampled_from(
        ["Hello", " name", "the weather", "\n", "\n\n", "  ", "Zürich 🙂", "<|im_end|>"]
    ),
    min_size=1,
    max_size=12,
).map("".join)
said = texts.map(lambda text: text if text.strip() else f"{text}x")
pairs = st.lists(st.tuples(said, said), min_size=1, max_size=4)
rows = st.lists(
    st.tuples(st.none() | said, pairs).map(
        lambda drawn: {
            "messages": [
                *([{"role": "system", "content": drawn[0]}] if drawn[0] else []),
                *(
                    {"role": role, "content": content}
                    for pair in drawn[1]
                    for role, content in zip(("user", "assistant"), pair, strict=True)
                ),
            ]
        }
    ),
    min_size=2,
    max_size=12,
    unique_by=json.dumps,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    backend = Backend(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    signs = [*CHATML_TOKENS, "<s>", "</s>", "<|eot_id|>", "<|pad|>"]
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(text, special=True) for text in signs],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.save(str(folder / "tokenizer.json"))
    stated = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    (folder / "config.json").write_text(json.dumps(model_config(backend.get_vocab_size())))
    return folder


@settings(max_examples=30)
@given(
    rows=rows,
    name=st.sampled_from(NAMES),
    targets=st.sampled_from(["assistant", "last", "all"]),
    packing=st.sampled_from(["none", "best_fit", "first_fit", "greedy"]),
    max_length=st.integers(64, 2048),
    num_microbatches=st.integers(1, 3),
)
def test_the_loss_counts_the_tokens_that_the_masks_of_all_conversations_train(
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    name: str,
    targets: Targets,
    packing: Packing,
    max_length: int,
    num_microbatches: int,
) -> None:
    source = template_source(name, model)
    tokenizer = load_tokenizer(model)
    template = ChatTemplate(source, tokenizer.special_tokens)
    expected: list[int] = []
    for row in rows:
        conversation, _ = convert(row, "messages", {}, "a row")
        encoded = template.encode(conversation, tokenizer, targets)
        ids, mask = encoded.ids[:max_length], encoded.mask[:max_length]
        if packing == "none" or ids.size >= MIN_PACKED_TOKENS:
            expected += ids[mask].tolist()
    if not expected:
        return
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(rows))
    data = DataSection(
        sources={"rows": SourceSection(path=str(path))},
        split_at=[1.0, 1.0],
        targets=targets,
        packing=packing,
        max_length=max_length,
    )
    prepared = prepare(Config(data=data), model, source)
    loader = Loader(
        prepared.train,
        rows_per_step=3,
        num_microbatches=num_microbatches,
        shuffle=True,
        seed=1,
        pad_id=prepared.pad_id,
        row_length=None,
    )
    counted: list[int] = []
    num_targets = 0
    for index in range(loader.steps_per_epoch):
        step = loader.step(index)
        num_targets += step.num_targets
        for batch in step.microbatches:
            positions, labels = target_rows(batch.ids, batch.targets)
            counted += labels.tolist()
            starts = np.unique(batch.document_starts[0])
            assert not np.isin(positions + 1, starts[starts < batch.row_length]).any()
    assert sorted(counted) == sorted(expected)
    assert num_targets == len(expected) == prepared.train.num_targets
