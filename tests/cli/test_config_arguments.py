"""One command line, three kinds of arguments: of the verb, of the config, of torchrun."""

import argparse

import pytest

from workbench.cli.config_arguments import ConfigArguments, read_config_arguments
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
