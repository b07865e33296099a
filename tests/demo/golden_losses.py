"""The first losses of demo.yaml; ``python -m tests.demo.golden_losses`` records them anew."""

import json
import queue
import tempfile
from pathlib import Path

import msgspec
import torch

from workbench.config.find import shipped_templates
from workbench.config.load import dump_config, resolve
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.training.build import build
from workbench.training.control_point import ControlPoint, Wish
from workbench.training.distributed import Ranks

GOLDEN = Path(__file__).parents[1] / "assets" / "demo_losses.json"
NUM_STEPS = 5


def first_losses(folder: Path) -> list[float]:
    """Train the demo's first steps on the CPU, as a rank does, and read what it recorded."""
    run = RunFolder(folder)
    config = resolve("demo").config
    training = msgspec.structs.replace(
        config.training, max_steps=NUM_STEPS, output_dir=str(folder), device="cpu"
    )
    checkpoints = msgspec.structs.replace(config.checkpoints, save_strategy="no")
    config = msgspec.structs.replace(config, training=training, checkpoints=checkpoints)
    folder.mkdir(exist_ok=True)
    run.config.write_text(dump_config(config), encoding="utf-8")
    template = shipped_templates() / "chatml.jinja"
    run.chat_template.write_bytes(template.read_bytes())
    precision = torch.get_float32_matmul_precision()  # which build sets for the whole process
    ranks = Ranks()
    wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
    built = build(
        run,
        config,
        device=torch.device("cpu"),
        ranks=ranks,
        attempt=1,
        control=ControlPoint(ranks, wishes),
        publisher=None,
    )
    try:
        built.training.train()
    finally:
        built.training.report.close()
        torch.set_float32_matmul_precision(precision)
    lines, _ = read_lines(run.metrics)
    records = [msgspec.json.decode(line.content, type=MetricsRecord) for line in lines]
    assert [record.step for record in records] == list(range(1, NUM_STEPS + 1))
    return [record.loss for record in records if record.loss is not None]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        GOLDEN.write_text(json.dumps({"losses": first_losses(Path(temporary))}, indent=2) + "\n")
