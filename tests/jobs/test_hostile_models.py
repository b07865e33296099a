"""Model folders that are damaged or made to harm are refused before a process starts."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.short_folder import short_folder
from workbench.config.find import shipped_configs
from workbench.config.load import ResolvedConfig, parse_overrides, resolve
from workbench.config.weight_files import INDEX_FILE, SINGLE_FILE
from workbench.jobs.preflight import Check, preflight


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with short_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.chdir(tmp_path)
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes: its weights are never read here, and shapes are not compared."""
    folder = tmp_path / "model"
    shutil.copytree(shipped_configs() / "demo" / "model", folder)
    save_file({"x": torch.zeros(1)}, folder / SINGLE_FILE)
    return folder


def demo(model: Path, *settings: str) -> ResolvedConfig:
    stated = [f"model.path={model}", "model.weights=load", *settings]
    return resolve("demo", overrides=parse_overrides(stated))


def errors_of(resolved: ResolvedConfig) -> list[Check]:
    return [
        each for each in preflight(resolved) if isinstance(each, Check) and each.state == "error"
    ]


def _index(files: list[str]) -> str:
    return json.dumps({"weight_map": {str(number): file for number, file in enumerate(files)}})


def _climb_out(folder: Path) -> None:
    (folder / SINGLE_FILE).rename(folder.parent / "other.safetensors")
    (folder / INDEX_FILE).write_text(_index(["../other.safetensors"]))


def _name_a_system_file(folder: Path) -> None:
    (folder / SINGLE_FILE).unlink()
    (folder / INDEX_FILE).write_text(_index(["/etc/hostname"]))


def _link_out(folder: Path) -> None:
    (folder / SINGLE_FILE).rename(folder.parent / "other")
    (folder / SINGLE_FILE).symlink_to(folder.parent / "other")


def _lose_a_shard(folder: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / SINGLE_FILE).rename(folder / names[0])
    (folder / INDEX_FILE).write_text(_index(names))


def _spoil_the_index(folder: Path) -> None:
    (folder / SINGLE_FILE).unlink()
    (folder / INDEX_FILE).write_text("[" * 100_000)


def _deepen_the_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ' * 100_000)


def _count_endless_blocks(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**12}))


def _lose_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_climb_out, r"lacks weight files: \.\./other\.safetensors"),
        (_name_a_system_file, "lacks weight files: /etc/hostname"),
        (_link_out, f"{SINGLE_FILE} is a link out of the folder, to .*other"),
        (_lose_a_shard, r"lacks weight files: model-00002-of-00002\.safetensors"),
        (_spoil_the_index, "is not an index of weights"),
        (_deepen_the_config, "is not JSON"),
        (_count_endless_blocks, "num_hidden_layers is 1,000,000,000,000, more than any model has"),
        (_lose_the_tokenizer, r"has no tokenizer\.json"),
    ],
)
def test_a_damaged_folder_is_refused_with_its_cause(
    model: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(model)
    errors = errors_of(demo(model))
    assert [error.name for error in errors] == ["model"]
    assert re.search(message, str(errors[0])), str(errors[0])
    assert errors[0].remedy
    assert errors[0].exit_status == 2


LOOPS = "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"
REACHES = "{{ messages.__class__.__mro__[1].__subclasses__() }}"


@pytest.mark.parametrize(("template", "message"), [(LOOPS, "rounds"), (REACHES, "__class__")])
def test_a_template_that_harms_is_refused(model: Path, template: str, message: str) -> None:
    (model / "chat_template.jinja").write_text(template)
    errors = errors_of(demo(model, "data.chat_template=auto"))
    assert errors
    assert all(error.name == "data" for error in errors)
    assert any(message in str(error) for error in errors), [str(error) for error in errors]


def test_a_tokenizer_without_an_end_is_refused_where_the_template_needs_one(model: Path) -> None:
    path = model / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    del stated["eos_token"]
    path.write_text(json.dumps(stated))
    errors = errors_of(demo(model, "data.chat_template=alpaca"))
    assert any("'eos_token' is undefined; name eos_token in" in str(error) for error in errors)
    assert errors_of(demo(model, "data.chat_template=chatml")) == []
