from pathlib import Path

import pytest

from workbench.config.added_tokens_file import AddedTokens, NamedToken, read_added_tokens
from workbench.config.problems import ConfigProblems

AS_DOCUMENTED = """\
pad_token: {token: "<|pad|>", init: zero, if_missing: true}   # keep an existing pad token
eos_token: "<|im_end|>"                                       # short form: replace, default init
special_tokens: ["<|im_start|>"]
regular_tokens: []
"""


def read(folder: Path, text: str) -> AddedTokens:
    (folder / "tokens.yaml").write_text(text)
    return read_added_tokens(folder / "tokens.yaml")


def test_both_forms_and_the_lists_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, AS_DOCUMENTED) == AddedTokens(
        named={
            "pad_token": NamedToken(token="<|pad|>", init="zero", if_missing=True),
            "eos_token": NamedToken(token="<|im_end|>"),
        },
        special_tokens=("<|im_start|>",),
    )
    assert read(tmp_path, "bos_token: {token: a, init: 'copy:<s>'}").named["bos_token"].init == (
        "copy:<s>"
    )
    assert read(tmp_path, "") == AddedTokens()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eos_tokn: x", r"tokens\.yaml:1 eos_tokn: no such key; did you mean eos_token\?"),
        ("a: 1", "no such key; use bos_token, eos_token"),
        ("eos_token: {init: zero}", "names no token"),
        ("eos_token: {token: a, int: zero}", r"eos_token\.int: no such key; did you mean init\?"),
        (
            "eos_token: {token: a, init: random}",
            "'random' is no way to begin a row; use zero, mean",
        ),
        ("eos_token: {token: a, init: 'copy:'}", "'copy:' is no way to begin a row"),
        ("eos_token: {token: a, init: 3}", "3 is no way to begin a row"),
        ("eos_token: {token: a, if_missing: 'yes'}", "use true or false"),
        ("eos_token: 3", "eos_token: is the number 3; give the token as a text"),
        ("eos_token: ''", "is an empty text"),
        ("eos_token:", "eos_token: is "),
        ("eos_token: [a]", "eos_token: is "),
        ("special_tokens: a", "special_tokens: is .*; give a list of texts"),
        ("regular_tokens: [a, 3]", "an item is the number 3"),
        ("special_tokens: ['']", "an item is an empty text"),
        ("[a]", "mapping"),
        ("eos_token: a\neos_token: b", "eos_token"),
    ],
)
def test_every_mistake_has_its_line_and_its_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigProblems, match=message) as told:
        read(tmp_path, text)
    assert told.value.exit_status == 2


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblems) as told:
        read(tmp_path, "a: 1\neos_token: 2\nspecial_tokens: 3\n")
    assert len(told.value.problems) == 3


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblems, match="cannot be read: No such file"):
        read_added_tokens(tmp_path / "absent.yaml")
