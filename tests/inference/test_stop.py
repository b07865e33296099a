"""Where a reply ends: by token, by text, across tokens, and with special tokens in it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.inference.stop import StopDetector, TextPart, longest_open_end


def feed_all(detector: StopDetector, texts: list[str]) -> list[str]:
    """Feed texts until the reply stops; give what was shown each time, the end included."""
    shown = []
    for text in texts:
        shown.append(detector.feed([TextPart(text)] if text else []))
        if detector.has_stopped:
            return shown
    return [*shown, detector.finish()]


def test_a_stop_string_across_three_tokens_is_never_shown() -> None:
    detector = StopDetector([], ["END"])
    assert feed_all(detector, ["the E", "N", "D. More"]) == ["the ", "", ""]
    assert detector.stopped_by == "END"


def test_text_that_only_began_like_a_stop_string_is_shown_once_it_cannot_become_one() -> None:
    detector = StopDetector([], ["END"])
    assert feed_all(detector, ["the E", "N", "V"]) == ["the ", "", "ENV", ""]
    assert not detector.has_stopped


def test_text_held_back_is_shown_when_the_reply_is_cut() -> None:
    assert feed_all(StopDetector([], ["END"]), ["the EN"]) == ["the ", "EN"]


def test_a_stop_string_may_contain_a_special_token_that_is_not_shown() -> None:
    detector = StopDetector([], ["!<|end|>"])
    assert detector.feed([TextPart("Hi!")]) == "Hi"
    assert detector.feed([TextPart("<|end|>", is_shown=False)]) == ""
    assert detector.stopped_by == "!<|end|>"


def test_special_tokens_are_not_shown() -> None:
    detector = StopDetector([], [])
    parts = [TextPart("a"), TextPart("<|x|>", is_shown=False), TextPart("b")]
    assert detector.feed(parts) == "ab"


def test_a_stop_token_gives_out_what_was_held_back() -> None:
    detector = StopDetector([7], ["END"])
    assert detector.is_stop_id(7)
    assert not detector.is_stop_id(8)
    assert detector.feed([TextPart("the E")]) == "the "
    assert detector.finish([TextPart("N")], stop_id=7) == "EN"
    assert detector.stopped_by == 7


def test_text_that_becomes_readable_at_the_end_can_still_be_a_stop_string() -> None:
    detector = StopDetector([7], ["END"])
    detector.feed([TextPart("the EN")])
    assert detector.finish([TextPart("D")], stop_id=7) == ""
    assert detector.stopped_by == "END"


def test_the_earliest_stop_string_counts() -> None:
    detector = StopDetector([], ["lazy", "fox"])
    assert feed_all(detector, ["the quick fox and the lazy dog"]) == ["the quick "]
    assert detector.stopped_by == "fox"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("abEN", ["END", "N."], 2), ("abN", ["END", "N."], 1), ("END", ["END"], 0), ("", ["x"], 0)],
)
def test_only_an_open_end_is_held_back(text: str, stops: list[str], expected: int) -> None:
    assert longest_open_end(text, stops) == expected


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_what_is_shown_is_the_text_up_to_the_stop_that_completes_first(
    texts: list[str], stops: list[str]
) -> None:
    detector = StopDetector([], stops)
    shown = "".join(feed_all(detector, texts))
    # The slow and obvious way: after each token, look at everything that has been said.
    expected = whole = "".join(texts)
    for said in itertools.accumulate(texts):
        if found := [said.find(stop) for stop in stops if stop in said]:
            expected = whole[: min(found)]
            break
    assert shown == expected
    assert detector.has_stopped == any(stop in whole for stop in stops)
