import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.model.model_folders import change_json, transformers_logits, write_model_folder
from tests.model.tiny import relative_difference
from workbench.config.added_tokens_file import PAD_ALONE, AddedTokens, NamedToken
from workbench.config.weight_files import SINGLE_FILE
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, DataError
from workbench.model.conversion_plan import Conversion, Wish, plan_conversion
from workbench.model.convert import convert
from workbench.model.decoder import EMBEDDING, HEAD
from workbench.model.families import read_dimensions

OLD_ROWS = 97
KINDS = ["llama", "llama, tied"]
CHATML = AddedTokens(
    named={
        "pad_token": NamedToken(token="<|pad|>", init="zero", if_missing=True),
        "eos_token": NamedToken(token="<|im_end|>"),
    },
    special_tokens=("<|im_start|>",),
    regular_tokens=("hello",),
)


def added(
    tmp_path: Path, wanted: AddedTokens, kind: str = "llama", dtype: torch.dtype | None = None
) -> tuple[Conversion, dict[str, Tensor], dict[str, Tensor]]:
    """Add tokens to ``source``, made where it is not there; give weights before and after."""
    source = tmp_path / "source"
    if not source.exists():
        write_model_folder(source, kind)
    conversion = plan_conversion(source, Wish(added=wanted, dtype=dtype))
    assert convert(conversion, tmp_path / "made").difference == 0.0
    made = load_file(tmp_path / "made" / SINGLE_FILE)
    return conversion, load_file(source / SINGLE_FILE), made


def stated(folder: Path, name: str) -> dict[str, object]:
    content = json.loads((folder / name).read_text("utf-8"))
    assert isinstance(content, dict)
    return content


def matrices(kind: str) -> list[str]:
    return [EMBEDDING] if kind == "llama, tied" else [EMBEDDING, HEAD]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_vocabulary_and_tokenizer_agree_and_transformers_says_so(
    tmp_path: Path, kind: str
) -> None:
    conversion, before, after = added(tmp_path, CHATML, kind)
    made = tmp_path / "made"
    assert conversion.vocabulary_size == OLD_ROWS + 4
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    assert len(tokenizer) == stated(made, "config.json")["vocab_size"] == OLD_ROWS + 4
    assert load_tokenizer(made).vocabulary_size == read_dimensions(made).vocabulary_size
    assert after.keys() == before.keys()
    for name in matrices(kind):
        assert after[name].shape == (OLD_ROWS + 4, before[name].shape[1])
        assert torch.equal(after[name][:OLD_ROWS], before[name])
    rest = before.keys() - set(matrices(kind))
    assert rest
    assert all(torch.equal(after[name], before[name]) for name in rest)
    model = AutoModelForCausalLM.from_pretrained(made, local_files_only=True)
    assert model.get_input_embeddings().num_embeddings == OLD_ROWS + 4
    assert tokenizer("<|im_start|>hello<|im_end|>")["input_ids"][1:] == [
        tokenizer.convert_tokens_to_ids(text) for text in ("<|im_start|>", "hello", "<|im_end|>")
    ]
    ids = torch.randint(OLD_ROWS, (2, 30), generator=torch.Generator().manual_seed(1))
    ours = transformers_logits(made, ids)[..., :OLD_ROWS]
    assert relative_difference(ours, transformers_logits(tmp_path / "source", ids)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_rows_begin_as_the_rules_say(tmp_path: Path, kind: str) -> None:
    wanted = AddedTokens(
        named={
            "eos_token": NamedToken(token="new end"),  # a copy of the old one
            "bos_token": NamedToken(token="new begin", init="copy:A"),
            "unk_token": NamedToken(token="new unknown", init="mean"),
            "pad_token": NamedToken(token="new pad"),  # no old one: zero
        },
        special_tokens=("sign",),
        regular_tokens=("text",),
    )
    _, before, after = added(tmp_path, wanted, kind)
    tokenizer = load_tokenizer(tmp_path / "made")
    ids = {
        text: int(tokenizer.encode([text])[0].ids[0])
        for text in ("new end", "new begin", "new unknown", "new pad", "sign", "text", "A")
    }
    assert sorted(ids[text] for text in ids if text != "A") == list(range(OLD_ROWS, OLD_ROWS + 6))
    for name in matrices(kind):
        old, new = before[name], after[name]
        mean = old.double().mean(0).float()
        assert torch.equal(new[ids["new end"]], old[2])
        assert torch.equal(new[ids["new begin"]], old[ids["A"]])
        assert not new[ids["new pad"]].any()
        for text in ("new unknown", "sign", "text"):
            assert torch.allclose(new[ids[text]], mean, rtol=1e-6, atol=1e-8)
        assert mean.norm() > 1e-3


def test_a_named_token_of_the_vocabulary_only_moves_the_name(tmp_path: Path) -> None:
    wanted = AddedTokens(named={"eos_token": NamedToken(token="Z", init="zero")})
    conversion, before, after = added(tmp_path, wanted)
    assert conversion.vocabulary_size == OLD_ROWS
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any("its row stays" in notice for notice in conversion.notices)
    made = tmp_path / "made"
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    assert tokenizer.eos_token == "Z"
    assert stated(made, "config.json")["eos_token_id"] == tokenizer.eos_token_id
    assert stated(made, "generation_config.json")["eos_token_id"] == [tokenizer.eos_token_id, 2]


def test_the_old_end_still_ends_and_the_new_begin_begins(tmp_path: Path) -> None:
    wanted = AddedTokens(
        named={
            "eos_token": NamedToken(token="<|im_end|>"),
            "bos_token": NamedToken(token="<|begin|>"),
        }
    )
    added(tmp_path, wanted)
    made = tmp_path / "made"
    end, begin = OLD_ROWS, OLD_ROWS + 1
    assert stated(made, "config.json")["eos_token_id"] == end
    assert stated(made, "config.json")["bos_token_id"] == begin
    assert stated(made, "generation_config.json")["eos_token_id"] == [end, 2]
    assert stated(made, "generation_config.json")["bos_token_id"] == begin
    tokenizer = AutoTokenizer.from_pretrained(made, local_files_only=True)
    assert tokenizer("AB")["input_ids"][0] == begin, "what puts the first token knows the new one"
    assert tokenizer("A", "B")["input_ids"].count(2) == 0


def test_without_a_generation_config_one_names_both_ends(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    (source / "generation_config.json").unlink()
    added(tmp_path, AddedTokens(named={"eos_token": NamedToken(token="<|im_end|>")}))
    made = stated(tmp_path / "made", "generation_config.json")
    assert made["eos_token_id"] == [OLD_ROWS, 2]


@pytest.mark.parametrize("has_pad", [False, True])
def test_alone_a_pad_token_is_added_only_where_none_is(tmp_path: Path, has_pad: bool) -> None:
    source = write_model_folder(tmp_path / "source")
    if has_pad:
        change_json(source / "tokenizer_config.json", pad_token="<unk>")
    conversion, _, after = added(tmp_path, PAD_ALONE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made", local_files_only=True)
    if has_pad:
        assert conversion.vocabulary_size == OLD_ROWS
        assert tokenizer.pad_token == "<unk>"
        assert any("is <unk> already and stays" in notice for notice in conversion.notices)
    else:
        assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", OLD_ROWS)
        assert not after[EMBEDDING][OLD_ROWS].any()
        assert stated(tmp_path / "made", "config.json")["pad_token_id"] == OLD_ROWS


def test_a_second_time_changes_nothing_and_says_so(tmp_path: Path) -> None:
    added(tmp_path, CHATML)
    (tmp_path / "source").rename(tmp_path / "first")
    (tmp_path / "made").rename(tmp_path / "source")
    conversion, before, after = added(tmp_path, CHATML)
    assert len(conversion.notices) == 4
    assert all("already" in notice for notice in conversion.notices)
    assert all(torch.equal(after[name], before[name]) for name in before)
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    for name in names:
        assert stated(tmp_path / "made", name) == stated(tmp_path / "source", name)


def test_rows_that_are_padding_are_used_first_and_are_no_part_of_the_mean(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    tokens = stated(source, "tokenizer.json")
    model = tokens["model"]
    assert isinstance(model, dict)
    kept = {text: number for text, number in model["vocab"].items() if number < 90}
    change_json(source / "tokenizer.json", model={**model, "vocab": kept})
    wanted = AddedTokens(special_tokens=("<a>", "<b>"))
    conversion, before, after = added(tmp_path, wanted)
    assert conversion.vocabulary_size == OLD_ROWS
    for name in (EMBEDDING, HEAD):
        mean = before[name][:90].double().mean(0).float()
        assert torch.allclose(after[name][90:92], mean.expand(2, -1), rtol=1e-6, atol=1e-8)
        assert torch.equal(after[name][:90], before[name][:90])
        assert torch.equal(after[name][92:], before[name][92:])


def test_new_rows_are_of_the_new_dtype(tmp_path: Path) -> None:
    _, before, after = added(tmp_path, CHATML, dtype=torch.bfloat16)
    assert after[HEAD].dtype == torch.bfloat16
    assert torch.equal(after[HEAD][:OLD_ROWS], before[HEAD].bfloat16())


def test_older_lists_of_added_tokens_are_kept_in_step(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    (source / "added_tokens.json").write_text("{}")
    (source / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    change_json(source / "tokenizer_config.json", added_tokens_decoder={})
    added(tmp_path, CHATML)
    made = tmp_path / "made"
    tokens = AutoTokenizer.from_pretrained(made, local_files_only=True)
    ids = {text: tokens.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|im_start|>")}
    assert ids.items() <= stated(made, "added_tokens.json").items()
    assert stated(made, "special_tokens_map.json")["eos_token"] == "<|im_end|>"
    listed = stated(made, "tokenizer_config.json")["added_tokens_decoder"]
    assert isinstance(listed, dict)
    assert listed[str(ids["<|im_end|>"])]["content"] == "<|im_end|>"


def test_a_copy_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    wanted = AddedTokens(named={"eos_token": NamedToken(token="x y", init="copy:absent")})
    with pytest.raises(ConfigError, match="'x y' shall be a copy of 'absent', which has no row"):
        plan_conversion(source, Wish(added=wanted))


def test_without_a_tokenizer_nothing_can_be_added(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        plan_conversion(source, Wish(added=PAD_ALONE))


def test_a_text_is_found_within_words_too(tmp_path: Path) -> None:
    """Where a normalizer puts a space before texts, as those of Llama 2 and Mistral do."""
    source = write_model_folder(tmp_path / "source")
    path = source / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Prepend", "prepend": "!"}
    path.write_text(json.dumps(content))
    wanted = AddedTokens(named={}, special_tokens=(), regular_tokens=("Camel",))
    convert(plan_conversion(source, Wish(added=wanted)), tmp_path / "made")
    tokenizer = load_tokenizer(tmp_path / "made")
    found = [tokenizer.encode([text])[0].ids.tolist() for text in ("Camel", "aCamelb", "a Camel")]
    assert all(ids.count(OLD_ROWS) == 1 for ids in found), found


def test_a_name_that_moves_is_a_change(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    wanted = AddedTokens(
        named={"eos_token": NamedToken(token="A"), "pad_token": NamedToken(token="B")},
        special_tokens=(),
        regular_tokens=(),
    )
    conversion = plan_conversion(source, Wish(added=wanted))
    assert set(conversion.changes) == {"eos_token </s> → A", "pad_token none → B"}
