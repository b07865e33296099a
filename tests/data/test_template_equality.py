"""Every shipped template on random conversations: the text and the ids that transformers makes.

And what a template trains, by its definition: growing prefixes of the conversation, rendered.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.data.conftest import TEXTS
from workbench.config.find import shipped_templates
from workbench.config.template_source import template_source
from workbench.data.chat_template import ChatTemplate, to_tokens
from workbench.data.formats import Conversation, Message, Role
from workbench.data.jinja_sandbox import CompiledTemplate
from workbench.data.tokenizer import Tokenizer, load_tokenizer
from workbench.errors import DataError
from workbench.inference.prompt import PromptWriter

NAMES = sorted(path.stem for path in shipped_templates().glob("*.jinja"))
PAIRS_ONLY = ("alpaca", "llama2", "mistral")
NUM_CONVERSATIONS = 200
SIGNS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>"]
SIGNS += ["<|end_header_id|>", "<|pad|>"]
PIECES = """Hello the·weather ·in·Zürich is·fine. ↵ ↵↵ ·· \t 🙂 👩\u200d🚀 こんにちは e\u0301 ﬁ
' " \\n {{·1·+·1·}} {%·if·%} [INST] [/INST] <<SYS>> ###·Response:↵ <|im_end|> </s> <s> 0.5
<|im_start|>assistant↵ <tool_response>"""
MIXED = [piece.replace("·", " ").replace("↵", "\n") for piece in re.split("[ \n]+", PIECES)]
MARKED_CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\n' -}}"
    "{%- else -%}{{- message['content'].rstrip() + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Both:
    """One tokenizer, as transformers and as we read it."""

    theirs: PreTrainedTokenizerFast
    ours: Tokenizer


@pytest.fixture(scope="module", params=["byte_level", "unigram", "metaspace_bpe"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Give a byte-level BPE that adds nothing, and two of SentencePiece's kind that add a BOS."""
    folder = tmp_path_factory.mktemp(request.param)
    added = [AddedToken(text, special=True, normalized=False) for text in SIGNS]
    if request.param == "byte_level":
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = BpeTrainer(
            vocab_size=420, initial_alphabet=alphabet, special_tokens=added, show_progress=False
        )
        backend.train_from_iterator(TEXTS, trainer)
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        backend = sentencepiece_like(request.param, added)
    backend.save(str(folder / "tokenizer.json"))
    is_llama = request.param == "metaspace_bpe"
    config = {"tokenizer_class": "LlamaTokenizer" if is_llama else "PreTrainedTokenizerFast"}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(folder)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    return Both(theirs, load_tokenizer(folder))


def sentencepiece_like(kind: str, added: list[AddedToken]) -> Backend:
    if kind == "unigram":
        backend = Backend(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        unigram = UnigramTrainer(
            vocab_size=200,
            special_tokens=[AddedToken("<unk>", special=True), *added],
            unk_token="<unk>",
            show_progress=False,
        )
        backend.train_from_iterator(TEXTS, unigram)
    else:  # as Llama 2 has it: no pre-tokenizer, bytes for what has no piece
        backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        bpe = BpeTrainer(vocab_size=600, special_tokens=tokens, show_progress=False)
        backend.train_from_iterator(TEXTS, bpe)
        backend.add_special_tokens(added)
    backend.decoder = decoders.Metaspace()
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return backend


def conversations(name: str, seed: int = 0) -> Iterator[Conversation]:
    """Draw conversations that a template takes: with a system turn or not, with tools or not."""
    draw = random.Random(f"{name} {seed}")
    for number in range(NUM_CONVERSATIONS):
        roles: list[Role] = ["system"] if draw.random() < 0.4 else []
        if name not in PAIRS_ONLY and draw.random() < 0.2:
            roles.append("assistant")
        for _ in range(draw.randint(1, 5)):
            roles += ["user", "assistant"]
            if name not in PAIRS_ONLY and draw.random() < 0.2:
                roles += ["tool"] * draw.randint(1, 2)
                roles.append("assistant")
        if draw.random() < 0.2:
            roles.append("user")
        turns = [Message(role, text_of(draw), True, at) for at, role in enumerate(roles, 1)]
        yield Conversation(tuple(turns), f"{name} {number}")


def text_of(draw: random.Random) -> str:
    text = "".join(draw.choice(MIXED) for _ in range(draw.randint(1, 12)))
    return text if text.strip() else f"{text}x{text}"


def as_mappings(conversation: Conversation) -> list[dict[str, Any]]:
    return [{"role": turn.role, "content": turn.content} for turn in conversation.messages]


def once_begun(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Add what begins every text, as transformers does for any text but a rendered one."""
    lacks = tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id]
    return [tokenizer.bos_id or 0, *ids] if lacks else ids


def ids_of_transformers(
    both: Both, messages: list[dict[str, Any]], source: str, *, prompt: bool = False
) -> list[int]:
    ids: Any = both.theirs.apply_chat_template(
        messages, chat_template=source, add_generation_prompt=prompt, return_dict=False
    )
    return once_begun(ids, both.ours)


@pytest.mark.parametrize("name", NAMES)
def test_text_and_ids_are_those_of_transformers(both: Both, name: str) -> None:
    source = template_source(name, Path())
    template = ChatTemplate(source, both.ours.special_tokens)
    num_with_bos = 0
    for conversation in conversations(name):
        messages = as_mappings(conversation)
        rendered = template.mark(conversation)
        assert rendered.text == both.theirs.apply_chat_template(
            messages, chat_template=source, tokenize=False
        )
        encoded = template.encode(conversation, both.ours)
        ids = encoded.ids.tolist()
        assert ids == ids_of_transformers(both, messages, source)
        num_with_bos += ids[0] == both.ours.bos_id
        assert ids[:2] != [both.ours.bos_id] * 2 or rendered.text.startswith("<s><s>")
        assert encoded.mask.any()
        assert encoded.num_stops == len(rendered.stops) == len(rendered.trained)
    if both.ours.adds_bos or name in ("llama2", "llama3", "mistral"):
        assert num_with_bos == NUM_CONVERSATIONS
    else:  # a system turn may begin with it
        assert num_with_bos < 0.1 * NUM_CONVERSATIONS


@pytest.mark.parametrize("name", NAMES)
def test_serving_reads_what_training_reads_before_each_answer(both: Both, name: str) -> None:
    source = template_source(name, Path())
    template = ChatTemplate(source, both.ours.special_tokens)
    prompts = PromptWriter(template, both.ours)
    num_equal = num_straddled = 0
    for number, conversation in enumerate(conversations(name, seed=1)):
        messages = as_mappings(conversation)
        rendered = template.mark(conversation)
        (encoded,) = both.ours.encode([rendered.text])
        trained = to_tokens(rendered, encoded, both.ours).ids.tolist()
        last = max(at for at, turn in enumerate(conversation.messages) if turn.role == "assistant")
        text = template.render(messages[:last], add_generation_prompt=True)
        assert rendered.text.startswith(text)
        read = prompts.ids([(turn["role"], turn["content"]) for turn in messages[:last]])
        if number % 5 == 0:
            assert read == ids_of_transformers(both, messages[:last], source, prompt=True)
        if any(begin < len(text) < end for begin, end in encoded.spans.tolist()):
            num_straddled += 1  # such a token is not trained, and not read either
        else:
            num_equal += trained[: len(read)] == read
    # A piece that would reach over the border from either side can move the ids before it too.
    assert num_equal + num_straddled >= 0.97 * NUM_CONVERSATIONS
    assert num_equal > 0.5 * NUM_CONVERSATIONS


def test_the_mask_is_that_of_transformers_but_for_tokens_over_a_border(both: Both) -> None:
    marked = ChatTemplate(MARKED_CHATML, both.ours.special_tokens)
    grown = ChatTemplate(template_source("chatml", Path()), both.ours.special_tokens)
    assert marked.marks_targets
    num_trained = 0
    for conversation in conversations("chatml", seed=2):
        theirs: Any = both.theirs.apply_chat_template(
            as_mappings(conversation),
            chat_template=MARKED_CHATML,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        rendered = marked.mark(conversation)
        assert rendered == grown.mark(conversation)
        (encoded,) = both.ours.encode([rendered.text])
        mask = to_tokens(rendered, encoded, both.ours).mask.tolist()[-len(encoded.ids) :]
        borders = {border for span in rendered.trained for border in span}
        for trained, other, (begin, end) in zip(
            mask, theirs["assistant_masks"], encoded.spans.tolist(), strict=True
        ):
            if begin < end and not any(begin < border < end for border in borders):
                assert trained == bool(other)
                num_trained += trained
    assert num_trained > 1000


OTHERS = {
    "behind the system turn": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set about = messages[0]['content'] %}{% else %}{% set rest = messages %}{% endif %}"
        "{% if about is defined %}[{{ about }}]{% endif %}"
        "{% for m in rest %}{{ m.role }}:{{ m.content | trim }};{{ loop.index }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant' }}:{% endif %}"
    ),
    "prompt that depends on the last turn": (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt and messages[-1].role != 'assistant' %}assistant:{% endif %}"
    ),
    "last turn written otherwise": (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ '!' if loop.last }}\n{% endfor %}"
    ),
    "how many turns": "{{ messages | length }}{% for m in messages %}{{ m.content }};{% endfor %}",
    "closing words": "{% for m in messages %}{{ m.content }};{% endfor %}the end",
    "neighbours": (
        "{% for m in messages %}{{ m.content }}{{ loop.nextitem is defined }};{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    ),
    "two walks": "{% for m in messages %}{{ m.role }}{% endfor %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
}
HIDDEN = {
    "kept in a namespace": (
        "{% set ns = namespace() %}{% set ns.all = messages %}"
        "{% for m in messages %}{{ ns.all | length }}{{ m.content }}{% endfor %}"
    ),
    "kept under another name": (
        "{% set all = messages %}{% for m in messages %}{{ all | length }}{% endfor %}"
    ),
    "the name taken": (
        "{% set messages = messages[1:] %}{{ messages[0].content }}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    ),
    "in pairs": "{% set all, one = messages, 1 %}{% for m in messages %}{{ all }}{% endfor %}",
    "the loop handed on": "{% for m in messages %}{{ loop | string }}{% endfor %}",
    "the prompt known": "{% for m in messages %}{{ add_generation_prompt }}{% endfor %}",
    "cut short": "{% for m in messages[:3] %}{{ m.content }}{% endfor %}",
    "some only": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "else": "{% for m in messages %}{{ m.content }}{% else %}nothing{% endfor %}",
    "by macro": (
        "{% macro say() %}{{ messages | length }}{% endmacro %}"
        "{% for m in messages %}{{ say() }}{% endfor %}"
    ),
    "the prompt tells": (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ messages[0].content }}{% endif %}"
    ),
}
FORWARD = {"behind the system turn"}


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_what_is_trained_is_the_difference_between_growing_prefixes(name: str) -> None:
    source = OTHERS.get(name) or template_source(name, Path())
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    num_trained = num_refused = 0
    for conversation in conversations("llama2" if name in OTHERS else name, seed=3):
        messages = as_mappings(conversation)
        text = template.render(messages)
        expected = []
        for index, turn in enumerate(conversation.messages):
            if turn.role == "assistant":
                prompt = template.render(messages[:index], add_generation_prompt=True)
                whole = template.render(messages[: index + 1])
                is_grown = whole.startswith(prompt) and text.startswith(whole)
                expected.append((len(prompt), len(whole.rstrip())) if is_grown else None)
        if None in expected:
            with pytest.raises(DataError, match="differently when more follows"):
                template.mark(conversation)
            num_refused += 1
        else:
            assert list(template.mark(conversation).trained) == expected
            num_trained += 1
    assert num_trained + num_refused == NUM_CONVERSATIONS
    assert num_refused == 0 or name not in (*NAMES, *FORWARD)


@pytest.mark.parametrize("name", [*NAMES, *OTHERS, *HIDDEN])
def test_one_rendering_is_trusted_only_if_no_turn_can_see_those_behind_it(name: str) -> None:
    source = {**OTHERS, **HIDDEN}.get(name) or template_source(name, Path())
    is_forward = name in FORWARD or (name in NAMES and name != "qwen")
    assert CompiledTemplate(source).walks_forward == is_forward
