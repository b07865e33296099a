"""The Modelfile by which Ollama runs a GGUF file as the model was trained: template, stops, limits.

Ollama knows no Jinja. What a chat template writes around turns is found by rendering it, said anew
as a Go template, and compared on conversations of several forms; where they differ no template is
written. Knows no tensors.

Source: Ollama, ``template/template.go`` (what a template is given), ``parser/parser.go`` (what a
Modelfile can say).
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
# Ollama refuses a whole Modelfile where a whole number is written with a point.
_PARAMETERS: dict[str, tuple[str, type[int] | type[float]]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repeat_penalty", float),
}
_BY_HAND = "write a TEMPLATE by hand, or use llama.cpp's --jinja"
_LARGEST_PARAMETER = 1 << 31
# Braces that Go would read as its own, quotes that end a TEMPLATE, and what the reader of
# Modelfiles drops: it keeps printable characters, spaces, tabs and line ends.
_TO_SPELL = re.compile(r'\{\{+|\{$|"""+|[^\n\t -~]')


@dataclass(frozen=True)
class TurnTexts:
    """What a chat template writes around what is said, of turns that alternate.

    A conversation is ``opening`` before the first question, or the system text between
    ``before_system`` and ``before_first``; then questions and answers, with ``answers`` before each
    answer and ``asks_again`` before each further question; last ``invites``, unless the last turn
    is an answer: it is gone on with. Where the first turn is an answer, ``greets`` is before it, or
    ``before_greeting`` behind the system text; None: such an answer is left out.
    """

    opening: str
    before_system: str | None
    before_first: str | None
    answers: str
    asks_again: str
    invites: str
    greets: str | None = None
    before_greeting: str | None = None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Write a conversation as the Go template does."""
        system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
        text, last = "", ""
        for message in messages:
            role = message["role"]
            if role == "user":
                again, begins, behind = self.asks_again, self.opening, self.before_first
            elif role == "assistant" and (last or self.greets is not None):
                again, begins, behind = self.answers, self.greets or "", self.before_greeting
            else:
                continue
            if last:
                text += again
            elif system and self.before_system is not None:
                text += f"{self.before_system}{system}{behind or ''}"
            else:
                text += begins
            text += message["content"]
            last = role
        return text if last == "assistant" else text + self.invites

    def without(self, beginning: str) -> "TurnTexts":
        """Give the same of texts that something else begins."""

        def rest(text: str | None) -> str | None:
            return None if text is None else text.removeprefix(beginning)

        return replace(
            self,
            opening=self.opening.removeprefix(beginning),
            before_system=rest(self.before_system),
            greets=rest(self.greets),
        )

    def go_template(self) -> str:
        """Give the same in the language of Ollama's templates."""
        ask = "{{ if $last }}" + _literal(self.asks_again)
        answer = "{{ if $last }}" + _literal(self.answers)
        if self.before_system is not None:
            system = "{{ else if $.System }}" + _literal(self.before_system) + "{{ $.System }}"
            ask += system + _literal(self.before_first or "")
            answer += system + _literal(self.before_greeting or "")
        said = "{{ .Content }}{{ $last = .Role }}"
        ask += "{{ else }}" + _literal(self.opening) + "{{ end }}" + said
        if self.greets is None:
            answer = "{{ if $last }}" + _literal(self.answers) + said + "{{ end }}"
        else:
            answer += "{{ else }}" + _literal(self.greets) + "{{ end }}" + said
        return (
            '{{ $last := "" }}{{ range .Messages }}{{ if eq .Role "user" }}'
            + ask
            + '{{ else if eq .Role "assistant" }}'
            + answer
            + '{{ end }}{{ end }}{{ if ne $last "assistant" }}'
            + _literal(self.invites)
            + "{{ end }}"
        )


def modelfile(folder: Path, gguf_name: str, context: int) -> tuple[str, list[tuple[str, str]]]:
    """Write the Modelfile of a model folder.

    Args:
        folder: with tokenizer and chat template.
        gguf_name: of the file beside it.
        context: longest text the file is good for, tokens.

    Returns:
        Its content; and what it could not say, with what to do about it.

    Raises:
        DataError: tokenizer, template or generation config cannot be read.
    """
    tokenizer = load_tokenizer(folder)
    source = own_template(folder)
    template = None if source is None else ChatTemplate(source, tokenizer.special_tokens)
    notices: list[tuple[str, str]] = []
    lines = [f"FROM ./{gguf_name}"]
    texts = None
    if template is None:
        notices.append(("the model has no chat template", _BY_HAND))
    else:
        texts = turn_texts(template, tokenizer)
        if texts is None:
            notices.append(("the chat template cannot be said in Ollama's language", _BY_HAND))
        elif texts.before_system is None:
            notices.append(("the chat template takes no system turn, so it is left out", _BY_HAND))
        bos = tokenizer.special_tokens.get("bos_token")
        if texts is not None and tokenizer.adds_bos and bos and not _begins(template, bos):
            what = f"Ollama begins every text with {bos}, the chat template does not"
            notices.append((what, "train with a template that begins with {{ bos_token }}"))
    if texts is not None:
        lines.append(f'TEMPLATE """{texts.go_template()}"""')
    for text in _stop_texts(folder, tokenizer, template):
        if (quoted := _quoted(text)) is None:
            notices.append((f"the stop text {text!r} cannot be said in it", "give it as an option"))
        else:
            lines.append(f"PARAMETER stop {quoted}")
    stated = read_json(folder / "generation_config.json")
    for name, (parameter, kind) in _PARAMETERS.items():
        value = stated.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if math.isfinite(value) and abs(value) < _LARGEST_PARAMETER:
            lines.append(f"PARAMETER {parameter} {kind(value)}")
    lines.append(f"PARAMETER num_ctx {min(context, LARGEST_CONTEXT)}")
    return "\n".join(lines) + "\n", notices


def turn_texts(template: ChatTemplate, tokenizer: Tokenizer) -> TurnTexts | None:
    """Find what a template writes around turns; None where it depends on more than their order."""
    try:
        found = _found(template)
    except (DataError, ValueError):
        return None
    has_system = found.before_system is not None
    if not _agrees(found, template, _conversations(has_system)):
        return None
    if found.greets is not None:
        greeted = [[_turn("assistant", "Hello."), *each] for each in _conversations(False)]
        if has_system:
            greeted += [[_turn("system", "Be brief."), *each] for each in greeted]
        if not _agrees(found, template, greeted):
            found = replace(found, greets=None, before_greeting=None)
    bos = tokenizer.special_tokens.get("bos_token")
    # Ollama puts it before every text by itself, as the file says.
    return found.without(bos) if tokenizer.adds_bos and bos else found


def _agrees(
    texts: TurnTexts, template: ChatTemplate, conversations: Sequence[Sequence[Mapping[str, str]]]
) -> bool:
    try:
        return all(
            texts.render(messages) == template.render(messages, add_generation_prompt=True)
            for messages in conversations
        )
    except DataError:
        return False


def _begins(template: ChatTemplate, text: str) -> bool:
    turns = [_turn("user", _ASKED)]
    return template.render(turns, add_generation_prompt=True).startswith(text)


def _found(template: ChatTemplate) -> TurnTexts:
    system, asked = _turn("system", _SYSTEM), _turn("user", _ASKED)
    answered, again = _turn("assistant", _ANSWERED), _turn("user", _ASKED_AGAIN)
    opening, invites = _around(template, [asked], [_ASKED])
    _, answers, asks_again, _ = _around(
        template, [asked, answered, again], [_ASKED, _ANSWERED, _ASKED_AGAIN]
    )
    before_system = before_first = greets = before_greeting = None
    with suppress(DataError, ValueError):
        before_system, before_first, _ = _around(template, [system, asked], [_SYSTEM, _ASKED])
    with suppress(DataError, ValueError):
        greets, *_ = _around(template, [answered, again], [_ANSWERED, _ASKED_AGAIN])
        if before_system is not None:
            _, before_greeting, *_ = _around(
                template, [system, answered, again], [_SYSTEM, _ANSWERED, _ASKED_AGAIN]
            )
    if before_system is not None and before_greeting is None:
        greets = None
    return TurnTexts(
        opening,
        before_system,
        before_first,
        answers,
        asks_again,
        invites,
        greets,
        before_greeting,
    )


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


def _conversations(with_system: bool) -> list[list[dict[str, str]]]:
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
    """Write text so that a Go template in a Modelfile gives it as it is; an action follows it."""
    return _TO_SPELL.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    """Write what cannot stand by itself as a string of Go."""
    text = found[0]
    if not text.isascii():
        return text if text.isprintable() else '{{ "' + _code(text) + '" }}'
    content = "".join(each if each.isprintable() else _code(each) for each in text)
    return '{{ "' + content.replace('"', '\\"') + '" }}'


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def _quoted(text: str) -> str | None:
    """Write a value of a Modelfile, which knows no escapes; None where it cannot be one."""
    is_kept = all(each.isprintable() or each in "\n\t" for each in text)
    if not is_kept or '"""' in text:
        return None
    return f'"""{text}"""' if set(text) & set('"\n') else f'"{text}"'


def _stop_texts(folder: Path, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[str]:
    """Give the texts that end a reply, of tokens and others, as Ollama wants to be told them."""
    ids = set(end_ids_of(folder, tokenizer))
    texts: list[str] = []
    if template is not None:
        more, texts_behind = stops_of(template, tokenizer)
        ids |= more
        texts += texts_behind
    texts += [text for each in sorted(ids) if (text := tokenizer.token_text(each)) is not None]
    return [text for text in dict.fromkeys(texts) if text]
