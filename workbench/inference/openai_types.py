"""The requests and answers of OpenAI's protocol, as far as this server honours them.

A parameter that is not here is refused by name; one that is here has an effect, or may only have
the value that has none. Knows nothing of models. The fields are those of OpenAI's API reference,
with ``top_k``, ``min_p``, ``repetition_penalty`` and ``stop_token_ids`` as other servers have them
and ``truncation`` as OpenAI has it elsewhere.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)


def check_unicode(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer can read.

    Raises:
        ValueError: the text holds one.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(check_unicode)]
StopString = Annotated[Text, Field(min_length=1, max_length=200)]
StopStrings = Annotated[list[StopString], Field(max_length=16)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextContent(_Strict):
    """A part of a message; this server reads text only."""

    type: Literal["text"]
    text: Text


def parts_of(content: object) -> object:
    """Read a plain text as a list of one part: a union would be reported twice when it is wrong.

    Raises:
        ValueError: it is neither a text nor a list.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return content
    raise ValueError("should be a text, or a list of parts of text")


class ChatMessage(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[TextContent], BeforeValidator(parts_of)]

    @property
    def text(self) -> str:
        """The whole content as text."""
        return "".join(part.text for part in self.content)


def list_of(stop: object) -> object:
    """Read a single stop string as a list of one."""
    return [stop] if isinstance(stop, str) else stop


class StreamOptions(_Strict):
    """What a stream holds beside the text."""

    include_usage: bool = False


class _SamplingRequest(_Strict):
    """What both kinds of completion may ask for."""

    model: Text | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    n: Annotated[int, Field(ge=1, le=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: Annotated[StopStrings | None, BeforeValidator(list_of)] = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    # Clients send these with the value that changes nothing; any other value is refused.
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @property
    def wants_usage(self) -> bool:
        """A stream ends with what was used."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_SamplingRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


TokenId = Annotated[int, Field(ge=0)]


def prompts_of(prompt: object) -> object:
    """Read one prompt, a text or ids, as a list of one.

    ``"a"`` gives ``["a"]``, ``[5, 6]`` gives ``[[5, 6]]``.

    Raises:
        ValueError: it is neither a text nor a list.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise ValueError("should be a text, a list of texts, or token ids")
    return [prompt] if prompt and all(type(part) is int for part in prompt) else prompt


def _kind_of_prompt(prompt: object) -> str:
    return "ids" if isinstance(prompt, list) else "text"


Prompt = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[TokenId], Tag("ids"), Field(min_length=1)],
    Discriminator(_kind_of_prompt),
]


class CompletionRequest(_SamplingRequest):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        list[Prompt], BeforeValidator(prompts_of), Field(min_length=1, max_length=128)
    ]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    # As above: only the value that changes nothing.
    best_of: Literal[1] | None = None


class Usage(BaseModel):
    """Tokens that went in and came out; the stop token counts as one that came out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """A token that was likely at its place."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """A token of the reply, and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """What the model thought of the tokens of a reply."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class ReplyMessage(BaseModel):
    """The message that the model wrote."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """One reply of a chat completion."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None


class ChatCompletion(BaseModel):
    """Answer to a chat request that does not stream; ``notice`` says what was left out."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    notice: str | None = None


class Delta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """What a chunk adds to one reply."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(BaseModel):
    """One event of a chat stream; the one with usage has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    notice: str | None = None


class TextLogprobs(BaseModel):
    """What the model thought of the tokens of a text; the first of a prompt has no thought."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One text of a completion, or what an event of a stream adds to it."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: TextLogprobs | None = None


class TextCompletion(BaseModel):
    """Answer to a request for the completion of a text, and an event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    notice: str | None = None


class ModelEntry(BaseModel):
    """A model in the answer to GET /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["workbench"] = "workbench"
    context_length: int


class ModelList(BaseModel):
    """Answer to GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ErrorContent(BaseModel):
    """What went wrong; ``param`` names the parameter, ``code`` is for programs."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "server_error"]
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """Body of every answer that is an error."""

    error: ErrorContent


def describe_validation(problems: Sequence[Any]) -> tuple[str, str | None, str | None]:
    """Say everything that is wrong with a request: sentence, first parameter, code.

    Args:
        problems: pydantic's errors, with type, loc and msg.
    """
    unknown = [_parameter(problem) for problem in problems if problem["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(unknown)
        plural = "s" if len(unknown) > 1 else ""
        return (
            f"unknown parameter{plural}, not honoured here: {names}",
            unknown[0],
            ("unknown_parameter"),
        )
    messages = {_parameter(problem): problem["msg"] for problem in problems}
    sentence = "; ".join(f"{name}: {message}" for name, message in messages.items())
    return sentence, next(iter(messages), None), "invalid_value"


def _parameter(problem: Any) -> str:  # noqa: ANN401 - pydantic's error
    """Write a place in the body as clients know it: ``messages[0].role``."""
    name = ""
    for part in problem["loc"]:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{part}" if name else part
    return name or "body"
