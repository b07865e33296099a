"""torchrun's command line: merged option by option, and safe to paste."""

import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from torch.distributed.run import get_args_parser

from workbench.config.schema.config import Config
from workbench.errors import ConfigError
from workbench.jobs.torchrun_command import parse_extra, torchrun_command, visible_devices
from workbench.runs.layout import RunFolder


def options_of(arguments: tuple[str, ...]) -> dict[str, str | None]:
    inside = arguments[3 : arguments.index("-m", 3)]
    found: dict[str, str | None] = {}
    for index, word in enumerate(inside):
        if word.startswith("--"):
            behind = inside[index + 1] if index + 1 < len(inside) else "--"
            found[word] = None if behind.startswith("--") else behind
    return found


def test_by_default_one_rank_meets_itself_on_a_port_of_its_own(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    command = torchrun_command(Config(), run, environment={})
    assert command.arguments[:3] == (sys.executable, "-m", "torch.distributed.run")
    assert command.arguments[-3:] == ("-m", "workbench.training", str(run.path))
    options = options_of(command.arguments)
    assert "--standalone" in options
    assert options["--nproc-per-node"] == "1"
    assert options["--tee"] == "3"
    assert options["--log-dir"] == str(run.ranks)


def test_a_given_option_changes_that_option_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    before = options_of(torchrun_command(Config(), run, environment={}).arguments)
    command = torchrun_command(Config(), run, extra=["--max_restarts", "2", "-t=1"], environment={})
    after = options_of(command.arguments)
    assert after == before | {"--max-restarts": "2", "--tee": "1"}


def test_a_given_rendezvous_takes_the_place_of_the_standalone_one(tmp_path: Path) -> None:
    extra = ["--nnodes", "1", "--rdzv-backend=c10d", "--rdzv-endpoint", "tower:29400"]
    command = torchrun_command(Config(), RunFolder(tmp_path), extra=extra, environment={})
    options = options_of(command.arguments)
    assert "--standalone" not in options
    assert options["--rdzv-endpoint"] == "tower:29400"
    assert options["--nproc-per-node"] == "1"


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        (["train.py"], "no option"),
        (["--module"], "says what torchrun runs"),
        (["-m", "evil"], "says what torchrun runs"),
        (["--max-restarts"], "lacks its value"),
        (["--rdzv-id", "--tee", "3"], "--rdzv-id lacks its value"),
        (["--nproc-per-node", "2"], "2, the config needs 1"),
        (["--nproc-per-node=2", "--nnodes=3"], "6, the config needs 1"),
        (["--nnodes", "2"], "2, the config needs 1"),
        (["--nnodes", "1:2"], "make 1 to 2, the config needs 1"),
        (["--nnodes", "two"], "--nnodes two is no number"),
        (["--nproc-per-node", "all"], "--nproc-per-node all is no number"),
        (["--max-restart", "2"], "did you mean --max-restarts"),
        (["--lr", "2"], "--lr is no option of torchrun"),
        (["-"], "no option"),
    ],
)
def test_what_cannot_follow_the_dashes_is_refused(
    tmp_path: Path, extra: list[str], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        torchrun_command(Config(), RunFolder(tmp_path), extra=extra)


@pytest.mark.parametrize(
    ("extra", "backend"),
    [
        (["--rdzv-endpoint", "tower:29400"], "c10d"),
        (["--rdzv-endpoint", "tower:29400", "--rdzv-backend", "etcd"], "etcd"),
        (["--rdzv-endpoint", "tower:29400", "--node-rank", "0"], None),
    ],
)
def test_hosts_that_are_not_numbered_number_themselves_when_they_meet(
    tmp_path: Path, extra: list[str], backend: str | None
) -> None:
    command = torchrun_command(Config(), RunFolder(tmp_path), extra=extra, environment={})
    assert options_of(command.arguments).get("--rdzv-backend") == backend


@pytest.mark.parametrize("extra", [["--nnodes", "1:1"], ["--nproc-per-node", "gpu"]])
def test_as_many_ranks_as_the_config_needs_may_be_said_in_other_words(
    tmp_path: Path, extra: list[str]
) -> None:
    command = torchrun_command(Config(), RunFolder(tmp_path), extra=extra, environment={})
    assert options_of(command.arguments)[extra[0]] == extra[1]


def test_every_option_of_torchrun_can_be_given() -> None:
    offered = [
        action
        for action in get_args_parser()._actions
        if action.option_strings
        and not {"-h", "-m", "--no-python", "--run-path"}.intersection(action.option_strings)
    ]
    assert len(offered) > 20
    for action in offered:
        for spelling in action.option_strings:
            extra = [spelling] if action.nargs == 0 else [spelling, "7"]
            name = max(action.option_strings, key=len).replace("_", "-")
            assert parse_extra(extra) == {name: None if action.nargs == 0 else "7"}


def test_values_may_be_negative_numbers_and_hold_equal_signs() -> None:
    extra = ["--rdzv-conf", "read_timeout=600,is_host=true", "--monitor-interval", "-1"]
    assert parse_extra(extra) == {
        "--rdzv-conf": "read_timeout=600,is_host=true",
        "--monitor-interval": "-1",
    }


def test_devices_are_those_named() -> None:
    assert visible_devices("cuda:0, 2") == "0,2"
    for wrong in ("cpu", "", "0,0", "1;rm", "-1"):
        with pytest.raises(ConfigError):
            visible_devices(wrong)


def test_the_environment_says_only_what_was_not_said(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    added = torchrun_command(Config(), run, devices="1", environment={}).environment
    assert added["CUDA_VISIBLE_DEVICES"] == "1"
    assert added["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    ordered = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    added = torchrun_command(Config(), run, devices="1", environment=ordered).environment
    assert "CUDA_DEVICE_ORDER" not in added
    assert int(added["OMP_NUM_THREADS"]) >= 1
    config = msgspec.structs.replace(
        Config(), training=msgspec.structs.replace(Config().training, device="cpu")
    )
    assert torchrun_command(config, run, environment={"OMP_NUM_THREADS": "3"}).environment == {}


def test_the_line_means_the_same_to_a_shell(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "it's a $HOME; run")
    command = torchrun_command(Config(), run, devices="0", environment={})
    show = shlex.join(
        [
            sys.executable,
            "-c",
            "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], sys.argv)",
        ]
    )
    settings, _, rest = command.line.partition(f"{sys.executable} ")
    told = subprocess.run(
        ["sh", "-c", f"{settings}{show} {rest}"], capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == f"0 {['-c', *command.arguments[1:]]}"
