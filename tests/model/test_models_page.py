"""The page on models says what the table of families says."""

import re
from pathlib import Path

from workbench.config.family_table import FAMILIES, NEEDED
from workbench.config.known_models import KNOWN_MODELS

PAGE = (Path(__file__).parents[2] / "docs" / "how_to" / "models.md").read_text("utf-8")


def rows(*, after: str) -> list[list[str]]:
    """The cells of the table that follows a line, without its head."""
    lines = PAGE[PAGE.index(after) :].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[lines.index(after) + 2 :]
        if line.startswith("|")
    ]


def test_every_family_has_its_row_and_no_other() -> None:
    head = next(line for line in PAGE.splitlines() if line.startswith("| `model_type`"))
    table = rows(after=head)
    families = [row[0].strip("`") for row in table]
    assert set(families[: len(FAMILIES)]) == set(FAMILIES)
    assert not set(families) & set(NEEDED)


def test_fields_that_give_biases_or_windows_are_those_of_the_family() -> None:
    head = next(line for line in PAGE.splitlines() if line.startswith("| `model_type`"))
    for row in rows(after=head)[: len(FAMILIES)]:
        family, stated = FAMILIES[row[0].strip("`")], set(re.findall(r"`(\w+)`", row[3]))
        biases = {name for switch in family.bias_switches for name in switch.fields}
        assert {name for name in stated if name.endswith("bias")} <= biases
        assert all(stated & set(switch.fields) for switch in family.bias_switches)
        assert ("layer_types" in stated) <= (family.windows not in ("none", "all"))
        assert ("no_rope_layers" in stated) == family.leaves_unturned


def test_names_that_the_page_gives_are_known() -> None:
    names = re.findall(r"`([a-z]\w*[\d.]*-[\w.-]+)`", PAGE[PAGE.index("## Before a download") :])
    assert names
    assert set(names) <= set(KNOWN_MODELS)


def test_no_model_is_both_supported_and_in_need() -> None:
    assert not set(FAMILIES) & set(NEEDED)
