"""One command line, three kinds of arguments: of the verb, of the config, of torchrun."""

import argparse
from pathlib import Path

import pytest

from workbench.cli.config_arguments import (
    ConfigArguments,
    read_config_arguments,
    typed_model,
)
from workbench.errors import ConfigError


def read(*arguments: str) -> ConfigArguments:
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-d", "--devices")
        parser.add_argument("--dry-run", action="store_true")

    return read_config_arguments(
        arguments,
        verb="train",
        summary="Train.",
        add_options=add_options,
        takes_torchrun=True,
    )


def test_options_flags_and_keys_may_stand_in_any_order() -> None:
    given = read(
        "--lr", "1e-5", "-d", "0,1", "batch.train=4", "-t", "base/samantha", "--dry-run", "-Sno"
    )
    resolved, options = given.resolved, given.options
    assert resolved.name == "base/samantha"
    assert (options.devices, options.dry_run, options.config) == ("0,1", True, "base/samantha")
    assert resolved.config.optimizer.learning_rate == 1e-5
    assert resolved.config.batch.train == 4
    assert resolved.config.checkpoints.save_strategy == "no"
    assert given.torchrun_arguments == []
    assert [override.key for override in given.overrides] == [
        "optimizer.learning_rate",
        "batch.train",
        "checkpoints.save_strategy",
    ]


def test_what_stands_behind_two_dashes_is_torchruns() -> None:
    given = read("-tbase/training", "--", "--max-restarts", "2", "--lr", "-t", "x", "--")
    assert given.torchrun_arguments == ["--max-restarts", "2", "--lr", "-t", "x", "--"]
    assert given.options.config == "base/training"
    assert given.resolved.config.optimizer.learning_rate == 5e-6


def test_absent_options_change_nothing() -> None:
    given = read("--config=base/training")
    assert not given.options.dry_run
    assert all(leaf.origin.file or leaf.value == "" for leaf in given.resolved.leaves.values())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dry"],  # no abbreviations: a flag of a later version would change its meaning
        ["--dry-run=yes"],
        ["-d"],
        ["--max_steps", "3"],
        ["--lr"],
    ],
)
def test_what_is_not_understood_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError):
        read("-t", "base/training", *arguments)


def test_of_two_configs_the_later_counts() -> None:
    assert read("-t", "base/training", "-t", "base/samantha").resolved.name == "base/samantha"


def test_a_value_that_looks_like_an_option_of_the_verb_is_its_value() -> None:
    assert read("-t", "base/training", "-d", "-1").options.devices == "-1"


def test_a_model_is_a_path_or_an_id_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "home" / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    assert typed_model("org/name", "model") == Path("org/name")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0a1b\n")
    (snapshot / "config.json").write_text("{}")
    assert typed_model("org/name", "model") == snapshot
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert typed_model("org/name", "model") == Path("org/name"), "a folder counts first"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_model("~/org/name", "model") == tmp_path / "org" / "name"
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE is not set"):
        typed_model("$NOT_SET_ANYWHERE/name", "model")
