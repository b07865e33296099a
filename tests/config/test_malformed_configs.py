"""The corpus of malformed configs: every mistake told at once, in the words written beside it.

``tests/assets/config/NAME.yaml`` is the config, ``NAME.txt`` all that `workbench show` says of it:
one line per mistake, in file order, each with file:line, key, cause and remedy. ``parts/`` holds
what some of them extend.
"""

from pathlib import Path

import pytest

from workbench.cli.main import main
from workbench.config.load import ConfigProblems, resolve
from workbench.config.yaml_reader import read_text

CORPUS = Path(__file__).parent.parent / "assets" / "config"
CASES = sorted(path.stem for path in CORPUS.glob("*.yaml"))
# Of these the whole file is the mistake.
WITHOUT_LINE = ("utf16", "binary", "extends_binary")


@pytest.fixture(autouse=True)
def in_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CORPUS)
    monkeypatch.delenv("NO_SUCH_FOLDER_IS_SET", raising=False)


def test_the_corpus_is_large_and_every_case_has_its_message() -> None:
    assert len(CASES) >= 60
    assert sorted(path.stem for path in CORPUS.glob("*.txt")) == CASES


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_config_is_refused_in_the_words_beside_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "-t", f"{name}.yaml"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (CORPUS / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_every_mistake_says_where_what_and_what_to_do(name: str) -> None:
    with pytest.raises(ConfigProblems) as caught:
        resolve(f"{name}.yaml")
    for problem in caught.value.problems:
        assert problem.file is not None
        assert problem.line is not None or name in WITHOUT_LINE
        assert problem.what
        assert problem.remedy
        assert problem.what == problem.what.strip().removesuffix(".")
        assert problem.remedy == problem.remedy.strip().removesuffix(".")
        assert problem.remedy != problem.what


@pytest.mark.parametrize("name", CASES)
def test_a_machine_without_libyaml_finds_the_same_mistakes(name: str) -> None:
    content = (CORPUS / f"{name}.yaml").read_bytes()
    text = content.decode("latin-1")
    assert repr(read_text(text)) == repr(read_text(text, by_libyaml=False))


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "---\n", "{}\n", "\ufeff"])
def test_a_config_that_states_nothing_is_no_mistake(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text(content, encoding="utf-8")
    assert resolve(str(file)).config.training.seed == 42
