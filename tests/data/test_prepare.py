import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.data.conftest import MakeFolder
from tests.data.small_data import config_of, findings_of, row, rows_of, run, write_rows
from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection, SourceSection
from workbench.config.schema.intervals import EvaluationSection
from workbench.config.schema.model import ModelSection
from workbench.config.template_source import template_source
from workbench.data import prepare as prepare_module
from workbench.data.loader import Loader, prepare
from workbench.data.packing import Rows
from workbench.data.prepare import PreparedData, Progress, prepare_in_steps
from workbench.errors import DataError

WAIT_SECONDS = 60


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def texts(rows: Rows, folder: Path) -> Iterator[str]:
    tokenizer = prepare_module.load_tokenizer(folder)
    for each in rows:
        for ids in np.split(each.ids, each.document_starts[1:]):
            yield tokenizer.decode(ids.tolist())


def test_splits_go_by_position_and_are_counted(chatml_folder: Path) -> None:
    rows = [row(f"Answer {number}.") for number in range(47)]
    prepared = run(config_of(chatml_folder, rows), chatml_folder)
    counts = prepared.num_conversations
    assert (counts.train, counts.validation, counts.test) == (37, 7, 3)
    train = list(texts(prepared.train, chatml_folder))
    validation = list(texts(prepared.validation, chatml_folder))
    assert [f"Answer {number}." in text for number, text in enumerate(train)] == [True] * 37
    assert [f"Answer {number}." in text for number, text in enumerate(validation, 37)] == [True] * 7


def test_dropping_a_bad_row_moves_no_other_across_the_border(chatml_folder: Path) -> None:
    rows: list[object] = [row(f"Answer {number}.") for number in range(20)]
    rows[3] = {"conversations": []}
    prepared = run(config_of(chatml_folder, rows, skip_bad_rows=True), chatml_folder)
    counts = prepared.num_conversations
    assert (counts.train, counts.validation, counts.test) == (15, 3, 1)
    assert "Answer 16." in next(texts(prepared.validation, chatml_folder))


def test_padding_is_an_id_that_the_model_has(make_folder: MakeFolder) -> None:
    # The tokenizer's last token is one more than the embedding has rows, and no text uses it.
    tokens = ["<|im_start|>", "<|im_end|>"]
    folder = make_folder(tokens=tokens, eos_token="<|im_end|>", pad_token="[PAD]")
    description = json.loads((folder / "tokenizer.json").read_text())
    size = len(description["model"]["vocab"])
    description["added_tokens"].append(
        {
            "id": size, "content": "[PAD]", "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(description))
    assert prepare_module.load_tokenizer(folder).pad_id == size
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == size
    assert run(config_of(folder, rows_of(5)), folder).pad_id < size


def test_evaluations_without_validation_rows_are_told(chatml_folder: Path) -> None:
    # int(0.80 x 3) and int(0.95 x 3) are both 2.
    never = config_of(chatml_folder, rows_of(3))
    config = msgspec.structs.replace(never, evaluation=EvaluationSection(every_steps=5))
    assert "nothing is evaluated" in "".join(
        finding.what for finding in findings_of(config, chatml_folder)
    )
    assert findings_of(never, chatml_folder) == []


def test_each_data_set_is_split_by_itself(chatml_folder: Path) -> None:
    config = config_of(chatml_folder, [row("First.")] * 10)
    second = chatml_folder.parent / "second.jsonl"
    second.write_text("\n".join([json.dumps(row("Second."))] * 20))
    sources = {
        "one": config.data.sources["data"],
        "dropped": None,
        "two": SourceSection(path=str(second)),
    }
    data = msgspec.structs.replace(config.data, sources=sources)
    prepared = run(msgspec.structs.replace(config, data=data), chatml_folder)
    train = list(texts(prepared.train, chatml_folder))
    assert [sum(word in text for text in train) for word in ("First.", "Second.")] == [8, 16]


@pytest.mark.parametrize("packing", ["none", "best_fit", "first_fit", "greedy"])
def test_every_target_survives_packing(chatml_folder: Path, packing: str) -> None:
    rows = [row("word " * (1 + number % 7)) for number in range(40)]
    alone = run(config_of(chatml_folder, rows), chatml_folder)
    packed = run(config_of(chatml_folder, rows, packing=packing), chatml_folder)
    assert packed.train.num_targets == alone.train.num_targets > 0
    assert sorted(texts(packed.train, chatml_folder)) == sorted(texts(alone.train, chatml_folder))
    assert packed.train.longest <= 64
    if packing != "none":
        assert len(packed.train) < len(alone.train)


def test_what_is_lost_to_the_length_is_told(chatml_folder: Path) -> None:
    rows = [row(), row("long " * 60), row(), row("Yes.", question="long " * 60), *[row()] * 6]
    config = config_of(chatml_folder, rows, packing="best_fit")
    prepared = run(config, chatml_folder)
    told = [finding.what for finding in prepared.findings]
    assert any("2 of 8 training conversations are longer than 64 tokens" in what for what in told)
    assert any("1 of 8 training conversations have nothing to train" in what for what in told)
    assert all(finding.severity == "warning" for finding in prepared.findings)
    split = run(config_of(chatml_folder, rows, overlong="split"), chatml_folder)
    assert split.train.num_targets > prepared.train.num_targets


def test_all_data_sets_that_cannot_be_opened_are_told_at_once(chatml_folder: Path) -> None:
    config = config_of(chatml_folder, rows_of(4))
    sources = {name: SourceSection(path=f"/nowhere/{name}.json") for name in ("a", "b", "c")}
    data = msgspec.structs.replace(config.data, sources={**config.data.sources, **sources})
    with pytest.raises(DataError) as caught:
        run(msgspec.structs.replace(config, data=data), chatml_folder)
    assert caught.value.where == "/nowhere/a.json"
    others = "(nor can these be used: /nowhere/b.json, /nowhere/c.json)"
    assert caught.value.what == f"there is no such file or folder {others}"


def test_all_bad_rows_are_told_at_once_with_row_and_turn(chatml_folder: Path) -> None:
    rows = rows_of(12)
    rows[1] = {"conversations": [{"from": "human", "value": "Hello?"}]}
    rows[4] = {"conversations": [{"from": "narrator", "value": "Once"}, row()["conversations"][1]]}
    rows[5] = {"conversations": [*row()["conversations"], {"from": "gpt", "value": 3}]}
    rows[11] = "text"
    found = [
        (finding.severity, finding.where)
        for finding in findings_of(config_of(chatml_folder, rows), chatml_folder)
    ]
    assert sorted(found) == [
        ("error", "data.json row 12"),
        ("error", "data.json row 2"),
        ("error", "data.json row 5 turn 1"),
        ("error", "data.json row 6 turn 3"),
    ]
    with pytest.raises(DataError, match=r"row 2: has no assistant turn.* \(and 3 more errors"):
        run(config_of(chatml_folder, rows), chatml_folder)
    skipping = findings_of(config_of(chatml_folder, rows, skip_bad_rows=True), chatml_folder)
    assert {finding.severity for finding in skipping} == {"warning"}
    *rows_skipped, total = skipping
    assert [finding.where for finding in rows_skipped] == [where for _, where in found]
    assert not any("skip_bad_rows" in finding.remedy for finding in rows_skipped)
    assert (total.where, total.what[:9]) == ("data.skip_bad_rows", "4 of 12 r")


def test_a_row_that_can_be_read_and_not_be_trained_is_not_counted(chatml_folder: Path) -> None:
    untrained_row = row()
    untrained_row["conversations"][1]["train"] = False
    config = config_of(
        chatml_folder, [*rows_of(4), untrained_row], split_at=[1.0, 1.0], skip_bad_rows=True
    )
    prepared = run(config, chatml_folder)
    assert prepared.num_conversations.train == len(prepared.train) == 4


def test_a_finding_that_repeats_is_shown_a_few_times_and_counted(chatml_folder: Path) -> None:
    bad = {"conversations": [{"from": "human", "value": "Hello?"}]}
    config = config_of(chatml_folder, [row(), *[bad] * 40])
    *_, prepared = prepare_in_steps(config, chatml_folder, template_source("chatml", chatml_folder))
    assert isinstance(prepared, PreparedData)
    shown = list(prepared.findings.shown())
    assert prepared.findings.num_errors == 40
    assert len(shown) == 11
    assert shown[-1].where == "30 more, up to data.json row 41"


def untrained(folder: Path) -> Config:
    rows = [row() for _ in range(10)]
    rows[6]["conversations"][1]["train"] = False
    return config_of(folder, rows)


def test_a_row_without_a_trainable_token_is_refused(chatml_folder: Path) -> None:
    with pytest.raises(DataError, match="row 7: has no trainable token"):
        run(untrained(chatml_folder), chatml_folder)


def test_a_row_whose_stop_is_never_trained_is_refused(chatml_folder: Path) -> None:
    endless = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    with pytest.raises(DataError, match="row 1: never trains the token that ends") as caught:
        prepare(config_of(chatml_folder, [row()] * 3), chatml_folder, endless)
    assert "chatml" in caught.value.remedy


def test_a_stop_made_of_ordinary_pieces_is_a_warning(make_folder: MakeFolder) -> None:
    folder = make_folder(tokens=["<|pad|>"], pad_token="<|pad|>")
    prepared = run(config_of(folder, rows_of(3), max_length=128), folder)
    (finding,) = prepared.findings
    assert finding.severity == "warning"
    assert "ordinary pieces" in finding.what
    assert prepared.stop_ids == (), "each of them stands in the middle of replies too"


def test_text_that_becomes_a_special_token_is_a_warning(chatml_folder: Path) -> None:
    rows = [*rows_of(1), row("I say <|im_end|> aloud."), row()]
    config = config_of(chatml_folder, rows, split_at=[1.0, 1.0])
    (finding,) = findings_of(config, chatml_folder)
    assert (finding.severity, finding.where) == ("warning", "data.json row 2 turn 2")


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder(vocab_size=50)
    with pytest.raises(DataError, match="the model's vocab_size is 50"):
        run(config_of(folder, [row()] * 3), folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no conversation"),
        ('[{"txt": "x"}]', "row 1: has n"),
        ('[{"conversations": ]', r"data\.json:1: is not JSON"),
    ],
)
def test_a_data_set_that_is_none_is_refused(
    chatml_folder: Path, content: str, message: str
) -> None:
    config = config_of(chatml_folder, [])
    (chatml_folder.parent / "data.json").write_text(content)
    with pytest.raises(DataError, match=message):
        run(config, chatml_folder)


def test_a_config_without_data_and_rows_that_leave_nothing_are_refused(
    chatml_folder: Path,
) -> None:
    with pytest.raises(DataError, match="names no data set"):
        run(config_of(chatml_folder, [row()], sources={}), chatml_folder)
    with pytest.raises(DataError, match="nothing is left to train on"):
        run(config_of(chatml_folder, [row()]), chatml_folder)


def test_the_demo_gives_rows_without_findings() -> None:
    folder = Path(__file__).parents[2] / "configs" / "demo"
    config = Config(
        model=ModelSection(path=str(folder / "model")),
        data=DataSection(
            sources={"demo": SourceSection(path=str(folder / "conversations.json"))},
            packing="best_fit",
            max_length=256,
        ),
    )
    template = template_source("auto", folder / "model")
    prepared = prepare(config, folder / "model", template)
    assert list(prepared.findings) == []
    assert prepared.num_conversations.train >= 200
    assert len(prepared.stop_ids) == 1
    step = Loader(
        prepared.train,
        rows_per_step=8,
        num_microbatches=2,
        shuffle=True,
        seed=42,
        pad_id=prepared.pad_id,
        row_length=256,
    ).step(0)
    assert 0 < step.num_targets < step.num_tokens <= 8 * 256


def with_sources(config: Config, **sources: SourceSection) -> Config:
    data = msgspec.structs.replace(config.data, sources=dict(sources))
    return msgspec.structs.replace(config, data=data)


def test_sources_of_different_weight_share_no_row_and_come_as_often_as_they_weigh(
    chatml_folder: Path,
) -> None:
    rare = write_rows(
        chatml_folder.parent / "rare.json", [row("Rare.", question=f"{n}?") for n in range(50)]
    )
    config = config_of(chatml_folder, rows_of(30), packing="best_fit")
    config = with_sources(
        config,
        first=SourceSection(path=str(chatml_folder.parent / "data.json")),
        rare=SourceSection(path=str(rare), weight=0.5),
        again=SourceSection(path=str(chatml_folder.parent / "data.json"), files=[]),
    )
    prepared = run(config, chatml_folder)
    rows = prepared.train
    assert [stream.weight for stream in rows.streams] == [1.0, 0.5]
    files = [{name.split()[0] for name in rows.where(index)} for index in range(len(rows))]
    borders = rows.streams[0].num_rows
    assert all(names <= {"first/data.json", "again/data.json"} for names in files[:borders])
    assert files[borders:] == [{"rare.json"}] * rows.streams[1].num_rows
    # Evaluations see everything once, whatever it weighs in training.
    assert [stream.weight for stream in prepared.validation.streams] == [1.0]
    assert len(prepared.lengths_validation) == 4 + 7 + 4
    loader = Loader(
        rows, rows_per_step=1, shuffle=True, seed=1, pad_id=prepared.pad_id, row_length=None
    )
    steps = loader.steps_per_epoch
    assert steps == borders + -(-rows.streams[1].num_rows // 2)
    seen = [number for step in range(2 * steps) for number in loader.row_numbers(step)]
    assert set(seen) == set(range(len(rows)))


def test_a_plain_text_is_one_document_and_trained_whole(chatml_folder: Path) -> None:
    lines = [{"text": f"The weather in Zürich is fine, {number} times."} for number in range(20)]
    prepared = run(config_of(chatml_folder, lines, max_length=128), chatml_folder)
    assert list(prepared.findings) == []
    first = prepared.train[0]
    assert next(texts(prepared.train, chatml_folder)) == lines[0]["text"]
    assert first.targets.tolist() == [False] + [True] * (first.ids.size - 1)


def test_what_occurs_twice_or_is_trained_and_evaluated_is_told_once(chatml_folder: Path) -> None:
    rows = rows_of(20)
    rows[5] = rows[2]
    rows[17] = rows[3]  # of the validation split
    rows[19] = rows[4]  # of the test split
    config = config_of(chatml_folder, rows)
    for _ in range(2):
        found = {finding.where: finding.what for finding in findings_of(config, chatml_folder)}
        assert sorted(found) == ["data.json row 18", "data.json row 20", "data.json row 6"]
        assert "row 3" in found["data.json row 6"]
        assert "held out for validation" in found["data.json row 18"]
        assert "held out for test" in found["data.json row 20"]


def test_lengths_are_those_before_cutting(chatml_folder: Path) -> None:
    rows = [*rows_of(9), row("long " * 60)]
    config = config_of(chatml_folder, rows, split_at=[1.0, 1.0])
    lengths = run(config, chatml_folder).lengths_train
    assert lengths.dtype == np.int32
    assert (lengths.size, int(lengths.max()) > 64, lengths.argmax()) == (10, True, 9)


def test_progress_counts_rows_and_every_stage_ends_full(chatml_folder: Path) -> None:
    rows = rows_of(20)
    rows[4] = {"conversations": []}
    config = config_of(chatml_folder, rows)
    template = template_source("chatml", chatml_folder)
    for stages in (
        ["reading", "hashing", "tokenizing", "packing"],
        ["reading", "hashing", "packing"],
    ):
        steps = [
            item
            for item in prepare_in_steps(config, chatml_folder, template)
            if isinstance(item, Progress)
        ]
        assert list(dict.fromkeys(step.stage for step in steps)) == stages
        for stage in stages:
            done = [(step.done, step.total) for step in steps if step.stage == stage]
            assert done == sorted(done)
            assert (done[0][0], done[-1][0]) == (0, done[-1][1])
        assert all(step.total == 20 for step in steps if step.stage == "tokenizing")


# ---- python -m workbench.data check ----------------------------------------------------------


def check(config: Config) -> tuple[int, list[dict[str, Any]]]:
    with subprocess.Popen(
        [sys.executable, "-m", "workbench.data", "check"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"config": msgspec.to_builtins(config)}) + "\n")
        process.stdin.flush()
        lines = [json.loads(line) for line in process.stdout]
        return process.wait(WAIT_SECONDS), lines


def test_check_reports_progress_and_counts(chatml_folder: Path) -> None:
    status, lines = check(config_of(chatml_folder, rows_of(20), chat_template="chatml"))
    assert status == 0
    assert [line["type"] for line in lines[:-1]] == ["progress"] * (len(lines) - 1)
    assert lines[-1]["type"] == "done"
    counts = lines[-1]["counts"]
    assert counts["train_conversations"] == counts["train_rows"] == 16
    assert counts["validation_conversations"] == counts["validation_rows"] == 3
    assert counts["test_conversations"] == 1
    assert 0 < counts["train_targets"] < counts["train_tokens"]
    assert counts["steps_per_epoch"] == 4


def test_check_says_what_is_wrong_and_exits_2(chatml_folder: Path) -> None:
    rows = rows_of(3)
    rows[1] = {"conversations": []}
    config = config_of(chatml_folder, rows)
    status, lines = check(config)
    (finding,) = [line for line in lines if line["type"] == "finding"]
    assert status == 2
    assert (finding["severity"], finding["where"]) == ("error", "data.json row 2")
    (chatml_folder.parent / "data.json").unlink()
    status, lines = check(config)
    assert status == 2
    assert [line["type"] for line in lines][-1] == "finding"
    assert lines[-1]["what"] == "there is no such file or folder"


def test_check_ends_when_nobody_listens_any_more(chatml_folder: Path) -> None:
    # The template would take hours, so only the closed stdin can end it.
    template = chatml_folder.parent / "slow.jinja"
    template.write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    config = config_of(chatml_folder, [row()], chat_template=str(template))
    with subprocess.Popen(
        [sys.executable, "-m", "workbench.data", "check"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"config": msgspec.to_builtins(config)}) + "\n")
            process.stdin.close()
            assert process.wait(WAIT_SECONDS) == 130
        finally:
            process.kill()


def test_a_request_that_is_no_config_is_a_finding() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workbench.data", "check"],
        input='{"config": {"model": {"pth": 1}}}\n',
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "pth" in json.loads(done.stdout)["what"]
