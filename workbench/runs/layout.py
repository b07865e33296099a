"""Every file name inside a run folder; nobody else spells one.

Knows nothing of what the files hold. Invariant: paths are computed, nothing is read or made here.
"""

import re
from pathlib import Path

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
PARTIAL_SUFFIX = ".partial"


class RunFolder:
    """The paths inside one run folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.name = self.path.name

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config(self) -> Path:
        """The resolved config: the only one that workers read."""
        return self.path / "config.yaml"

    def earlier_config(self, attempt: int) -> Path:
        """What config.yaml was in an attempt whose keys have changed since."""
        return self.path / f"config.{attempt}.yaml"

    @property
    def origins(self) -> Path:
        """File, line and history of every leaf of the config."""
        return self.path / "origins.json"

    @property
    def environment(self) -> Path:
        """Versions, GPUs, driver, git commit."""
        return self.path / "environment.json"

    @property
    def git_diff(self) -> Path:
        """What a dirty working tree held beyond its commit."""
        return self.path / "git.diff"

    @property
    def command(self) -> Path:
        """Arguments and environment of torchrun."""
        return self.path / "command.json"

    @property
    def chat_template(self) -> Path:
        """Exactly the template that training and serving render."""
        return self.path / "chat_template.jinja"

    @property
    def lock(self) -> Path:
        """Held by the supervisor: one job per run folder."""
        return self.path / "lock"

    @property
    def job(self) -> Path:
        """This start: job id, attempt, host, socket, process."""
        return self.path / "job.json"

    @property
    def events(self) -> Path:
        """What happened, by the supervisor."""
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """One record per logging window, by rank 0."""
        return self.path / "metrics.jsonl"

    @property
    def plan(self) -> Path:
        """The memory plan, and later the measured peak, by rank 0."""
        return self.path / "plan.json"

    @property
    def log(self) -> Path:
        """Output of all ranks, by torchrun."""
        return self.path / "log.txt"

    @property
    def ranks(self) -> Path:
        """Folder of torchrun's --log-dir: stdout, stderr, error.json of each rank."""
        return self.path / "ranks"

    @property
    def supervisor_log(self) -> Path:
        """The supervisor's own diagnostics."""
        return self.path / "supervisor.log"

    @property
    def outcome(self) -> Path:
        """How the run ended, written last."""
        return self.path / "outcome.json"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Which checkpoint is the best, and its loss at that very step."""
        return self.checkpoints / "best.json"

    @property
    def tags(self) -> Path:
        """Tags the user gave to checkpoints."""
        return self.checkpoints / "tags.json"

    @property
    def latest(self) -> Path:
        """Link to the newest complete checkpoint."""
        return self.path / "latest"

    def checkpoint(self, step: int) -> Path:
        """The complete checkpoint of a step."""
        return self.checkpoints / f"checkpoint-{step}"

    def partial_checkpoint(self, step: int) -> Path:
        """A checkpoint that is being written, or was left by a crash."""
        return self.checkpoints / f"checkpoint-{step}{PARTIAL_SUFFIX}"


class CheckpointFolder:
    """The paths inside one checkpoint folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def manifest(self) -> Path:
        """Size and hash of every file; what makes a checkpoint complete."""
        return self.path / "manifest.json"

    @property
    def training_state(self) -> Path:
        """Folder of what a resume needs beside the weights."""
        return self.path / "training_state"

    @property
    def state(self) -> Path:
        """Step, tokens, epoch, data position, rounding counter, format version."""
        return self.training_state / "state.json"

    def optimizer(self, rank: int) -> Path:
        """Optimizer statistics of a rank, keyed by parameter name."""
        return self.training_state / f"optimizer-{rank:05d}.safetensors"

    def low_bits(self, rank: int) -> Path:
        """Low halves of exact fp32 weights, keyed by parameter name; only where there are any."""
        return self.training_state / f"low_bits-{rank:05d}.safetensors"

    def random(self, rank: int) -> Path:
        """Random states of a rank: python, numpy, torch, CUDA."""
        return self.training_state / f"random-{rank:05d}.json"


def step_of(checkpoint: Path | str) -> int | None:
    """Give the step in a checkpoint's folder name, or None for any other name."""
    match = CHECKPOINT_NAME.fullmatch(Path(checkpoint).name)
    return int(match.group(1)) if match else None
