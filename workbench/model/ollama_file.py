"""The Modelfile by which Ollama runs a GGUF file as the model was trained: template, stops, limits.

Ollama knows no Jinja. What a chat template writes around turns is found by rendering it, said anew
as a Go template, and compared on conversations of several forms; where they differ no template is
written. Knows no tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.config.template_source import own_template
from workbench.data.chat_template import ChatTemplate
from workbench.data.stops import end_ids_of, stops_of
from workbench.data.tokenizer import Tokenizer, load_tokenizer, read_json
from workbench.errors import DataError

LARGEST_CONTEXT = 8192
"""What Ollama reserves unless somebody asks for more: its memory grows with it."""

# Words no template writes by itself; contents that could be stripped would hide what is.
_SYSTEM, _ASKED, _ANSWERED, _ASKED_AGAIN = "Sysqvx", "Askqvx", "Ansqvx", "Aginqvx"
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


@dataclass(frozen=True)
class TurnTexts:
    """What a chat template writes around what is said, of turns that alternate.

    A conversation is ``opening``, or the system text between ``before_system`` and
    ``before_first``; then questions and answers, with ``answers`` before each answer and
    ``asks_again`` before each question but the first; last ``invites``.
    """

    opening: str
    before_system: str | None
    before_first: str | None
    answers: str
    asks_again: str
    invites: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Write a conversation as the Go template does."""
        system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
        text = self.opening
        if system and self.before_system is not None:
            text = f"{self.before_system}{system}{self.before_first}"
        is_first = True
        for message in messages:
            if message["role"] == "user":
                text += message["content"] if is_first else self.asks_again + message["content"]
                is_first = False
            elif message["role"] == "assistant":
                text += self.answers + message["content"]
        return text + self.invites

    def go_template(self) -> str:
        """Give the same in the language of Ollama's templates."""
        opening = _literal(self.opening)
        if self.before_system is not None and self.before_first is not None:
            opening = (
                "{{ if .System }}"
                + _literal(self.before_system)
                + "{{ .System }}"
                + _literal(self.before_first)
                + "{{ else }}"
                + opening
                + "{{ end }}"
            )
        return (
            opening
            + "{{ $asked := false }}{{ range .Messages }}"
            + '{{ if eq .Role "user" }}{{ if $asked }}'
            + _literal(self.asks_again)
            + "{{ end }}{{ $asked = true }}{{ .Content }}"
            + '{{ else if eq .Role "assistant" }}'
            + _literal(self.answers)
            + "{{ .Content }}{{ end }}{{ end }}"
            + _literal(self.invites)
        )


def modelfile(folder: Path, gguf_name: str, context: int) -> tuple[str, list[str]]:
    """Write the Modelfile of a model folder.

    Args:
        folder: with tokenizer and chat template.
        gguf_name: of the file beside it.
        context: longest text the file is good for, tokens.

    Returns:
        Its content, and what it could not say, in words.

    Raises:
        DataError: tokenizer, template or generation config cannot be read.
    """
    tokenizer = load_tokenizer(folder)
    source = own_template(folder)
    template = None if source is None else ChatTemplate(source, tokenizer.special_tokens)
    notices = []
    lines = [f"FROM ./{gguf_name}"]
    texts = None
    if template is None:
        notices.append("the model has no chat template")
    else:
        texts = turn_texts(template, tokenizer)
        if texts is None:
            notices.append("the chat template cannot be said in Ollama's language")
        elif texts.before_system is None:
            notices.append("the chat template takes no system turn, so it is left out")
    if texts is not None:
        lines.append(f'TEMPLATE """{texts.go_template()}"""')
    for text in _stop_texts(folder, tokenizer, template):
        lines.append(f'PARAMETER stop "{text}"')
    stated = read_json(folder / "generation_config.json")
    for name, parameter in _PARAMETERS.items():
        value = stated.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            lines.append(f"PARAMETER {parameter} {value}")
    lines.append(f"PARAMETER num_ctx {min(context, LARGEST_CONTEXT)}")
    return "\n".join(lines) + "\n", notices


def turn_texts(template: ChatTemplate, tokenizer: Tokenizer) -> TurnTexts | None:
    """Find what a template writes around turns; None where it depends on more than their order."""
    try:
        found = _found(template)
    except (DataError, ValueError):
        return None
    for messages in _conversations(with_system=found.before_system is not None):
        try:
            expected = template.render(messages, add_generation_prompt=True)
        except DataError:
            return None
        if found.render(messages) != expected:
            return None
    bos = tokenizer.special_tokens.get("bos_token")
    if tokenizer.adds_bos and bos:
        # Ollama puts it before every text by itself, as the file says.
        before = found.before_system
        found = TurnTexts(
            opening=found.opening.removeprefix(bos),
            before_system=None if before is None else before.removeprefix(bos),
            before_first=found.before_first,
            answers=found.answers,
            asks_again=found.asks_again,
            invites=found.invites,
        )
    return None if '"""' in found.go_template() else found


def _found(template: ChatTemplate) -> TurnTexts:
    asked = [_turn("user", _ASKED)]
    longer = [*asked, _turn("assistant", _ANSWERED), _turn("user", _ASKED_AGAIN)]
    opening, invites = _around(template, asked, [_ASKED])
    _, answers, asks_again, _ = _around(template, longer, [_ASKED, _ANSWERED, _ASKED_AGAIN])
    before_system = before_first = None
    try:
        with_system = [_turn("system", _SYSTEM), *asked]
        before_system, before_first, _ = _around(template, with_system, [_SYSTEM, _ASKED])
    except (DataError, ValueError):
        pass
    return TurnTexts(opening, before_system, before_first, answers, asks_again, invites)


def _around(
    template: ChatTemplate, messages: Sequence[Mapping[str, str]], words: Sequence[str]
) -> list[str]:
    """Render a conversation and give what stands before, between and behind its words."""
    rest = template.render(messages, add_generation_prompt=True)
    parts = []
    for word in words:
        if rest.count(word) != 1:
            raise ValueError(word)
        before, _, rest = rest.partition(word)
        parts.append(before)
    return [*parts, rest]


def _conversations(*, with_system: bool) -> list[list[dict[str, str]]]:
    turns = [
        _turn("user", "What is it?"),
        _turn("assistant", "A kite."),
        _turn("user", "Two\nlines"),
        _turn("assistant", 'And "quotes", {{ braces }}'),
        _turn("user", "Thanks"),
    ]
    plain = [turns[:1], turns[:3], turns]
    if not with_system:
        return plain
    return plain + [[_turn("system", "Be brief."), *each] for each in plain]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _literal(text: str) -> str:
    """Write text so that a Go template gives it as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _stop_texts(folder: Path, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[str]:
    """Give the texts that end a reply, of tokens and others, as Ollama wants to be told them."""
    ids = set(end_ids_of(folder, tokenizer))
    texts: list[str] = []
    if template is not None:
        more, texts_behind = stops_of(template, tokenizer)
        ids |= more
        texts += texts_behind
    texts += [text for each in sorted(ids) if (text := tokenizer.token_text(each)) is not None]
    return [text for text in dict.fromkeys(texts) if text and not set(text) & set('"\n')]
