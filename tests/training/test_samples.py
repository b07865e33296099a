"""What the model says as it learns: equal to transformers' replies, and nothing learns from it."""

import json
import queue
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.inference.tiny_model import CHATML, write_tiny_model
from tests.training.late_lanes import LateLanes
from tests.training.test_step import assert_same
from tests.training.test_streaming import PLACES, state
from tests.training.tiny import CPU, dimensions, step_rows, tiny_engine
from workbench.config.load import dump_config, read_resolved
from workbench.config.schema.config import Config
from workbench.control.messages import Stop
from workbench.data.batch import Batch
from workbench.data.chat_template import ChatTemplate
from workbench.data.tokenizer import Tokenizer, load_tokenizer
from workbench.errors import ConfigError
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.training.build import Built, build
from workbench.training.control_point import ControlPoint, Wish
from workbench.training.distributed import Ranks
from workbench.training.rank import run_rank
from workbench.training.samples import GivesLogits, Reply, Sampler, Sampling, board_text
from workbench.training.state import capture_random_states

DEMO = Path(__file__).parents[2] / "configs" / "demo"
PROMPTS = ["Hi", "Hello, what is your name?", "Who made you, and where do you run?", "?"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORKBENCH_JOB", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("samples") / "model")


def run_folder(folder: Path, model: Path, **changes: dict[str, object]) -> RunFolder:
    sections: dict[str, dict[str, object]] = {
        "model": {"path": str(model), "dtype": "float32"},
        "data": {
            "sources": {"demo": {"path": str(DEMO / "conversations.json")}},
            "max_length": 128,
            "packing": "best_fit",
            "num_workers": 0,
        },
        "batch": {"train": 4, "microbatches": 2},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "evaluation": {"every_steps": 0},
        "logging": {"every_steps": 1},
        "checkpoints": {"save_strategy": "no"},
        "samples": {"prompts": PROMPTS, "every_steps": 2, "max_tokens": 12},
        "training": {"device": "cpu", "max_steps": 3},
    }
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values
    run = RunFolder(folder)
    run.path.mkdir()
    run.config.write_text(dump_config(msgspec.convert(sections, Config)))
    run.chat_template.write_text(CHATML)
    return run


def built(run: RunFolder, wishes: "queue.SimpleQueue[Wish] | None" = None) -> Built:
    return build(
        run,
        read_resolved(run.config),
        device=CPU,
        ranks=Ranks(),
        attempt=1,
        control=ControlPoint(Ranks(), wishes or queue.SimpleQueue()),
        publisher=None,
    )


def answered(sampler: Sampler | None, step: int = 1) -> list[Reply]:
    assert sampler is not None
    replies: list[Reply] = []
    for so_far in sampler.answer(step):
        replies = so_far
    return replies


def losses_of(run: RunFolder) -> list[float]:
    return [json.loads(line.content)["loss"] for line in read_lines(run.metrics)[0]]


# ---- the engine --------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("place", [{}, {"resident_blocks": 0, "vocabulary_resident": False}])
def test_logits_give_the_loss_that_an_evaluation_finds(tied: bool, place: dict[str, Any]) -> None:
    tiny = tiny_engine(dimensions(tied=tied), head_rows=5, **place)
    batches = step_rows(3, num_microbatches=2).microbatches
    labels = np.concatenate([batch.ids[batch.targets] for batch in batches]).astype(np.int64)
    assert len(labels) > 10
    logits = tiny.engine.logits(*batches)
    assert logits.dtype == torch.float32
    assert logits.shape == (len(labels), dimensions().vocabulary_size)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    sums = tiny.engine.evaluate(*batches)
    assert float(loss) == pytest.approx(float(sums.loss_sum), rel=1e-6)


def test_where_weights_live_changes_no_logit() -> None:
    batches = step_rows(3, num_microbatches=2).microbatches
    places: list[dict[str, Any]] = [
        {},
        {"resident_blocks": 0},
        {"resident_blocks": 1, "vocabulary_resident": False, "slots": 2},
    ]
    first, *others = [
        tiny_engine(dimensions(), **place).engine.logits(*batches) for place in places
    ]
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_asked_between_steps_changes_no_bit_of_them(place: str) -> None:
    """Copies that come as late as they may meet the questions too."""
    dims = dimensions(layers=5)
    lanes = LateLanes()
    silent, asked = tiny_engine(dims), tiny_engine(dims, lanes=lanes, **PLACES[place])
    question = step_rows(90).microbatches
    sums = []
    for number in range(1, 6):
        rows = step_rows(number, num_microbatches=2)
        sums.append(
            [float(tiny.engine.step(rows, number, 3e-3).loss_sum) for tiny in (silent, asked)]
        )
        first, again = asked.engine.logits(*question), asked.engine.logits(*question)
        assert torch.equal(first, again)
    assert [one for one, _ in sums] == [other for _, other in sums]
    assert_same(state(silent), state(asked))
    assert lanes.num_late > 0


# ---- replies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [{"resident_fraction": 1.0}, {"resident_fraction": 0.0}])
def test_replies_are_those_of_transformers(
    tmp_path: Path, model: Path, memory: dict[str, object]
) -> None:
    run = run_folder(tmp_path / "run", model, memory=memory, samples={"max_tokens": 40})
    training = built(run).training
    training.report.close()
    tokenizer = load_tokenizer(model)
    template = ChatTemplate(CHATML, tokenizer.special_tokens)
    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    replies = answered(training.sampler)
    assert [reply.prompt for reply in replies] == PROMPTS
    for reply in replies:
        prompt = template.encode_prompt([{"role": "user", "content": reply.prompt}], tokenizer)
        made = reference.generate(
            torch.from_numpy(prompt[None].astype(np.int64)), max_new_tokens=40, do_sample=False
        )[0, len(prompt) :].tolist()
        ends = set(reference.generation_config.eos_token_id)
        expected = [number for number in made if number not in ends]
        assert reply.ids == expected
        whole = tokenizer.decode(expected, skip_special_tokens=True)
        assert reply.text == whole.rstrip("\N{REPLACEMENT CHARACTER}")
        assert reply.is_cut == (len(expected) == 40)
    assert sum(len(reply.ids) for reply in replies) > 40, "replies of some length"


FAMILIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama3": (
        LlamaConfig,
        {
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "yarn": (
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": (MistralConfig, {"sliding_window": 24, "tie_word_embeddings": True}),
    "qwen2": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
}


def family_folder(folder: Path, model: Path, family: str) -> Path:
    """Put a random model of a family beside the tokenizer of the tiny model."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(3)
    kind, switches = FAMILIES[family]
    tiny = json.loads((model / "config.json").read_text())
    shared = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
        "initializer_range", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    config = kind(**{name: tiny[name] for name in shared}, bos_token_id=None, **switches)
    auto: Any = AutoModelForCausalLM
    made = auto.from_config(config)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("resident_fraction", [1.0, 0.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_says_what_transformers_says_for_200_tokens(
    tmp_path: Path, model: Path, family: str, resident_fraction: float
) -> None:
    folder = family_folder(tmp_path / "model", model, family)
    run = run_folder(
        tmp_path / "run",
        folder,
        data={"max_length": 256, "pad_to": "context"},
        memory={"resident_fraction": resident_fraction},
    )
    training = built(run).training
    training.report.close()
    tokenizer = load_tokenizer(folder)
    # Nothing ends a reply here: all of its tokens are compared.
    sampler = Sampler(
        training.engine,
        tokenizer,
        ChatTemplate(CHATML, tokenizer.special_tokens),
        PROMPTS[:2],
        Sampling(max_tokens=200),
        every_steps=1,
        microbatch_rows=2,
        row_length=256,
        pad_id=tokenizer.pad_id,
    )
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference.generation_config.eos_token_id = None
    for reply in answered(sampler):
        ids = torch.tensor([reply.prompt_ids], dtype=torch.int64)
        made = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, do_sample=False
        )
        assert reply.ids == made[0, len(reply.prompt_ids) :].tolist()
        assert len(reply.ids) == 200
        assert len(set(reply.ids)) > 3, "no token again and again"


class Says:
    """In the place of an engine: to every prompt it says one text, token by token."""

    max_microbatches = 1

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._ids = [int(number) for number in tokenizer.encode([text])[0].ids]
        self._size = tokenizer.vocabulary_size
        self.shapes: list[tuple[int, ...]] = []
        self._begins: dict[bytes, int] = {}

    def logits(self, *batches: Batch) -> torch.Tensor:
        (batch,) = batches
        self.shapes.append(batch.ids.shape)
        places = batch.targets.argmax(axis=1)
        assert (batch.targets.sum(axis=1) == 1).all()
        logits = torch.zeros(len(places), self._size)
        for row, place in enumerate(places):
            head = batch.ids[row, :4].tobytes()
            begin = self._begins.setdefault(head, int(place))
            logits[row, self._ids[min(int(place) - begin, len(self._ids) - 1)]] = 9.0
        return logits


def sampler_of(
    model: Path,
    text: str,
    *prompts: str,
    row_length: int = 128,
    rows: int = 8,
    **how: Any,  # noqa: ANN401
) -> tuple[Sampler, Says]:
    tokenizer = load_tokenizer(model)
    engine = Says(tokenizer, text)
    sampler = Sampler(
        engine,
        tokenizer,
        ChatTemplate(CHATML, tokenizer.special_tokens),
        prompts or ("Hi",),
        Sampling(**({"max_tokens": 30} | how)),
        every_steps=1,
        microbatch_rows=rows,
        row_length=row_length,
        pad_id=tokenizer.pad_id,
    )
    return sampler, engine


def test_a_reply_ends_at_a_stop_token_or_a_stop_text_and_shows_neither(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    (end,) = (int(number) for number in tokenizer.encode(["<|im_end|>"])[0].ids)
    by_token, _ = sampler_of(model, "Hello.<|im_end|>more", stop_ids=frozenset({end}))
    (reply,) = answered(by_token)
    assert (reply.text, reply.is_done, reply.is_cut) == ("Hello.", True, False)
    by_text, _ = sampler_of(model, "Hello. </turn> more", stop_strings=("</turn>",))
    (reply,) = answered(by_text)
    assert (reply.text, reply.is_cut) == ("Hello. ", False)


def test_a_reply_that_does_not_end_is_cut_and_says_so(model: Path) -> None:
    (reply,) = answered(sampler_of(model, "la " * 50, max_tokens=7)[0])
    assert (len(reply.ids), reply.is_cut) == (7, True)
    sampler, engine = sampler_of(model, "la " * 50, row_length=40)
    (reply,) = answered(sampler)
    assert len(reply.prompt_ids) + len(reply.ids) == 40
    assert reply.is_cut
    assert max(shape[1] for shape in engine.shapes) == 40


def test_half_a_character_is_not_shown(model: Path) -> None:
    sizes = []
    for max_tokens in range(1, 7):
        (reply,) = answered(sampler_of(model, "é€", max_tokens=max_tokens)[0])
        assert reply.text in ("", "é", "é€")
        sizes.append(len(reply.text))
    assert (sizes[0], sizes[-1]) == (0, 2), "a byte for each token"


def test_prompts_pass_together_as_far_as_rows_allow(model: Path) -> None:
    sampler, engine = sampler_of(model, "yes", "a", "b", "c", "d", "e", rows=2, max_tokens=2)
    assert len(answered(sampler)) == 5
    assert [shape[0] for shape in engine.shapes] == [2, 2, 2, 2, 1, 1]


def test_a_prompt_without_room_for_a_reply_is_refused_by_its_number(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"samples\.prompts: prompt 2 takes .* tokens"):
        sampler_of(model, "no", "short", "long " * 100)


def test_a_prompt_that_fills_a_row_but_for_one_token_gets_one_token(model: Path) -> None:
    _, engine = sampler_of(model, "yes", "hello")
    tokenizer = load_tokenizer(model)
    template = ChatTemplate(CHATML, tokenizer.special_tokens)
    length = len(template.encode_prompt([{"role": "user", "content": "hello"}], tokenizer)) + 1
    sampler, engine = sampler_of(model, "yes", "hello", row_length=length)
    (reply,) = answered(sampler)
    assert (len(reply.ids), reply.is_cut) == (1, True)
    assert engine.shapes == [(1, length)]


def test_draws_repeat_with_the_seed_and_differ_by_step_and_prompt(
    tmp_path: Path, model: Path
) -> None:
    run = run_folder(tmp_path / "run", model, samples={"temperature": 1.0, "prompts": ["Hi"] * 2})
    training = built(run).training
    training.report.close()
    first, again, later = (
        [reply.ids for reply in answered(training.sampler, step)] for step in (1, 1, 2)
    )
    assert first == again
    assert first[0] != first[1]
    assert first != later


def test_what_is_shown_on_the_board_is_no_markdown() -> None:
    reply = Reply("a\n# b", [1], text="<b>x</b>\n\n* y", is_cut=True)
    lines = board_text([reply, Reply("c", [1])]).splitlines()
    assert lines == ["    > a", "    > # b", "    <b>x</b>", "    ", "    * y …", "", "---", "",
                     "    > c"]  # fmt: skip


# ---- in a run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def losses_without(tmp_path_factory: pytest.TempPathFactory, model: Path) -> list[float]:
    run = run_folder(
        tmp_path_factory.mktemp("without") / "run",
        model,
        samples={"prompts": []},
        training={"device": "cpu", "max_steps": 5},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        patch.delenv("WORKBENCH_JOB", raising=False)
        assert run_rank(run) == 0
    return losses_of(run)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("resident_fraction", [1.0, 0.0])
def test_samples_change_no_bit_of_the_training(
    tmp_path: Path,
    model: Path,
    losses_without: list[float],
    temperature: float,
    resident_fraction: float,
) -> None:
    run = run_folder(
        tmp_path / "run",
        model,
        samples={"temperature": temperature, "every_steps": 2},
        memory={"resident_fraction": resident_fraction},
        training={"device": "cpu", "max_steps": 5},
    )
    assert run_rank(run) == 0
    assert len(losses_without) == 5
    assert losses_of(run) == losses_without
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    texts = board.Tensors("samples/text_summary")
    assert [text.step for text in texts] == [2, 4, 5], "every second step, and the last"
    assert PROMPTS[1] in texts[0].tensor_proto.string_val[0].decode()


def test_random_states_stay_where_they_were(tmp_path: Path, model: Path) -> None:
    run = run_folder(tmp_path / "run", model, samples={"temperature": 0.7})
    training = built(run).training
    before = capture_random_states(CPU)
    assert len(answered(training.sampler)) == len(PROMPTS)
    assert capture_random_states(CPU) == before
    training.report.close()


class Interrupts:
    """Passes on to an engine, and wishes for a stop in the middle of a reply."""

    def __init__(self, engine: GivesLogits, wishes: "queue.SimpleQueue[Wish]") -> None:
        self._engine, self._wishes = engine, wishes
        self.num_sweeps = 0

    @property
    def max_microbatches(self) -> int:
        return self._engine.max_microbatches

    def logits(self, *batches: Batch) -> torch.Tensor:
        self.num_sweeps += 1
        if self.num_sweeps == 3:
            self._wishes.put(Stop(id=1, save=False))
        return self._engine.logits(*batches)


def test_a_stop_is_obeyed_within_a_token(tmp_path: Path, model: Path) -> None:
    run = run_folder(tmp_path / "run", model, samples={"every_steps": 1, "max_tokens": 40})
    wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
    training = built(run, wishes).training
    interrupts = Interrupts(training.engine, wishes)
    tokenizer = load_tokenizer(model)
    training.sampler = Sampler(
        interrupts,
        tokenizer,
        ChatTemplate(CHATML, tokenizer.special_tokens),
        PROMPTS,
        Sampling(max_tokens=40),
        every_steps=1,
        microbatch_rows=2,
        row_length=128,
        pad_id=tokenizer.pad_id,
    )
    ending = training.train()
    training.report.close()
    assert (ending.state, ending.step) == ("stopped", 1)
    assert interrupts.num_sweeps == 3


class Watched:
    """Passes on to a report or an engine, and notes what is waited for and what is asked."""

    def __init__(self, watched: Any, notes: list[str]) -> None:  # noqa: ANN401
        self._watched, self._notes = watched, notes

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._watched, name)

    def step(self, *arguments: Any) -> Any:  # noqa: ANN401
        self._notes.append("step")
        return self._watched.step(*arguments)

    def faults(self, *, wait: bool = False) -> Any:  # noqa: ANN401
        if wait:
            self._notes.append("wait")
        return self._watched.faults(wait=wait)

    def evaluate(self, *batches: Batch) -> Any:  # noqa: ANN401
        self._notes.append("ask")
        return self._watched.evaluate(*batches)

    def logits(self, *batches: Batch) -> torch.Tensor:
        self._notes.append("ask")
        return self._watched.logits(*batches)  # type: ignore[no-any-return]


def test_the_time_of_a_step_is_not_taken_for_that_of_a_question(
    tmp_path: Path, model: Path
) -> None:
    """A device is behind: what is asked of it waits for its steps, which are to be told first."""
    run = run_folder(
        tmp_path / "run",
        model,
        samples={"prompts": ["Hi"], "every_steps": 2, "max_tokens": 2},
        evaluation={"every_steps": 3, "max_batches": 1},
        logging={"every_steps": 100},
        training={"device": "cpu", "max_steps": 4},
    )
    training = built(run).training
    notes: list[str] = []
    engine: Any = Watched(training.engine, notes)
    training.engine, training.report = engine, Watched(training.report, notes)  # type: ignore[assignment]
    assert training.sampler is not None
    training.sampler._engine = engine
    training.train()
    assert notes.count("step") == 4
    asked = [number for number, note in enumerate(notes) if note == "ask"]
    assert len(asked) > 3
    for number in asked:
        since = notes[:number]
        last_step = max(at for at, note in enumerate(since) if note == "step")
        assert "wait" in since[last_step:]


def test_a_prompt_that_is_too_long_ends_the_start_and_not_step_one_hundred(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_folder(tmp_path / "run", model, samples={"prompts": ["ok", "long " * 200]})
    assert run_rank(run) == 1
    assert "samples.prompts: prompt 2 takes" in caplog.text
    assert not run.metrics.exists()
