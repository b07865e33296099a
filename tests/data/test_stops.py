"""What ends a reply: a token where the vocabulary has one, and never a piece of a text."""

import json
from pathlib import Path

import msgspec
import pytest

from tests.cli.miniature import write_base_model
from workbench.config.find import shipped_templates
from workbench.config.schema.config import Config
from workbench.data.chat_template import ChatTemplate
from workbench.data.prepare import PreparedData, prepare
from workbench.data.stops import stops_of
from workbench.data.tokenizer import load_tokenizer
from workbench.training.beside_weights import files_beside_weights

DEMO = Path(__file__).parents[2] / "configs" / "demo"


def chatml() -> str:
    return (shipped_templates() / "chatml.jinja").read_text("utf-8")


def prepared(model: Path, template: str) -> PreparedData:
    config = msgspec.convert(
        {
            "model": {"path": str(model)},
            "data": {
                "sources": {"demo": {"path": str(DEMO / "conversations.json")}},
                "max_length": 256,
                "num_workers": 0,
            },
        },
        Config,
    )
    return prepare(config, model, template)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary has no token of ChatML."""
    folder = tmp_path_factory.mktemp("stops") / "base"
    write_base_model(folder)
    return folder


def test_a_turn_that_ends_in_pieces_of_text_gives_no_stop_token(base_model: Path) -> None:
    tokenizer = load_tokenizer(base_model)
    template = ChatTemplate(chatml(), tokenizer.special_tokens)
    assert len(template.stop_ids(tokenizer)) > 1
    assert stops_of(template, tokenizer) == (frozenset(), ("<|im_end|>",))
    found = prepared(base_model, chatml())
    assert found.stop_ids == ()
    assert any("ordinary pieces" in finding.what for finding in found.findings)


def test_a_checkpoint_does_not_end_replies_at_such_a_piece(base_model: Path) -> None:
    found = prepared(base_model, chatml())
    files = files_beside_weights(
        base_model,
        template=chatml(),
        dtype="bfloat16",
        stop_ids=found.stop_ids,
        pad_id=found.pad_id,
    )
    generation = json.loads(files["generation_config.json"])
    assert generation["eos_token_id"] == [load_tokenizer(base_model).eos_id]


def test_a_turn_that_ends_in_a_token_gives_that_token() -> None:
    tokenizer = load_tokenizer(DEMO / "model")
    template = (DEMO / "model" / "chat_template.jinja").read_text("utf-8")
    (end,) = (int(number) for number in tokenizer.encode(["<|im_end|>"])[0].ids)
    assert stops_of(ChatTemplate(template, tokenizer.special_tokens), tokenizer) == (
        frozenset({end}),
        (),
    )
    assert prepared(DEMO / "model", template).stop_ids == (end,)
