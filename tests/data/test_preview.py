"""The preview shows the very batches of a run, and says truly why a token is no target."""

import json
import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.conftest import MakeFolder
from tests.demo.demo_files import MODEL
from workbench.config.find import shipped_templates
from workbench.config.flags import parse_overrides
from workbench.config.load import dump_config, resolve
from workbench.config.schema.config import Config
from workbench.control.data_records import Document, Row, Split, Step, Token
from workbench.data.batch import Batch
from workbench.data.chat_template import ChatTemplate
from workbench.data.loader import Loader
from workbench.data.prepare import PreparedData, prepare
from workbench.data.preview import Preview, tokens_of
from workbench.data.statistics import loader_of, num_steps, statistics
from workbench.data.tokenizer import load_tokenizer
from workbench.data.turns import Turns
from workbench.errors import DataError
from workbench.runs.layout import RunFolder
from workbench.training.build import build
from workbench.training.control_point import ControlPoint, Wish
from workbench.training.distributed import Ranks
from workbench.training.loop import Training

CHATML = (shipped_templates() / "chatml.jinja").read_text("utf-8")
TOKENIZER = load_tokenizer(MODEL)


def config_of(*settings: str) -> Config:
    shared = ("training.device=cpu", "checkpoints.save_strategy=no")
    return resolve("demo", overrides=parse_overrides([*shared, *settings])).config


def prepared_of(config: Config) -> PreparedData:
    return prepare(config, MODEL, CHATML)


def preview_of(config: Config, prepared: PreparedData, split: Split = "train") -> Preview:
    template = ChatTemplate(CHATML, TOKENIZER.special_tokens)
    return Preview(config, prepared, split, TOKENIZER, template)


def training_of(config: Config, folder: Path) -> Training:
    """Build the training of a run as its rank does."""
    run = RunFolder(folder)
    folder.mkdir()
    run.config.write_text(dump_config(config), encoding="utf-8")
    run.chat_template.write_text(CHATML, encoding="utf-8")
    precision = torch.get_float32_matmul_precision()
    wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
    built = build(
        run,
        config,
        device=torch.device("cpu"),
        ranks=Ranks(),
        attempt=1,
        control=ControlPoint(Ranks(), wishes),
        publisher=None,
    )
    built.training.report.close()
    torch.set_float32_matmul_precision(precision)
    return built.training


def shown(preview: Preview, step: int) -> tuple[Step, list[Row]]:
    head, *rows = preview.step(step, None)
    assert isinstance(head, Step)
    return head, [row for row in rows if isinstance(row, Row)]


def tokens(row: Row) -> list[Token]:
    return [token for document in row.documents for token in document.tokens]


def assert_shows(rows: Sequence[Row], head: Step, batches: Sequence[Batch]) -> None:
    """Hold what is shown against the arrays that the model gets, row by row."""
    ids = np.concatenate([batch.ids for batch in batches])
    targets = np.concatenate([batch.targets for batch in batches])
    starts = np.concatenate([batch.document_starts for batch in batches])
    assert len(rows) == head.num_rows
    assert len(ids) == head.num_rows + head.num_empty_rows
    assert not targets[len(rows) :].any()
    for row, its_ids, its_targets, its_starts in zip(rows, ids, targets, starts, strict=False):
        assert [token.id for token in tokens(row)] == its_ids[: row.num_tokens].tolist()
        assert [token.is_target for token in tokens(row)] == its_targets[: row.num_tokens].tolist()
        assert not its_targets[row.num_tokens :].any()
        assert row.num_tokens + row.num_padding == its_ids.size
        begun = [document.start for document in row.documents]
        end = [row.num_tokens] if row.num_padding else []
        assert its_starts[: len(begun) + len(end)].tolist() == begun + end
    assert sum(row.num_targets for row in rows) == head.num_targets == int(targets.sum())
    assert sum(row.num_tokens for row in rows) == head.num_tokens


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.packing=none", "data.pad_to=context", "batch.microbatches=3"),
        ("data.packing=greedy", "data.shuffle=false", "batch.microbatches=4"),
        ("data.max_length=40", "data.overlong=split", "data.targets=all", "training.seed=7"),
    ],
    ids=["as it is", "a row for each", "greedy, in order", "split, all turns"],
)
def test_the_mask_shown_is_that_of_the_batches_the_run_trains_on(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    config = config_of(*settings)
    training = training_of(config, tmp_path / "run")
    preview = preview_of(config, prepared_of(config))
    per_epoch = training.rows.steps_per_epoch
    for step in (1, per_epoch, per_epoch + 2):
        head, rows = shown(preview, step)
        assert (head.num_steps, head.steps_per_epoch) == (training.max_steps, per_epoch)
        assert 0 < head.num_targets < head.num_tokens
        assert_shows(rows, head, training.rows.step(step - 1).microbatches)


def test_batches_of_an_evaluation_are_shown_as_they_are_evaluated(tmp_path: Path) -> None:
    config = config_of("batch.evaluation=4", "evaluation.max_batches=2")
    training = training_of(config, tmp_path / "run")
    assert training.validation is not None
    preview = preview_of(config, prepared_of(config), "validation")
    head, rows = shown(preview, 2)
    assert (head.num_steps, head.steps_per_epoch) == (2, training.validation.steps_per_epoch)
    assert_shows(rows, head, training.validation.step(1).microbatches)


def test_each_document_names_its_row_of_the_data() -> None:
    config = config_of()
    _, rows = shown(preview_of(config, prepared_of(config)), 1)
    data = json.loads((MODEL.parent / "conversations.json").read_text("utf-8"))
    documents = [document for row in rows for document in row.documents]
    assert max(len(row.documents) for row in rows) > 1
    for document in documents:
        number = int(document.where.rpartition("row ")[2].replace(",", ""))
        text = "".join(token.text for token in document.tokens)
        assert data[number - 1]["conversations"][0]["value"] in text


def test_a_document_asked_for_by_its_number_is_the_one_shown_in_its_row() -> None:
    config = config_of()
    preview = preview_of(config, prepared_of(config))
    _, rows = shown(preview, 1)
    wanted = rows[3].documents[-1]
    head, row = preview.document(wanted.number)
    assert isinstance(head, Step)
    assert isinstance(row, Row)
    assert row.documents == [wanted]
    assert (row.index, head.step, head.num_targets) == (rows[3].index, None, wanted.num_targets)


def test_documents_are_numbered_through_the_whole_split() -> None:
    config = config_of("data.shuffle=false")
    prepared = prepared_of(config)
    preview = preview_of(config, prepared)
    numbers = [
        document.number
        for step in range(1, preview.loader.steps_per_epoch + 1)
        for row in shown(preview, step)[1]
        for document in row.documents
    ]
    assert numbers == list(range(1, len(prepared.train.pieces) + 1))


@pytest.mark.parametrize("number", [0, 241])
def test_a_step_the_run_does_not_have_is_refused(number: int) -> None:
    config = config_of()
    preview = preview_of(config, prepared_of(config))
    with pytest.raises(DataError, match="the run has 240 steps"):
        list(preview.step(number, None))


@pytest.mark.parametrize("number", [0, 281])
def test_a_document_the_split_does_not_have_is_refused(number: int) -> None:
    config = config_of()
    preview = preview_of(config, prepared_of(config))
    with pytest.raises(DataError, match="has 280 documents"):
        list(preview.document(number))


def test_as_many_rows_are_shown_as_are_asked_for() -> None:
    config = config_of()
    preview = preview_of(config, prepared_of(config))
    head, *rows = preview.step(1, 2)
    assert isinstance(head, Step)
    assert (head.num_rows, len(rows)) == (16, 2)


def test_the_number_of_steps_is_that_of_the_run() -> None:
    config = config_of("training.epochs=0.3", "training.max_steps=1000")
    loader = loader_of(config, prepared_of(config), "train")
    assert (loader.steps_per_epoch, num_steps(config, loader, "train")) == (4, 2)


def pieces_of(preview: Preview, step: int = 1) -> list[Document]:
    return [document for row in shown(preview, step)[1] for document in row.documents]


def test_what_is_cut_off_a_conversation_is_counted() -> None:
    config = config_of("data.max_length=60")
    prepared = prepared_of(config)
    documents = pieces_of(preview_of(config, prepared))
    whole = prepared.lengths_train.tolist()
    assert any(document.num_behind for document in documents)
    for document in documents:
        assert document.num_before == 0
        assert len(document.tokens) + document.num_behind in whole
        assert document.num_behind == 0 or len(document.tokens) == 60


def test_pieces_of_a_conversation_say_what_lies_in_others() -> None:
    config = config_of("data.max_length=60", "data.overlong=split", "data.shuffle=false")
    preview = preview_of(config, prepared_of(config))
    steps = range(1, preview.loader.steps_per_epoch + 1)
    by_place: dict[str, set[int]] = {}
    for document in (each for step in steps for each in pieces_of(preview, step)):
        total = document.num_before + len(document.tokens) + document.num_behind
        by_place.setdefault(document.where, set()).add(total)
    assert all(len(totals) == 1 for totals in by_place.values())
    assert max(max(totals) for totals in by_place.values()) > 60


# ---- why a token is no target ----------------------------------------------------------------


def explained(messages: Sequence[tuple[str, str]], template: str = CHATML) -> list[Token]:
    """Render turns with a template and explain them, assistant turns being trained."""
    compiled = ChatTemplate(template, TOKENIZER.special_tokens)
    text = compiled.render([{"role": role, "content": content} for role, content in messages])
    encoded = TOKENIZER.encode([text])[0]
    answers = [content for role, content in messages if role == "assistant"]
    begin = text.rindex(answers[-1])
    end = text.index(compiled.stop_text, begin) + len(compiled.stop_text)
    targets = [begin <= first and last <= end for first, last in encoded.spans.tolist()]
    turns = Turns(compiled)
    return tokens_of(encoded.ids.tolist(), targets, TOKENIZER, compiled.stop_text, turns)


def reason_at(found: Sequence[Token], text: str) -> set[str]:
    """Give why the tokens of a text are no targets; "" is a target."""
    whole = "".join(token.text for token in found)
    begin = whole.index(text)
    reasons, at = set(), 0
    for token in found:
        at += len(token.text)
        if begin < at <= begin + len(text):
            reasons.add(token.why_not)
    return reasons


TALK = (
    ("system", "Be brief."),
    ("user", "What is one and one?"),
    ("assistant", "Two."),
    ("user", "And three?"),
    ("assistant", "Six in all."),
)


def test_turns_and_what_the_template_writes_are_told_apart() -> None:
    found = explained(TALK)
    assert found[0].why_not == "first of its document"
    assert reason_at(found, "Be brief.") == {"system turn"}
    assert reason_at(found, "What is one and one?") == {"user turn"}
    assert reason_at(found, "And three?") == {"user turn"}
    assert reason_at(found, "Two.") == {"assistant turn left out"}
    assert reason_at(found, "Six in all.<|im_end|>") == {""}
    assert reason_at(found, "<|im_end|>\n<|im_start|>assistant\n") == {"template"}
    assert found[-1].why_not == "template", "the end of the last line is not trained"


def test_a_token_that_begins_before_its_turn_says_so() -> None:
    template = (
        "{% for message in messages %}[{{ message.role }}] {{ message.content }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    found = explained([("user", "Who?"), ("assistant", "I am")], template)
    (first,) = [token for token in found if token.text == " I"]
    assert (first.is_target, first.why_not) == (False, "begins before its turn")
    assert [token.is_target for token in found if token.text == " am"] == [True]


def test_only_the_stop_behind_a_trained_turn_is_one() -> None:
    found = explained(TALK)
    assert [token.text for token in found if token.is_stop] == ["<|im_end|>"]
    assert sum(token.text == "<|im_end|>" for token in found) > 1
    assert all(token.is_target for token in found if token.is_stop)


def test_a_stop_of_several_pieces_is_one_stop() -> None:
    template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }} END\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    found = explained(TALK[1:], template)
    stop = [token.text for token in found if token.is_stop]
    assert len(stop) > 1
    assert "".join(stop) == " END"


def test_signs_are_told_from_text() -> None:
    found = explained(TALK)
    assert {token.text for token in found if token.is_special} == {"<|im_start|>", "<|im_end|>"}


def test_a_template_that_writes_nothing_around_turns_explains_nothing_wrongly() -> None:
    found = explained(TALK[1:3], "{% for message in messages %}{{ message.content }}{% endfor %}")
    reasons = {token.why_not for token in found if not token.is_target}
    assert reasons <= {"first of its document", "user turn", "context"}


def test_a_piece_that_begins_within_a_turn_is_context() -> None:
    turns = Turns(ChatTemplate(CHATML, TOKENIZER.special_tokens))
    ids = TOKENIZER.encode(["end of an answer<|im_end|>\n<|im_start|>user\nHi"])[0].ids.tolist()
    found = tokens_of(ids, [False] * len(ids), TOKENIZER, "", turns)
    assert reason_at(found, "an answer") == {"context"}
    assert reason_at(found, "Hi") == {"user turn"}


# ---- statistics of a split -------------------------------------------------------------------


def test_statistics_agree_with_a_count_over_every_step(make_folder: MakeFolder) -> None:
    folder = make_folder(eos_token="<|im_end|>", pad_token="<|pad|>")
    rows: list[Any] = [
        {
            "conversations": [
                {"from": "human", "value": f"Question {number}"},
                {"from": "gpt", "value": "word " * number},
            ]
        }
        for number in range(1, 26)
    ]
    (folder.parent / "rows.json").write_text(json.dumps(rows))
    config = config_of(
        f"model.path={folder}",
        f"data.sources={{demo: {{path: {folder.parent / 'rows.json'}}}}}",
        "data.max_length=64",
        "data.packing=none",
        "batch.train=3",
        "training.epochs=2",
    )
    prepared = prepare(config, folder, CHATML)
    found = statistics(config, prepared, "train")
    loader: Loader = loader_of(config, prepared, "train")
    steps = [loader.step(number) for number in range(loader.steps_per_epoch)]
    batches = [batch for step in steps for batch in step.microbatches]
    positions = sum(batch.ids.size for batch in batches)
    num_tokens = sum(step.num_tokens for step in steps)
    assert found.num_conversations == 20
    assert found.num_longer == int((prepared.lengths_train > 64).sum()) > 0
    assert (found.steps_per_epoch, found.num_steps) == (7, 14)
    assert found.tokens_per_step == pytest.approx(num_tokens / 7)
    assert found.targets_per_step == pytest.approx(sum(step.num_targets for step in steps) / 7)
    assert found.positions_per_step == pytest.approx(positions / 7)
    assert found.target_share == pytest.approx(found.targets_per_step / found.tokens_per_step)
    (configured,) = (each for each in found.paddings if each.is_configured)
    assert configured.share == pytest.approx(1 - num_tokens / positions)
    kept = next(share for share in found.shares if share.length == 64)
    assert kept.tokens == pytest.approx(num_tokens / int(prepared.lengths_train.sum()))
    assert sum(bar.count for bar in found.histogram) == 20


def test_a_document_counts_its_targets() -> None:
    a, b = (Token(id=1, piece="a", text="a", is_target=flag) for flag in (True, False))
    assert Document(number=1, where="x", start=0, tokens=[a, b, a]).num_targets == 2
