"""The cards and models that a forecast knows by name, as tables for people."""

from collections.abc import Iterator

from workbench.cli import output
from workbench.config.known_models import KNOWN_MODELS
from workbench.config.rates import CARDS


def known_lines() -> Iterator[str]:
    """Give both tables, each under what it is for."""
    yield "cards, for --gpu; as published, TFLOP/s dense in bfloat16:"
    rows = [["  card", "GiB", "TFLOP/s", "GB/s of its memory", "GB/s of its link"]]
    for name, card in CARDS.items():
        numbers = (card.memory_gib, card.peak_tflops, card.memory_gbps, card.link_gbps)
        rows.append([f"  {name}", *(f"{number:,g}" for number in numbers)])
    yield from output.columns(rows, right=(1, 2, 3, 4))
    yield ""
    yield "models, for -M/--model; an id on the hub such as Qwen/Qwen2.5-7B-Instruct is known too:"
    rows = [["  model", "family", "parameters", "layers", "vocabulary", "positions"]]
    for name, facts in KNOWN_MODELS.items():
        positions = "" if facts.max_positions is None else f"{facts.max_positions:,}"
        rows.append(
            [
                f"  {name}",
                facts.family,
                f"{facts.num_parameters / 1e9:,.2f} B",
                f"{facts.num_layers:,}",
                f"{facts.vocabulary_size:,}",
                positions,
            ]
        )
    yield from output.columns(rows, right=(2, 3, 4, 5))
