"""Will a config fit on this machine: asks for its GPUs, memory, prepared data and earlier runs.

The arithmetic is ``config/memory_plan``; here is only what has to be looked up. Invariant: nothing
is written, and no worker is started but the one that knows the cache of prepared data.
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.config import memory_fit, memory_plan
from workbench.config.hub_id import model_name
from workbench.config.inherit import is_file
from workbench.config.known_models import SHOWN_BY, known_model
from workbench.config.load import ResolvedConfig
from workbench.config.memory_fit import Machine, trains_on_gpu, weight_bytes_of
from workbench.config.memory_levers import with_overrides
from workbench.config.memory_plan import Estimate
from workbench.config.model_facts import ModelFacts, read_model_facts
from workbench.config.schema.config import Config
from workbench.control.data_records import Counts
from workbench.errors import ConfigError, WorkbenchError
from workbench.jobs import data_worker
from workbench.jobs.torchrun_command import visible_devices
from workbench.runs.environment import list_gpus
from workbench.runs.host_memory import available_host_memory
from workbench.runs.measured import measured_run
from workbench.runs.rates_file import read_cpu_rates, read_rates


def usable_gpus(devices: str | None) -> list[dict[str, object]]:
    """Give the GPUs that a start would see, in the order of its ranks.

    Args:
        devices: ``-d/--devices``; None: those in ``CUDA_VISIBLE_DEVICES``, else all.

    Raises:
        ConfigError: a GPU is named that is not here, and others are.
    """
    gpus = {str(gpu["index"]): gpu for gpu in list_gpus()}
    if devices is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None or not re.fullmatch(r"[-\d\s,]*", visible):
            return list(gpus.values())
        named = [name.strip() for name in visible.split(",")]
        # CUDA reads the list up to the first that it does not know.
        return [gpus[name] for name in itertools.takewhile(gpus.__contains__, named)]
    named = visible_devices(devices).split(",")
    if not all(name.isdigit() for name in named):
        return list(gpus.values())
    if not gpus:
        return []
    for name in named:
        if name not in gpus:
            raise ConfigError(
                f"GPU {name} is not here",
                where="-d/--devices",
                remedy=f"name one of {', '.join(gpus)}, or leave it out",
            )
    return [gpus[name] for name in named]


def machine_here(devices: str | None = None, ranks: int = 1) -> Machine:
    """Look at this machine: the GPU that has least free of those that ranks get, and host memory.

    Args:
        devices: as ``usable_gpus`` takes them.
        ranks: of the config; each takes the next GPU.

    Raises:
        ConfigError: as ``usable_gpus``.
    """
    return machine_of(usable_gpus(devices)[:ranks])


def machine_of(gpus: Sequence[Mapping[str, object]]) -> Machine:
    """Give a machine by the GPUs of its ranks: that with least free stands for all of them."""
    memory = available_host_memory()
    host = None if memory is None else memory.available_bytes
    if not gpus:
        return Machine(host_bytes=host)
    free, name = min(
        (free if type(free := gpu.get("free_bytes")) is int else 0, str(gpu["name"]))
        for gpu in gpus
    )
    return Machine(
        gpu_name=name, gpu_free_bytes=free or None, host_bytes=host, rates=read_rates(name)
    )


def num_ranks(config: Config) -> int:
    """Count the ranks of a config."""
    return config.pipeline.ranks * config.pipeline.replicas


def find_model(resolved: ResolvedConfig) -> tuple[str, ModelFacts]:
    """Find the shapes of a config's model: a folder, a config.json, or a known name.

    Returns:
        What it is called, and its facts.

    Raises:
        WorkbenchError: no model is named, or it is neither of these.
    """
    path = resolved.config.model.path
    if path is None:
        raise ConfigError(
            "no model is named",
            where="model.path",
            remedy="add -M MODEL: a folder, a config.json, or a known name such as mistral-7b; "
            f"`{SHOWN_BY}` lists them",
        )
    if Path(path).exists():
        facts = read_model_facts(path)
        if Path(path).name == "config.json":
            return Path(path).resolve().parent.name, facts
        return (Path(path).stem if is_file(Path(path)) else model_name(Path(path))), facts
    return known_model(path)


@dataclass(frozen=True)
class Shapes:
    """The shapes of a model, and where they come from.

    Attributes:
        name: of the model.
        facts: its shapes.
        is_published: it is known by name alone; there is no folder of it here.
    """

    name: str
    facts: ModelFacts
    is_published: bool


def shapes_of(resolved: ResolvedConfig) -> Shapes | None:
    """Give the shapes of a config's model; None where they are not known.

    A folder that is there and cannot be read is a mistake, and no other model's shapes stand for
    it.
    """
    path = resolved.config.model.path
    if path is None:
        return None
    try:
        name, facts = find_model(resolved)
    except WorkbenchError:
        return None
    return Shapes(name, facts, is_published=not Path(path).exists())


def prepared_counts(resolved: ResolvedConfig) -> memory_fit.Counts | None:
    """Ask the cache what a config's data comes to; None where it is not prepared.

    Raises:
        WorkbenchError: the data cannot be prepared as it is.
    """
    path, sources = resolved.config.model.path, resolved.config.data.sources
    if path is None or not sources or not is_file(Path(path) / "tokenizer.json"):
        return None
    done = data_worker.counts(resolved)
    return None if done is None else counts_for_plan(done.counts)


def counts_for_plan(counts: Counts | None) -> memory_fit.Counts | None:
    """Pick what bytes and seconds depend on; None where there are no rows."""
    if counts is None or counts.train_rows == 0:
        return None
    return memory_fit.Counts(
        longest_row=max(counts.longest_row, counts.longest_validation_row),
        steps_per_epoch=counts.steps_per_epoch,
        seen_tokens=counts.seen_tokens,
        most_documents=counts.most_documents,
        validation_rows=counts.validation_rows,
    )


def estimate_here(
    resolved: ResolvedConfig,
    facts: ModelFacts,
    output_root: Path,
    *,
    machine: Machine | None = None,
    counts: memory_fit.Counts | None = None,
    first_step: int = 0,
) -> Estimate:
    """Estimate a config against a machine, with the peaks of an earlier run where there is one.

    Args:
        resolved: the config.
        facts: of its model.
        output_root: where numbered run folders lie.
        machine: None looks at this one.
        counts: of its prepared data.
        first_step: of the checkpoint that it goes on from.
    """
    machine = machine or machine_here()
    if not trains_on_gpu(resolved.config, machine):
        reached = read_cpu_rates(facts.hidden_size, weight_bytes_of(resolved.config))
        machine = replace(machine, cpu_rates=reached)
    return memory_plan.estimate(
        resolved.config,
        facts,
        machine=machine,
        counts=counts,
        measured=measured_run(resolved, output_root),
        first_step=first_step,
    )


def estimate_of_start(
    resolved: ResolvedConfig,
    facts: ModelFacts,
    output_root: Path,
    counts: memory_fit.Counts | None = None,
    *,
    machine: Machine,
    starts: bool = True,
    first_step: int = 0,
) -> Estimate:
    """Estimate what a start here and now would take: without a GPU, the CPU trains.

    Args:
        resolved: the config.
        facts: of its model.
        output_root: where numbered run folders lie.
        counts: of its prepared data.
        machine: where it starts.
        starts: False for a dry run: where there is no GPU, a config with a budget for one is meant
            for another host, and is held against that budget.
        first_step: of the checkpoint that it goes on from.
    """
    if starts and resolved.config.training.device == "auto" and machine.gpu_name is None:
        on_cpu = with_overrides(resolved.config, {"training.device": "cpu"})
        resolved = replace(resolved, config=on_cpu)
    return estimate_here(
        resolved, facts, output_root, machine=machine, counts=counts, first_step=first_step
    )
