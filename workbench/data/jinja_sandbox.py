"""Runs chat templates, which strangers write: sandboxed, within bounds, with lines in errors.

The settings and helpers are those for which chat templates are written (the documentation of chat
templates in transformers), so text is the same here and there. Bounds: ``MAX_ROUNDS`` rounds of
all loops and macros of one rendering, ``MAX_CHARACTERS`` in a text, ``MAX_NUMBER`` as an argument
or as the items of a list. They are far above what conversations need, and far below what hurts.

Knows nothing of roles or of what is trained; but a compiled template can also say where each round
of its walk over the messages begins, see ``walks_forward``.
"""

import functools
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from workbench.errors import DataError

# Not characters (Unicode 16.0, section 23.7), so no text holds them.
GENERATION_BEGIN, GENERATION_END = "\ufdd0", "\ufdd1"

MAX_ROUNDS = 100_000
MAX_CHARACTERS = 1 << 24
MAX_NUMBER = 1 << 20

_WHERE = "chat template"
_REMEDY = "choose a template for such turns, or correct the row"
_LACKING_TOKEN = re.compile(r"'((?:bos|eos|pad|unk)_token)' is undefined")
_NAME_IT = "name {} in tokenizer_config.json, or choose a template without it, such as chatml"
_LOOK_BACK = frozenset({"index", "index0", "first", "previtem", "depth", "depth0"})
_SIZED_FILTERS = ("batch", "center", "format", "indent", "slice", "truncate", "wordwrap")

_Node = TypeVar("_Node", bound=nodes.Node)


class CompiledTemplate:
    """A template that is ready to render.

    Args:
        source: Jinja text.

    Attributes:
        marks_generation: it says by ``{% generation %}`` what the assistant writes.
        round_begin: what stands where a round of its walk begins, in texts ``with_rounds``; drawn
            anew each time, so neither a template nor a conversation can write it.
        walks_forward: it provably goes over the messages once, from the first to the last, and
            what it writes for some of them does not depend on those that follow. Then the text of
            the first ``k`` messages is what the text of all begins with, up to round ``k``.

    Raises:
        DataError: the source is not valid Jinja, or uses what a chat template must not.
    """

    def __init__(self, source: str) -> None:
        environment = _environment()
        self.round_begin = f"\ufdd2{secrets.token_hex(8)}\ufdd2"
        try:
            tree = environment.parse(source)
            self.marks_generation = bool(re.search(r"\{%-?\s*generation\s*-?%\}", source))
            walk = None if self.marks_generation else _forward_walk(tree)
            self.walks_forward = walk is not None
            _bound(tree)
            self._plain = _compile(environment, tree)
            self._with_rounds = self._plain
            if walk is not None:
                walk.body.insert(0, _output(self.round_begin, walk.lineno))
                self._with_rounds = _compile(environment, tree)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"is not valid Jinja: {(error.message or '').rstrip('.')}",
                where=f"{_WHERE} line {error.lineno}",
                remedy="correct the template, or choose a shipped one",
            ) from error
        except (MemoryError, RecursionError, SyntaxError) as error:
            raise DataError(
                f"is nested too deeply: {error}", where=_WHERE, remedy="choose another template"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        special_tokens: Mapping[str, str],
        *,
        add_generation_prompt: bool = False,
        with_rounds: bool = False,
    ) -> str:
        """Give the text of a conversation, still with the marks around what is generated.

        Args:
            messages: each with ``role`` and ``content``.
            special_tokens: ``bos_token`` and so on.
            add_generation_prompt: end with what invites the assistant's next turn.
            with_rounds: write ``round_begin`` where each round of the walk begins.

        Raises:
            DataError: the template refuses these messages, fails on them, or exceeds a bound.
        """
        template = self._with_rounds if with_rounds else self._plain
        values: dict[str, object] = {
            **special_tokens,
            "messages": list(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _joined(template, values)
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            line = _line_of(template, error.__traceback__)
            place = "" if line is None else f" (line {line})"
            told = str(error) or type(error).__name__
            raise DataError(
                f"the chat template{place} refuses this conversation: {told}",
                where=_WHERE,
                remedy=_NAME_IT.format(lacking[1])
                if (lacking := _LACKING_TOKEN.fullmatch(told))
                else _REMEDY,
            ) from error


def _compile(environment: jinja2.Environment, tree: nodes.Template) -> jinja2.Template:
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def _joined(template: jinja2.Template, values: dict[str, object]) -> str:
    pieces, num_characters = [], 0
    for piece in template.root_render_func(template.new_context(values)):
        num_characters += len(piece)
        if num_characters > MAX_CHARACTERS:
            raise SecurityError(f"it writes more than {MAX_CHARACTERS} characters")
        pieces.append(piece)
    return "".join(pieces)


def _line_of(template: jinja2.Template, traceback: TracebackType | None) -> int | None:
    """Find the template's line at which an error left it: the innermost of its own frames."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__jinja_template__") is not None:
            line = template.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line


# ---- a template that walks forward -----------------------------------------------------------


def _forward_walk(tree: nodes.Template) -> nodes.For | None:
    """Find the one loop over the messages, if prefixes of them give prefixes of the text.

    What is proved, from the grammar alone: before the loop nothing but the first message is looked
    at; the loop runs over all messages, or over those behind a constant number of them; a round
    knows its own message, those before it and what earlier rounds left, never how many follow;
    behind the loop nothing is written but a constant text, as the generation prompt.
    """
    if any(tree.find_all((nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock))):
        return None
    loops = [node for node in tree.body if isinstance(node, nodes.For)]
    aliases = _message_lists(tree)
    walks = [loop for loop in loops if _is_tail(loop.iter, aliases)]
    if len(walks) != 1 or aliases is None:
        return None
    (walk,) = walks
    if walk.test is not None or walk.else_ or walk.recursive:
        return None
    behind = tree.body[tree.body.index(walk) + 1 :]
    if not all(_is_constant_prompt(node) for node in behind):
        return None
    return walk if _looks_back_only(tree, walk, behind, aliases) else None


def _message_lists(tree: nodes.Template) -> frozenset[str] | None:
    """Name the variables that hold all messages, or those behind the first few."""
    names = {"messages"}
    assignments = list(tree.find_all(nodes.Assign))
    for assignment in assignments:
        if isinstance(assignment.target, nodes.Name) and _is_tail(assignment.node, names):
            names.add(assignment.target.name)
    for assignment in assignments:
        targets = {name.name for name in _within(assignment.target, nodes.Name)}
        if "messages" in targets or (targets & names and not _is_tail(assignment.node, names)):
            return None
    bound = {name.name for loop in tree.find_all(nodes.For) for name in _targets_of(loop)}
    return None if bound & names else frozenset(names)


def _targets_of(loop: nodes.For) -> list[nodes.Name]:
    return _within(loop.target, nodes.Name)


def _within(node: nodes.Node, kind: type[_Node]) -> list[_Node]:
    """Give a node, if it is of a kind, and all nodes of that kind below it."""
    return [*([node] if isinstance(node, kind) else []), *node.find_all(kind)]


def _is_tail(node: nodes.Node, names: frozenset[str] | set[str] | None) -> bool:
    """Say whether an expression is ``messages`` or ``messages[2:]``."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        part = node.arg
        is_tail = part.stop is None and part.step is None and _is_count(part.start)
        return is_tail and _is_tail(node.node, names)
    return isinstance(node, nodes.Name) and names is not None and node.name in names


def _is_count(node: nodes.Node | None) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, int) and node.value >= 0


def _is_constant_prompt(node: nodes.Node) -> bool:
    """Say whether a statement is ``if add_generation_prompt`` around text without variables."""
    if isinstance(node, nodes.Output):
        return all(isinstance(part, nodes.TemplateData) and not part.data for part in node.nodes)
    if not isinstance(node, nodes.If) or node.elif_ or node.else_:
        return False
    if not isinstance(node.test, nodes.Name) or node.test.name != "add_generation_prompt":
        return False
    kinds = (nodes.TemplateData, nodes.Const, nodes.Name, nodes.Add, nodes.Concat)
    return all(
        isinstance(statement, nodes.Output)
        and all(isinstance(part, kinds) for part in statement.nodes)
        and all(name.name.endswith("_token") for name in statement.find_all(nodes.Name))
        and not any(statement.find_all((nodes.Call, nodes.Filter, nodes.Getattr, nodes.Getitem)))
        for statement in node.body
    )


def _looks_back_only(
    tree: nodes.Template,
    walk: nodes.For,
    behind: Sequence[nodes.Node],
    lists: frozenset[str],
) -> bool:
    allowed: set[int] = {id(walk.iter), *map(id, walk.iter.find_all(nodes.Name))}
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_tail(assignment.node, lists):
            allowed |= {id(name) for name in _within(assignment, nodes.Name)}
    for item in tree.find_all(nodes.Getitem):
        is_first = isinstance(item.arg, nodes.Const) and item.arg.value == 0
        if is_first and isinstance(item.node, nodes.Name) and item.node.name == "messages":
            allowed.add(id(item.node))
    for attribute in tree.find_all(nodes.Getattr):
        is_of_loop = isinstance(attribute.node, nodes.Name) and attribute.node.name == "loop"
        if is_of_loop and attribute.attr in _LOOK_BACK:
            allowed.add(id(attribute.node))
    for statement in behind:
        allowed |= {id(name) for name in statement.find_all(nodes.Name)}
    guarded = {*lists, "loop", "add_generation_prompt", "self", "caller", "varargs", "kwargs"}
    return all(
        name.name not in guarded or id(name) in allowed for name in tree.find_all(nodes.Name)
    )


# ---- bounds ----------------------------------------------------------------------------------


def _bound(tree: nodes.Template) -> None:
    """Count the rounds of loops and macros, and watch texts that are kept while they grow."""
    for block in tree.find_all((nodes.Block, nodes.Include, nodes.Import, nodes.FromImport)):
        raise jinja2.TemplateSyntaxError("a chat template has no blocks or imports", block.lineno)
    repeated: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For)]
    for body in (node.body for node in [*repeated, *tree.find_all(nodes.Macro)]):
        # A filter is called without the checks of the sandbox, which cost as much as a message.
        tick = nodes.Filter(nodes.Const(None), "_count_round", [], [], None, None)
        body.insert(0, nodes.ExprStmt(tick).set_lineno(1))
    written = {id(part) for output in tree.find_all(nodes.Output) for part in output.nodes}
    _watch(tree, written)


def _watch(node: nodes.Node, written: set[int]) -> None:
    """Check the size of every sum and joined text that is not written at once."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_watched(item, written) for item in value]
        elif isinstance(value, nodes.Node):
            setattr(node, field, _watched(value, written))


def _watched(item: Any, written: set[int]) -> Any:  # noqa: ANN401  a field of Jinja's tree
    if not isinstance(item, nodes.Node):
        return item
    if isinstance(item, (nodes.Add, nodes.Concat)) and id(item) not in written:
        _watch_terms(item, written)
        return nodes.Filter(item, "_check_size", [], [], None, None).set_lineno(item.lineno)
    if isinstance(item, (nodes.Add, nodes.Concat)):
        _watch_terms(item, written)
    else:
        _watch(item, written)
    return item


def _watch_terms(node: nodes.Node, written: set[int]) -> None:
    """Go on below a sum; a sum within a sum is checked with the whole."""
    for term in node.iter_child_nodes():
        if isinstance(term, (nodes.Add, nodes.Concat)):
            _watch_terms(term, written)
        else:
            _watch(term, written)


def _output(text: str, line: int) -> nodes.Output:
    return nodes.Output([nodes.TemplateData(text, lineno=line)], lineno=line)


class _CountingContext(Context):
    """The variables of one rendering, and how much work it has done."""

    num_rounds = 0


@pass_context
def _count_round(context: _CountingContext, value: object) -> object:
    context.num_rounds += 1
    if context.num_rounds > MAX_ROUNDS:
        raise SecurityError(f"its loops and macros run more than {MAX_ROUNDS:,} rounds")
    return value


@pass_context  # so that Jinja never evaluates it ahead
def _check_size(context: Context, value: object) -> object:
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        raise SecurityError(f"it builds a text of more than {MAX_CHARACTERS} characters")
    if isinstance(value, (list, tuple)) and len(value) > MAX_NUMBER:
        raise SecurityError(f"it builds a list of more than {MAX_NUMBER} items")
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with bounds on numbers and on widths in formats."""

    intercepted_binops = frozenset({"*", "**", "%"})
    context_class = _CountingContext

    def call_binop(
        self,
        context: Context,
        operator: str,
        left: Any,  # noqa: ANN401
        right: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if operator == "**" and max(_size(left), _size(right)) > 1000:
            raise SecurityError("it raises to a power above 1000")
        if operator == "*" and _size(left) * _size(right) > MAX_CHARACTERS:
            raise SecurityError(f"it multiplies to more than {MAX_CHARACTERS}")
        if operator == "%":
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: ANN401
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call(
        __self,  # noqa: N805  the names of Jinja's method: a template may pass a keyword `self`
        __context: Context,
        __obj: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        _check_numbers(args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _size(value: object) -> int:
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _check_numbers(args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"it passes a number above {MAX_NUMBER}")


def _check_format(form: object) -> None:
    """Refuse widths that make a long text of a short one: ``%999999999d``, ``{:>{}}``, ``%*d``."""
    if isinstance(form, str) and re.search(r"\d{5}|\{[^{}]+\{|%[^%]*\*", form):
        raise SecurityError("it formats to a width that is very large, or not written out")


def _with_small_numbers(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(wrapped)
    def checked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        _check_numbers(args, kwargs)
        if wrapped.__name__ == "do_format":
            _check_format(args[0])
        return wrapped(*args, **kwargs)

    return checked


# ---- what templates find ---------------------------------------------------------------------


class _GenerationTag(Extension):
    """The tag ``{% generation %} … {% endgeneration %}``: puts marks around what it holds."""

    tags = {"generation"}  # noqa: RUF012  the form Jinja's extensions have

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Macro) -> str:
        return f"{GENERATION_BEGIN}{caller()}{GENERATION_END}"


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401
    return dict(*args, **kwargs)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Make the sandbox with the settings and helpers chat templates are written for.

    Source: the documentation of chat templates in transformers.
    """
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    for name in _SIZED_FILTERS:
        environment.filters[name] = _with_small_numbers(environment.filters[name])
    environment.filters["tojson"] = _to_json
    environment.filters["_count_round"] = _count_round
    environment.filters["_check_size"] = _check_size
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _format_now
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = _make_dict
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is; Jinja's own filter escapes what HTML would misread."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _format_now(form: str) -> str:
    return datetime.now().strftime(form)
