import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.model.model_folders import change_json, transformers_logits, write_model_folder
from tests.model.tiny import KINDS, relative_difference
from workbench.config.added_tokens_file import PAD_ALONE
from workbench.config.weight_files import INDEX_FILE, SINGLE_FILE
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, DataError, RunError, WorkbenchError
from workbench.model.conversion_check import compare
from workbench.model.conversion_plan import Wish, plan_conversion
from workbench.model.convert import Converted, convert
from workbench.model.families import read_dimensions
from workbench.model.weights import random_weights, write_weights
from workbench.runs.whole_folder import partial_of

SMALL_SHARD_BYTES = 20_000
SOME = "model.layers.1.mlp.up_proj.weight"


def made_of(
    source: Path, destination: Path, wish: Wish, max_shard_bytes: int = 1 << 30
) -> Converted:
    return convert(plan_conversion(source, wish), destination, max_shard_bytes)


def config_of(folder: Path) -> dict[str, object]:
    stated = json.loads((folder / "config.json").read_text("utf-8"))
    assert isinstance(stated, dict)
    return stated


@pytest.mark.parametrize(
    ("kind", "num_bin_shards"),
    [(kind, number % 2) for number, kind in enumerate(KINDS)] + [("llama, tied", 3), ("qwen2", 3)],
)
def test_nothing_but_files_changes_where_nothing_is_wished_for(
    tmp_path: Path, kind: str, num_bin_shards: int
) -> None:
    source = write_model_folder(tmp_path / "source", kind, num_bin_shards)
    made = made_of(source, tmp_path / "made", Wish(), SMALL_SHARD_BYTES)
    assert made.difference == made.rounding == 0.0
    assert (tmp_path / "made" / INDEX_FILE).is_file()
    assert not list((tmp_path / "made").glob("*.bin*"))
    assert config_of(tmp_path / "made") == config_of(source)
    ids = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        transformers_logits(tmp_path / "made", ids), transformers_logits(source, ids)
    )
    assert {path.name for path in (tmp_path / "made").iterdir()} == set(made.files)
    for path in source.glob("*token*.json"):
        assert (tmp_path / "made" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama, tied", "qwen2", "qwen3"])
def test_another_dtype_rounds_each_weight_and_is_named(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    source = write_model_folder(tmp_path / "source", kind)
    made = made_of(source, tmp_path / "made", Wish(dtype=dtype))
    assert made.difference == 0.0
    assert 1e-5 < made.rounding < 0.1
    before, after = load_file(source / SINGLE_FILE), load_file(tmp_path / "made" / SINGLE_FILE)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name].to(dtype)) for name in before)
    assert config_of(tmp_path / "made")["dtype"] == str(dtype).removeprefix("torch.")
    ids = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))
    found = relative_difference(
        transformers_logits(tmp_path / "made", ids), transformers_logits(source, ids)
    )
    assert made.rounding / 3 < found < made.rounding * 3


def test_the_older_name_of_the_dtype_is_kept_where_it_stands(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    change_json(source / "config.json", dtype=None, torch_dtype="float32")
    made_of(source, tmp_path / "made", Wish(dtype=torch.bfloat16))
    stated = config_of(tmp_path / "made")
    assert (stated["torch_dtype"], stated.get("dtype")) == ("bfloat16", None)


@pytest.mark.parametrize("kind", ["llama", "llama, llama3", "llama, yarn", "qwen3"])
@pytest.mark.parametrize("length", [64, 4096])
def test_another_longest_document_changes_no_position(
    tmp_path: Path, kind: str, length: int
) -> None:
    source = write_model_folder(tmp_path / "source", kind)
    if kind == "llama, yarn":  # left out, it means the longest document
        parameters = dict(config_of(source)["rope_parameters"])  # type: ignore[call-overload]
        del parameters["original_max_position_embeddings"]
        change_json(source / "config.json", rope_parameters=parameters)
    conversion = plan_conversion(source, Wish(max_length=length))
    assert any("not for more" in notice for notice in conversion.notices) == (length == 4096)
    assert convert(conversion, tmp_path / "made").difference == 0.0
    assert read_dimensions(tmp_path / "made").max_positions == length
    tokens = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text("utf-8"))
    assert tokens["model_max_length"] == length
    ids = torch.randint(97, (1, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        transformers_logits(tmp_path / "made", ids), transformers_logits(source, ids)
    )


def test_dynamic_positions_would_change_with_the_longest_document(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source", "llama, dynamic")
    with pytest.raises(ConfigError, match="changes the positions"):
        plan_conversion(source, Wish(max_length=64))


def test_a_template_takes_the_place_of_every_other(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    change_json(source / "tokenizer_config.json", chat_template="old")
    (source / "chat_template.jinja").write_text("old")
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    made_of(source, tmp_path / "made", Wish(template=template))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made", local_files_only=True)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert text == "user:x</s>"
    assert "old" not in (tmp_path / "made" / "tokenizer_config.json").read_text("utf-8")


def test_code_of_the_author_stays_behind(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    change_json(source / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    (source / "modeling_x.py").write_text("raise SystemExit")
    (source / "LICENSE.txt").write_text("free")
    conversion = plan_conversion(source, Wish())
    assert any("auto_map" in notice for notice in conversion.notices)
    made = convert(conversion, tmp_path / "made")
    assert "modeling_x.py" not in made.files
    assert (tmp_path / "made" / "LICENSE.txt").read_text() == "free"
    assert "auto_map" not in config_of(tmp_path / "made")


# ---- what must not pass --------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["writing", "comparing"])
def test_a_destination_that_is_not_the_same_model_goes(tmp_path: Path, at: str) -> None:
    source = write_model_folder(tmp_path / "source")
    spoilt = []

    def spoil(stage: str, done: int, total: int) -> None:
        """Change a bit on the disk, once all of it is written."""
        is_due = done == total if at == "writing" else done > 0
        if stage == at and is_due and not spoilt:
            path = partial_of(tmp_path / "made") / SINGLE_FILE
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
            spoilt.append(path)

    conversion = plan_conversion(source, Wish(dtype=torch.bfloat16))
    with pytest.raises(WorkbenchError, match="is not what was to be written") as told:
        convert(conversion, tmp_path / "made", tell=spoil)
    assert told.value.exit_status == 1
    assert spoilt
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_logits_are_compared_too(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    conversion = plan_conversion(source, Wish())
    convert(conversion, tmp_path / "made")
    assert compare(conversion, tmp_path / "made") == (0.0, 0.0)
    change_json(tmp_path / "made" / "config.json", rms_norm_eps=1e-2)
    with pytest.raises(WorkbenchError, match="logits differ from the source's by") as told:
        compare(conversion, tmp_path / "made")
    assert told.value.exit_status == 1


def _spoil_a_weight(source: Path) -> None:
    weights = load_file(source / SINGLE_FILE)
    weights[SOME][0, 0] = float("nan")
    save_file(weights, source / SINGLE_FILE)


def _enlarge_a_weight(source: Path) -> None:
    weights = load_file(source / SINGLE_FILE)
    weights[SOME][0, 0] = 1e6
    save_file(weights, source / SINGLE_FILE)


def _name_no_end(source: Path) -> None:
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        change_json(source / name, eos_token=None, eos_token_id=None)


def _loop(source: Path) -> None:
    forever = "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"
    (source / "chat_template.jinja").write_text(forever)


def _reach(source: Path) -> None:
    reaching = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    (source / "chat_template.jinja").write_text(reaching)


def _link_out(source: Path) -> None:
    (source.parent / "secret").write_text("{}")
    (source / "special_tokens_map.json").symlink_to(source.parent / "secret")


def _add_a_token_without_a_row(source: Path) -> None:
    path = source / "tokenizer.json"
    added = {"id": 97, "content": "[PAD]", "special": True, "normalized": False}
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    stated = json.loads(path.read_text("utf-8"))
    change_json(path, added_tokens=[*stated["added_tokens"], added | switches])


HOSTILE: list[tuple[Callable[[Path], None], str, type[WorkbenchError]]] = [
    (_spoil_a_weight, f"{SOME} holds a NaN or an infinity", RunError),
    (_enlarge_a_weight, f"{SOME} holds numbers too large for float16", RunError),
    (_name_no_end, "names no token that ends a text", DataError),
    (_loop, "loop|rounds", DataError),
    (_reach, "__class__|unsafe|refuses", DataError),
    (_link_out, "special_tokens_map.json is a link out of the folder", RunError),
    (_add_a_token_without_a_row, "has ids up to 97, the embedding 97 rows", DataError),
]


@pytest.mark.parametrize(("spoil", "message", "kind"), HOSTILE)
def test_a_hostile_folder_is_refused_and_leaves_nothing(
    tmp_path: Path, spoil: Callable[[Path], None], message: str, kind: type[WorkbenchError]
) -> None:
    source = write_model_folder(tmp_path / "source")
    made_of(source, tmp_path / "first", Wish(dtype=torch.float16))
    spoil(source)
    with pytest.raises(kind, match=message):
        made_of(source, tmp_path / "made", Wish(dtype=torch.float16))
    assert not (tmp_path / "made").exists()
    assert not partial_of(tmp_path / "made").exists()


def test_a_token_without_a_row_gets_one_where_tokens_are_added(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    _add_a_token_without_a_row(source)
    conversion = plan_conversion(source, Wish(added=PAD_ALONE))
    assert any("[PAD] (id 97) had no row; it begins as zero" in told for told in conversion.notices)
    convert(conversion, tmp_path / "made")
    assert read_dimensions(tmp_path / "made").vocabulary_size == 98
    assert load_tokenizer(tmp_path / "made").vocabulary_size == 98
    weights = load_file(tmp_path / "made" / SINGLE_FILE)
    assert not weights["model.embed_tokens.weight"][97].any()


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("x")
    with pytest.raises(RunError, match="is there already"):
        made_of(source, tmp_path / "made", Wish())
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mine"]


def test_a_conversion_that_is_killed_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "source")
    program = [sys.executable, "-m", "tests.model.killed_conversions", str(source), str(tmp_path)]
    ended = subprocess.run(
        [*program, "25"],
        capture_output=True, text=True, timeout=170, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(told) == 25
    assert {each["state"] for each in told} <= {"absent", "whole"}
    assert sum(each["killed"] and each["partial"] for each in told) > 3
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    made_of(source, tmp_path / "out", Wish(dtype=torch.bfloat16))
    assert not partial_of(tmp_path / "out").exists()


PEAK = """
import sys, torch
from pathlib import Path
from workbench.model.conversion_check import compare
from workbench.model.conversion_plan import Wish, plan_conversion
from workbench.model.convert import _write_weights

torch.set_num_threads(1)

def resident(field):
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(field + ":") + 1]) << 10

source, made = Path(sys.argv[1]), Path(sys.argv[2])
small = plan_conversion(Path(sys.argv[3]), Wish())
(made / "small").mkdir(parents=True)
_write_weights(small, made / "small", 1 << 30, lambda *_: None)
conversion = plan_conversion(source, Wish(dtype=torch.bfloat16))
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
_write_weights(conversion, made, 1 << 30, lambda *_: None)
print(sum(each.num_bytes for each in conversion.stored.values()), resident("VmHWM") - before)
"""


def test_a_model_goes_from_file_to_file_without_being_in_memory(tmp_path: Path) -> None:
    small = write_model_folder(tmp_path / "small")
    source = tmp_path / "source"
    shutil.copytree(small, source)
    wide = {"num_hidden_layers": 22, "hidden_size": 512, "intermediate_size": 2048, "head_dim": 8}
    change_json(source / "config.json", **wide)
    write_weights(source, random_weights(read_dimensions(source), 0, torch.float32))
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(tmp_path / "made"), str(small)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    weights, peak = map(int, ended.stdout.split())
    assert weights > 250 << 20
    assert peak < 80 << 20
