"""``workbench data``: exit statuses, JSON, looks on a terminal and in a pipe, 80 columns."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len

from tests.demo.golden_losses import GOLDEN
from tests.short_folder import short_folder
from workbench.cli.main import main
from workbench.cli.paint import Paint, visible
from workbench.cli.preview_text import document_lines, mask_bar, share, token_lines
from workbench.cli.statistics_text import length_lines, share_lines
from workbench.control.data_records import Bar, Document, Row, Share, Statistics, Token
from workbench.runs.metrics import MetricsRecord

PLAIN = Paint(has_colour=False)
ESCAPE = "\x1b["
LIMIT_SECONDS = 60


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    with short_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield work


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "workbench" / "data"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["data", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def rows_of(workplace: Path, *questioners: str, answer: str = "Yes.") -> str:
    rows = [
        {"conversations": [{"from": who, "value": f"Q{at}"}, {"from": "gpt", "value": answer}]}
        for at, who in enumerate(questioners)
    ]
    (workplace / "rows.json").write_text(json.dumps(rows))
    return "data.sources={demo: {path: rows.json}}"


# ---- check and prepare -----------------------------------------------------------------------


def test_data_without_mistakes_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = told(capsys, "check", "-t", "demo")
    assert (status, err) == (0, "")
    assert out.startswith("Data check · demo: nothing is wrong\n")
    assert "✓ 280 conversations to train, 52 to validate, 18 left for tests; 64 rows" in out


def test_findings_are_grouped_errors_first_and_exit_2(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    setting = rows_of(workplace, "human", "human", *["narrator"] * 15)
    status, out, _ = told(capsys, "check", "-t", "demo", setting)
    assert status == 2
    assert out.count("✗ role 'narrator' is unknown") == 1
    assert "    rows.json row 3 turn 1\n    rows.json row 4 turn 1\n" in out
    assert "  → map it under data.roles, or drop the row with data.skip_bad_rows" in out
    assert "rows.json row 13 turn 1" not in out
    assert f"workbench data check -t demo '{setting}' --all shows every one" in out
    marks = re.findall(r"^[✗!]", out, flags=re.MULTILINE)
    assert marks[:-1] == sorted(marks[:-1], reverse=True), "errors before warnings"


def test_all_shows_every_finding(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    setting = rows_of(workplace, "human", "human", *["narrator"] * 15)
    status, out, _ = told(capsys, "check", "-t", "demo", setting, "--all")
    assert status == 2
    assert [f"rows.json row {number} turn 1" in out for number in range(3, 18)] == [True] * 15
    assert "--all" not in out


def test_check_json_holds_every_finding(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    setting = rows_of(workplace, "human", "human", *["narrator"] * 15)
    status, out, _ = told(capsys, "check", "-t", "demo", setting, "--json")
    found = json.loads(out)
    assert status == 2
    assert set(found) == {"config", "num_errors", "num_warnings", "findings", "counts", "cache"}
    assert len(found["findings"]) == found["num_errors"] + found["num_warnings"]
    assert set(found["findings"][0]) == {"severity", "where", "what", "remedy"}
    assert sum("narrator" in each["what"] for each in found["findings"]) == 15


def test_prepare_says_what_it_came_to_and_where_it_lies(
    capsys: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    status, out, err = told(capsys, "prepare", "-t", "demo")
    counts, place = out.splitlines()
    assert (status, err) == (0, "")
    assert counts.startswith("280 conversations to train")
    (entry,) = (path for path in own_cache.iterdir() if path.is_dir())
    assert place.startswith(f"prepared in {entry} (")
    _, out, _ = told(capsys, "prepare", "-t", "demo")
    assert f"was prepared already, in {entry}" in out
    _, out, _ = told(capsys, "prepare", "-t", "demo", "--json")
    found = json.loads(out)
    assert (found["cache"], found["was_prepared"]) == (str(entry), True)
    assert found["counts"]["train_rows"] == 64


def test_prepare_of_bad_data_exits_2_and_says_nothing_on_stdout(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    status, out, err = told(capsys, "prepare", "-t", "demo", rows_of(workplace, "narrator"))
    assert (status, out) == (2, "")
    assert "role 'narrator' is unknown" in err


def files_of_tokens(cache: Path) -> dict[Path, tuple[int, int]]:
    """Give every file of tokens in the cache, with what changes when it is written anew."""
    found = [path for split in ("train", "validation") for path in cache.glob(f"*/{split}/*")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_a_run_trains_on_what_was_prepared_and_prepares_nothing_again(
    capsys: pytest.CaptureFixture[str], own_cache: Path, workplace: Path
) -> None:
    """The ids in the cache are exchanged: a run that made its own would have the known loss."""
    assert told(capsys, "prepare", "-t", "demo")[0] == 0
    (ids,) = own_cache.glob("*/train/ids")
    content = ids.read_bytes()
    ids.write_bytes(content[4:] + content[:4])
    before = files_of_tokens(own_cache)
    assert len(before) > 3
    status = main(["train", "-t", "demo", "training.max_steps=1", "training.device=cpu"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert files_of_tokens(own_cache) == before
    (line,) = (workplace / "output" / "demo-1" / "metrics.jsonl").read_text().splitlines()
    loss = msgspec.json.decode(line, type=MetricsRecord).loss
    golden = json.loads(GOLDEN.read_text("utf-8"))["losses"][0]
    assert loss != pytest.approx(golden, rel=1e-3)


# ---- preview ---------------------------------------------------------------------------------


def test_text_in_a_pipe_has_no_colour_and_marks_what_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = told(capsys, "preview", "-t", "demo", "-n", "1")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert ESCAPE not in out
    at = lines.index("  Let us talk about the sea.<|im_end|>⏎")
    assert lines[at + 1] == "  <|im_start|>assistant⏎"
    assert lines[at + 2].startswith("  Gladly. I know it only from words")
    assert set(lines[at + 3].strip()) == {"~"}
    # A blank at the end of a line that is broken there is trained like the words before it.
    assert cell_len(lines[at + 3]) == cell_len(lines[at + 2])
    assert "step 1 of 240" in out
    assert "context 256: none is longer" in out


@pytest.mark.parametrize("way", [(), ("--tokens", "-n", "2"), ("--rows", "-n", "16")])
@pytest.mark.parametrize("columns", [80, 100])
def test_no_line_is_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    workplace: Path,
    way: tuple[str, ...],
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    answer = "日本語のとても長い答え。" * 12 + "x" * 120
    setting = rows_of(workplace, *["human"] * 20, answer=answer)
    status, out, _ = told(capsys, "preview", "-t", "demo", setting, "data.max_length=2000", *way)
    assert status == 0
    assert len(out.splitlines()) > 20
    assert [line for line in out.splitlines() if cell_len(line) > columns] == []


def test_what_is_cut_off_is_told_where_it_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = told(capsys, "preview", "-t", "demo", "data.max_length=60", "-n", "1")
    assert status == 0
    assert "  ┄┄ cut: 2 more tokens are never seen ┄┄\n" in out
    overlong = ("data.max_length=60", "data.overlong=split")
    status, out, _ = told(capsys, "preview", "-t", "demo", *overlong, "-n", "30")
    assert "more tokens are in another document ┄┄" in out
    assert "tokens of it are in another document ┄┄" in out
    assert "never seen" not in out


def test_rows_that_are_cut_stand_under_one_remedy_and_a_preview_shows_two_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, _ = told(capsys, "check", "-t", "demo", "data.max_length=60")
    assert status == 0
    first, others = out.split("  → raise data.max_length, or set data.overlong: split\n", 1)
    assert "of 280 training conversations are longer than 60 tokens" in first
    cut = re.findall(r"^! .* has \d+ tokens; the last \d+\s", first, flags=re.MULTILINE)
    assert len(cut) >= 10
    assert "more, up to" in first
    assert "much the same" in first
    assert "has nothing to train" not in others
    assert "workbench data check -t demo data.max_length=60 --all shows every one" in others
    _, out, _ = told(capsys, "preview", "-t", "demo", "data.max_length=60", "-n", "1")
    before, _, rows = out.partition("Data preview")
    assert 0 < len(re.findall(r" has \d+ tokens; the last", before)) <= 4, "two of each split"
    number = json.loads(told(capsys, "check", "-t", "demo", "data.max_length=60", "--json")[1])
    assert f"--all shows all {number['num_warnings']} findings" in rows


def test_tokens_are_listed_with_the_reason_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = told(capsys, "preview", "-t", "demo", "--tokens", "--document", "5")
    assert status == 0
    for line in (
        r"     0 +2  <\|im_start\|> +<\|im_start\|> +· first of its document$",
        r"     4 +\d+  What +What +· user turn$",
        r"    13 +2  <\|im_start\|> +<\|im_start\|> +· template$",
        r"    18 +\d+  I +I +~$",
        r"    43 +3  <\|im_end\|> +<\|im_end\|> +~ stop$",
    ):
        assert re.search(line, out, flags=re.MULTILINE), line


def test_rows_show_where_documents_lie_and_positions_begin_anew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, _ = told(capsys, "preview", "-t", "demo", "--rows", "-n", "1")
    assert status == 0
    assert "row 1 of 16 · 3 documents · 256 tokens" in out
    assert re.search(r"0–91 +0–91 +50 +209  conversations\.json row 83\n", out)
    assert re.search(r"92–162 +0–70 +34 +210  conversations\.json row 127\n", out)
    assert "… 15 more rows in this step: -n 16" in out


def test_preview_json_holds_the_step_its_rows_and_the_statistics(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, _ = told(capsys, "preview", "-t", "demo", "--json", "-n", "16", "--step", "2")
    found = json.loads(out)
    assert status == 0
    assert set(found) == {"config", "findings", "step", "rows", "statistics", "counts"}
    assert found["step"]["step"] == 2
    tokens: list[dict[str, Any]] = [
        token
        for row in found["rows"]
        for document in row["documents"]
        for token in document["tokens"]
    ]
    assert len(tokens) == found["step"]["num_tokens"]
    assert sum(token["is_target"] for token in tokens) == found["step"]["num_targets"]
    assert found["statistics"]["percentiles"]["100"] == 155
    assert found["statistics"]["shares"][0] == {"length": 256, "conversations": 1.0, "tokens": 1.0}


def test_the_validation_split_and_the_config_s_flags_are_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--split", "validation", "--max-steps", "7", "data.packing=none")
    status, out, _ = told(capsys, "preview", "-t", "demo", *arguments)
    assert status == 0
    assert "validation, batch 1 of 4" in out
    status, out, _ = told(capsys, "preview", "-t", "demo", "--max-steps", "7")
    assert "step 1 of 7" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--step", "241"), "step 241: the run has 240 steps; name one from 1 to 240"),
        (("--document", "999"), "document 999: the train split has 280 documents"),
        (("--step", "0"), "argument --step"),
        (("-n", "some"), "argument -n"),
        (("--split", "test"), "argument --split"),
        (("--tokens", "--rows"), "not allowed with"),
        (("data.pakcing=none",), "did you mean packing?"),
    ],
)
def test_a_mistake_of_the_question_exits_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    status, out, err = told(capsys, "preview", "-t", "demo", *arguments)
    assert (status, out) == (2, "")
    assert named in err


def test_a_stop_token_that_is_never_a_target_is_told_and_exits_2(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    (workplace / "plain.jinja").write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    setting = f"data.chat_template={workplace / 'plain.jinja'}"
    status, out, _ = told(capsys, "preview", "-t", "demo", setting)
    assert status == 2
    assert "✗ never trains the token that ends the assistant's turn" in out
    assert "a run is refused until the errors are mended" in out


def test_help_lists_verbs_options_flags_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = told(capsys, "--help")
    assert status == 0
    assert all(verb in out for verb in ("check", "prepare", "preview"))
    status, out, _ = told(capsys, "preview", "--help", "-t", "demo")
    assert status == 0
    for word in ("--tokens", "--step", "workbench data preview -t demo", "--max-steps"):
        assert word in out


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = told(capsys, "prview")
    assert status == 2
    assert "did you mean preview?" in err


def test_the_config_may_stand_before_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-t", "demo", "data", "check"]) == 0
    assert "Data check · demo" in capsys.readouterr().out


def on_terminal(arguments: list[str], **environment: str) -> str:
    """Give what a command writes on a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "workbench", *arguments],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm-256color"} | environment,
    ) as process:
        os.close(theirs)
        content = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # so a terminal says that nobody writes any more
                break
            if not piece:
                break
            content += piece
        os.close(ours)
        assert process.wait(LIMIT_SECONDS) == 0
    return content.decode()


PREVIEW = ["data", "preview", "-t", "demo", "-n", "1"]


def test_on_a_terminal_what_is_trained_is_bold_and_underlined() -> None:
    shown = on_terminal(PREVIEW)
    assert "\x1b[1;4;32mGladly. I know it only from words" in shown
    assert "\x1b[1;4;7;32m<|im_end|>\x1b[0m" in shown
    assert "\x1b[2;7m<|im_start|>\x1b[0m" in shown
    assert "~~~" not in shown


@pytest.mark.parametrize("way", ["NO_COLOR", "--no-color"])
def test_whoever_wants_no_colour_gets_marks_in_its_place(way: str) -> None:
    if way == "NO_COLOR":
        shown = on_terminal(PREVIEW, NO_COLOR="1")
    else:
        shown = on_terminal([*PREVIEW, "--no-color"])
    assert ESCAPE not in shown
    assert "~~~~~~~~" in shown


# ---- drawing ---------------------------------------------------------------------------------


def token(text: str, *, is_target: bool = False, part: str = "") -> Token:
    return Token(id=7, piece=text or "Ã", text=text, is_target=is_target, part=part)


def document(*tokens: Token, start: int = 0) -> Document:
    return Document(number=1, where="rows.json row 1", start=start, tokens=list(tokens))


def test_marks_stand_under_the_very_columns_of_what_is_trained() -> None:
    found = document(
        token("ab"), token("日本", is_target=True), token("c"), token("d", is_target=True)
    )
    assert list(document_lines(found, PLAIN, 80)) == ["  ab日本cd", "    ~~~~ ~"]


def test_a_long_line_is_broken_behind_a_blank_and_a_long_word_where_it_must() -> None:
    found = document(*[token(f"{word} ") for word in ("one", "two", "three", "x" * 30)])
    lines = [line.strip() for line in document_lines(found, PLAIN, 18)]
    assert lines == ["one two three", "x" * 16, "x" * 14]


def test_nothing_of_a_document_is_lost_by_breaking_it() -> None:
    words = ["alpha ", "beta", "\n", "gamma delta ", "ünï", "日本語", "\n\n", "x" * 50]
    found = document(*(token(word, is_target=at % 2 == 0) for at, word in enumerate(words)))
    for width in (12, 20, 33, 80):
        lines = [line[2:] for line in document_lines(found, PLAIN, width) if "~" not in line]
        assert "".join(lines) == "".join(words).replace("\n", "⏎")


def test_data_cannot_steer_the_terminal() -> None:
    found = document(token("\x1b[31mred\x07 \u202eturned\x9b2J"))
    (line,) = document_lines(found, PLAIN, 80)
    assert line == "  ␛[31mred␇ ‹202E›turned‹009B›2J"
    assert visible("a\tb") == "a⇥b"


def test_a_character_of_several_tokens_shows_the_bytes_of_each() -> None:
    found = document(token("", part="c3"), token("ü", is_target=True, part="bc"))
    _, first, second = token_lines(found, PLAIN, 80)
    assert "(c3)" in first
    assert "ü (bc)" in second


def test_the_bar_of_a_row_shows_mask_borders_and_padding() -> None:
    first = document(*[token("a")] * 4, *[token("b", is_target=True)] * 4)
    second = document(token("a"), *[token("b", is_target=True)] * 3, start=8)
    row = Row(number=1, index=1, documents=[first, second], num_padding=4)
    assert mask_bar(row, 16, 16, PLAIN) == "░░░░████┃███····"
    assert mask_bar(row, 16, 8, PLAIN) == "░░██┃█··"


def statistics(**changed: object) -> Statistics:
    given: dict[str, object] = {
        "split": "train",
        "num_conversations": 100,
        "num_documents": 100,
        "num_rows": 50,
        "max_length": 64,
        "num_longer": 1,
        "percentiles": {50: 20, 90: 40, 95: 50, 99: 60, 100: 90},
        "mean_length": 21.0,
        "histogram": [Bar(low=1, high=32, count=90), Bar(low=33, high=64, count=9),
                      Bar(low=65, high=90, count=1)],
        "shares": [Share(length=64, conversations=0.9999, tokens=0.5)],
        "paddings": [],
        "tokens_per_step": 1.0,
        "targets_per_step": 1.0,
        "positions_per_step": 1.0,
        "steps_per_epoch": 1,
        "num_steps": 1,
        "documents_per_row": 2.0,
        "target_share": 0.5,
    }  # fmt: skip
    return msgspec.convert({**msgspec.to_builtins(given), **changed}, Statistics)


def test_the_cut_crosses_the_histogram_where_it_is() -> None:
    lines = list(length_lines(statistics(), PLAIN, 80))
    cut = next(at for at, line in enumerate(lines) if "context 64: 1 are longer" in line)
    assert "33–64" in lines[cut - 1]
    assert "65–90" in lines[cut + 1]
    assert re.search(r"65–90  [▏▎▍▌▋▊▉█] +1$", lines[cut + 1]), "one of a hundred is still seen"


@pytest.mark.parametrize(
    ("part", "shown"),
    [(0, "0 %"), (0.014, "1.4 %"), (0.34, "34 %"), (0.9999, "99.9 %"), (1, "100 %")],
)
def test_a_share_is_rounded_but_never_to_all(part: float, shown: str) -> None:
    assert share(part, 1) == shown
    assert share(0, 0) == "0 %"


def test_a_share_is_whole_only_if_it_is() -> None:
    row = list(share_lines(statistics(), PLAIN, 80))[-1]
    assert "99.9 %" in row
    assert "◂ data.max_length" in row
