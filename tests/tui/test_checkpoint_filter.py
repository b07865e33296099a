"""The small language in which checkpoints are filtered."""

import pytest

from workbench.tui.checkpoint_filter import Filterable, FilterError, parse

BEST = Filterable(
    "demo-1/checkpoint-200 verified",
    {"eval": 1.2, "loss": None, "size": 14 * 2**30, "step": 200, "age": 7200.0},
    {
        "run": ("demo-1",),
        "tag": ("best", "keep"),
        "has": ("weights", "resume"),
        "state": ("verified",),
        "model": ("mistral_7b",),
    },
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "demo",
        "DEMO-1/check",
        "eval<1.25",
        "eval<=1.2 eval>=1.2",
        "size>10G",
        "size<15GiB",
        "step=200",
        "age<3h",
        "age>1.5h",
        "tag:best -tag:tmp",
        "has:resume model:mistral run:demo state:ver",
        "-tag:tmp -size>20G -other",
    ],
)
def test_these_find_it(text: str) -> None:
    assert parse(text)(BEST)


@pytest.mark.parametrize(
    "text",
    [
        "demo-2",
        "eval>1.25",
        "size>10T",
        "tag:tmp",
        "-tag:best",
        "demo eval>1.25",
        "age<1h",
        "has:more",
    ],
)
def test_these_do_not(text: str) -> None:
    assert not parse(text)(BEST)


@pytest.mark.parametrize("text", ["loss<9", "loss>0", "loss=0"])
def test_a_number_that_is_not_known_satisfies_nothing(text: str) -> None:
    assert not parse(text)(BEST)


@pytest.mark.parametrize(
    ("text", "says"),
    [("eval<x", "x is no number"), ("size>10h", "10h is no number with k, m, g, t behind it")],
)
def test_a_comparison_without_a_number_is_told(text: str, says: str) -> None:
    with pytest.raises(FilterError, match=says):
        parse(text)
