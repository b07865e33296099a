"""Resolved config and ``-- ARGS`` → torchrun's command line, quoted for a shell.

What the user gives after ``--`` is merged option by option, and the user's value wins: nothing
that was computed is lost because one option was given. Knows torchrun's options, starts nothing.
"""

import difflib
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.config.schema.config import Config
from workbench.errors import ConfigError
from workbench.runs.layout import RunFolder

WORKER = "workbench.training"
_WHERE = "arguments after --"

# torchrun's options that take no value.
_SWITCHES = frozenset({"--standalone", "--virtual-local-rank"})
_WITH_VALUE = frozenset(
    [
        "--nnodes",
        "--nproc-per-node",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--rdzv-id",
        "--rdzv-conf",
        "--max-restarts",
        "--monitor-interval",
        "--start-method",
        "--event-log-handler",
        "--role",
        "--log-dir",
        "--redirects",
        "--tee",
        "--local-ranks-filter",
        "--duplicate-stdout-filters",
        "--duplicate-stderr-filters",
        "--node-rank",
        "--master-addr",
        "--master-port",
        "--local-addr",
        "--logs-specs",
        "--numa-binding",
        "--signals-to-handle",
        "--shutdown-timeout",
    ]
)
_SHORT = {"-t": "--tee", "-r": "--redirects"}
_WHAT_IS_RUN = frozenset({"-m", "--module", "--no-python", "--run-path", "-h", "--help"})
# Any of these says that the user arranges the meeting of several hosts.
_RENDEZVOUS = frozenset(
    {
        "--nnodes",
        "--node-rank",
        "--master-addr",
        "--master-port",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--rdzv-id",
        "--rdzv-conf",
    }
)


@dataclass(frozen=True)
class TorchrunCommand:
    """The whole command line, and what is added to the environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def line(self) -> str:
        """The command as a line that can be pasted into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.arguments)])


def torchrun_command(
    config: Config,
    run: RunFolder,
    *,
    devices: str | None = None,
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> TorchrunCommand:
    """Build the command that trains a run.

    Args:
        config: says how many ranks there are.
        run: the run folder; its path stands in the command.
        devices: GPUs as the user names them: ``0``, ``0,2``, ``cuda:1``; None: all.
        extra: what stood after ``--``.
        environment: what is set already, by default this process's.

    Raises:
        ConfigError: an argument that torchrun does not take here, or another number of ranks.
    """
    environment = os.environ if environment is None else environment
    num_ranks = config.pipeline.ranks * config.pipeline.replicas
    given = read_extra(config, extra)
    options: dict[str, str | None] = {"--nproc-per-node": str(num_ranks)}
    if not _RENDEZVOUS.intersection(given):
        # A port of its own for each job; the address keeps torchrun from asking a name server.
        options = {"--standalone": None, "--local-addr": "127.0.0.1"} | options
    if "--rdzv-endpoint" in given and "--node-rank" not in given:
        # torchrun's own default, static, wants to be told which host is which.
        options["--rdzv-backend"] = "c10d"
    options |= {"--tee": "3", "--log-dir": str(run.ranks)}
    options |= given
    arguments = [sys.executable, "-m", "torch.distributed.run"]
    for name, value in options.items():
        arguments += [name] if value is None else [name, value]
    arguments += ["-m", WORKER, str(run.path)]
    ranks_here = int(options["--nproc-per-node"] or 1) if _is_number(options) else num_ranks
    return TorchrunCommand(tuple(arguments), _environment(devices, ranks_here, environment))


def read_extra(config: Config, extra: Sequence[str]) -> dict[str, str | None]:
    """Read torchrun options as ``parse_extra`` does, and hold them against the config.

    Raises:
        ConfigError: something that torchrun does not take, or another number of ranks.
    """
    given = parse_extra(extra)
    _check_ranks(given, config.pipeline.ranks * config.pipeline.replicas)
    return given


def parse_extra(extra: Sequence[str]) -> dict[str, str | None]:
    """Read torchrun options: their values by full name, None for a switch.

    ``["--max-restarts=2", "--standalone"]`` gives {"--max-restarts": "2", "--standalone": None}.

    Raises:
        ConfigError: something that is no option of torchrun, lacks its value, or says what is run.
    """
    options: dict[str, str | None] = {}
    waiting = list(extra)
    while waiting:
        argument = waiting.pop(0)
        name, has_value, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        elif argument[:2] in _SHORT and argument[2:]:
            name, has_value, value = argument[:2], "=", argument[2:].removeprefix("=")
        if name in _WHAT_IS_RUN:
            raise ConfigError(
                f"{name} cannot be given: workbench says what torchrun runs",
                where=_WHERE,
                remedy="leave it out",
            )
        if not name.startswith("-") or name == "-":
            raise ConfigError(
                f"{argument!r} is no option of torchrun",
                where=_WHERE,
                remedy="give options only, such as --max-restarts 2",
            )
        name = _SHORT.get(name, name)
        if name not in _SWITCHES | _WITH_VALUE:
            near = difflib.get_close_matches(name, _SWITCHES | _WITH_VALUE, n=1)
            raise ConfigError(
                f"{name} is no option of torchrun",
                where=_WHERE,
                remedy=f"did you mean {near[0]}?" if near else "give one such as --max-restarts 2",
            )
        if name in _SWITCHES:
            options[name] = None
        elif has_value:
            options[name] = value
        elif waiting and not re.match(r"--?[a-zA-Z]", waiting[0]):
            options[name] = waiting.pop(0)
        else:
            raise ConfigError(f"{name} lacks its value", where=_WHERE, remedy=f"write {name}=VALUE")
    return options


def visible_devices(devices: str) -> str:
    """Turn GPUs as the user names them into the value of CUDA_VISIBLE_DEVICES.

    ``cuda:0,cuda:2`` and ``0,2`` give ``0,2``.

    Raises:
        ConfigError: something that names no GPU.
    """
    names = [part.strip().removeprefix("cuda:") for part in devices.split(",")]
    for name in names:
        if not re.fullmatch(r"\d+|(?:GPU|MIG)-[0-9A-Za-z/-]+", name):
            raise ConfigError(
                f"{name!r} names no GPU",
                where="-d/--devices",
                remedy="give numbers such as 0 or 0,2; for the CPU: training.device=cpu",
            )
    if len(set(names)) != len(names):
        raise ConfigError("a GPU is named twice", where="-d/--devices", remedy="name each GPU once")
    return ",".join(names)


def _check_ranks(given: Mapping[str, str | None], num_ranks: int) -> None:
    """Refuse another number of ranks; what auto, cpu and gpu come to, only the hosts know."""
    nodes = given.get("--nnodes") or "1"
    here = given.get("--nproc-per-node") or str(num_ranks)
    if not re.fullmatch(r"[0-9]+(:[0-9]+)?", nodes):
        raise ConfigError(f"--nnodes {nodes} is no number", where=_WHERE, remedy="write --nnodes 2")
    if not re.fullmatch(r"[0-9]+|auto|cpu|gpu", here):
        raise ConfigError(
            f"--nproc-per-node {here} is no number",
            where=_WHERE,
            remedy="give a number, auto, cpu or gpu",
        )
    if not here.isdigit():
        return
    totals = [int(count) * int(here) for count in nodes.split(":")]
    if any(total != num_ranks for total in totals):
        raise ConfigError(
            f"{nodes} x {here} ranks make {' to '.join(map(str, totals))}, "
            f"the config needs {num_ranks}",
            where=_WHERE,
            remedy="change --nnodes or --nproc-per-node, or pipeline.ranks",
        )


def _is_number(options: Mapping[str, str | None]) -> bool:
    return (options["--nproc-per-node"] or "").isdigit()


def _environment(
    devices: str | None, ranks_here: int, already: Mapping[str, str]
) -> dict[str, str]:
    added: dict[str, str] = {}
    if devices is not None:
        added["CUDA_VISIBLE_DEVICES"] = visible_devices(devices)
        if "CUDA_DEVICE_ORDER" not in already:
            # CUDA counts the fastest first; people name the numbers that nvidia-smi shows.
            added["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if "OMP_NUM_THREADS" not in already:
        # torchrun sets 1 for several ranks; the cores are theirs to share.
        cores = len(os.sched_getaffinity(0))
        added["OMP_NUM_THREADS"] = str(max(1, cores // max(1, ranks_here)))
    return added
