"""Templates that attack, run wild or are wrong: each ends in an error that names its line."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from workbench.data.jinja_sandbox import (
    GENERATION_BEGIN,
    GENERATION_END,
    MAX_CHARACTERS,
    CompiledTemplate,
)
from workbench.errors import DataError

MESSAGES: list[dict[str, object]] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
]


def render(source: str) -> str:
    return CompiledTemplate(source).render(MESSAGES, {"eos_token": "</s>"})


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process take one more GiB of addresses, so that a bound that fails is an error."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ messages[0]['__class__'] | attr('__class__') }}{{ ''['__class__'].__subclasses__() }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ '{0.__class__}'.format(messages) ~ ''.format.__self__.__class__.__base__ }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace(_hidden=1) %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(DataError, match=r"line 1(\) refuses|: is not valid Jinja)"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages.pop() }}",
        "{{ messages[0].update({'content': ''}) }}",
        "{{ messages[0].pop('content') }}",
        "{% set _ = messages[0].setdefault('x', 1) %}",
    ],
)
def test_a_template_cannot_change_the_conversation(source: str) -> None:
    before = [dict(message) for message in MESSAGES]
    with pytest.raises(DataError, match=r"line 1\) refuses"):
        render(source)
    assert before == MESSAGES


ENDLESS = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(1000000) %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for a in [[1, 1], [1, 1]] recursive %}{{ loop([[1, 1], [1, 1]]) }}{% endfor %}",
    "{% for a in 'x' * 100 %}{% for b in 'x' * 100 %}{% for c in 'x' * 100 %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 'x' * 10 ** 12 }}",
    "{{ 10 ** 12 * 'x' }}",
    "{{ [0] * 10 ** 10 }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ 'x' | indent(10 ** 10, true) }}",
    "{{ lipsum(n=10 ** 9) }}",
    "{% set ns = namespace(a='xxxxxxxx') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}"
    "{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a='xxxxxxxx') %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}"
    "{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}"
    "{% endfor %}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10 ** 9) }}",
    "{{ '%999999999d' | format(1) }}",
    "{% macro m(s) %}{{ m(s ~ s) }}{% endmacro %}{{ m('xxxxxxxx') }}",
    "{% set s = 'x' * 10 ** 6 %}{% for i in range(99) %}{{ s }}{% endfor %}",
]


@pytest.mark.parametrize(
    "source",
    ["{{ " + "(" * 5000, "{% if 1 %}" * 500 + "{% endif %}" * 500],
    ids=["brackets", "statements"],
)
def test_a_template_that_is_nested_too_deeply_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="nested too deeply"):
        CompiledTemplate(source)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_without_end_is_stopped(source: str) -> None:
    with pytest.raises(DataError, match=r"conversation: (its? |Range too big|maximum recursion)"):
        render(source)


def test_work_of_one_rendering_does_not_count_for_the_next() -> None:
    template = CompiledTemplate("{% for a in range(60000) %}{% endfor %}{{ messages | length }}")
    assert [template.render(MESSAGES, {}) for _ in range(3)] == ["2", "2", "2"]


def test_a_long_conversation_is_within_the_bounds() -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "x" * 1000}] * 10_000
    source = "{% set ns = namespace(all='') %}{% for m in messages %}"
    source += "{{ m.content }}{% set ns.all = ns.all + m.role %}{% endfor %}{{ ns.all | length }}"
    text = CompiledTemplate(source).render(messages, {})
    assert text.endswith("x40000")
    assert len(text) == 10_000_005 < MAX_CHARACTERS


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("one\n{{ raise_exception('no system turns') }}", r"line 2\).*no system turns"),
        ("\n\n{{ bos_token + 'x' }}", r"line 3\).*'bos_token' is undefined"),
        ("{% for m in messages %}\n{{ m.name.first }}\n{% endfor %}", r"line 2\).*'name'"),
        ("{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n\n{{ m() }}", r"line 2\).*division by zero"),
        ("\n{{ messages[0].content + 1 }}", r"line 2\).*"),
        ("\n{{ messages | sum }}", r"line 2\).*"),
        ("\n{{ messages[9].content.x }}", r"line 2\).*no element 9"),
        ("\n{{ 'x' | no_such_filter }}", "line 2: is not valid Jinja: .*no_such_filter';"),
        ("a\n{% if %}", "line 2: is not valid Jinja"),
        ("a\n\n{% for m in messages %}", "line 3: is not valid Jinja: .*endfor"),
        ("\n{% block a %}{% endblock %}", "line 2: is not valid Jinja: .*no blocks"),
    ],
)
def test_an_error_names_the_line_of_the_template(source: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        render(source)


USUAL = {
    "macros and filters of lists": (
        "{%- macro part(m, last=false) -%}{{ '<' + m.role + '>' ~ (m.content | trim) }}"
        "{{ '$' if last }}{%- endmacro -%}{%- set ns = namespace(seen=0, sys='') -%}"
        "{%- for m in messages if m.role == 'user' -%}{%- set ns.sys = ns.sys + m.content -%}"
        "{%- endfor -%}{{- ns.sys }}"
        "{%- for m in messages | rejectattr('role', 'equalto', 'system') -%}"
        "{%- set ns.seen = ns.seen + 1 -%}{{- part(m, last=loop.last) }}[{{ ns.seen % 2 }}"
        "{{ loop.previtem.role if loop.previtem is defined else '-' }}]{%- endfor -%}"
    ),
    "blocks that are kept": (
        "{% set body %}{% for m in messages %}{{ m.content }}|{% endfor %}{% endset %}"
        "{{ body | upper }}{{ messages | map(attribute='role') | list | tojson(indent=2) }}"
    ),
    "slices and formats": (
        "{{ messages[::-1][0].content }}{{ messages[-1:][0]['role'] }}{{ 'a' * 3 }}{{ 7 % 4 }}"
        "{{ (messages | length) * 2 + 1 }}{{ '%s-%d' % ('x', 3) }}{{ '{:>3}|{}'.format(1, 'b') }}"
        "{{ '%s!' | format('y') }}{{ 2 ** 5 }}{{ 'x' | indent(2, true) | center(9) }}"
    ),
    "texts and what is not there": (
        "{% for m in messages %}{% if m.content is string %}{{ m['content'].split('l')[0] ~ '\n' }}"
        "{% endif %}{{ m.name | default('n', true) }}{{ m.content | replace('e', 'E') }}"
        "{% if loop.last %}{% break %}{% endif %}{{ m.content[:3] }}{% endfor %}"
        "{{ messages[0].get('name', 'none') }}{{ tools is none }}{{ nothing is defined }}"
    ),
    "what is made": (
        "{%- set found = dict(a=1) -%}{{ found.a }}{{ dict([('b', 2)])['b'] }}"
        "{{ {'ü': '<'} | tojson }}{{ ['a', 'b'] | join(', ') }}{{ strftime_now('%Y') }}"
        "{{ cycler('a', 'b').next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}"
        "{% for i in range(3) %}{{ loop.cycle('x', 'y') }}{% endfor %}"
        "{% generation %}{{ messages[1].content + '</s>' }}{% endgeneration %}"
    ),
}


@pytest.mark.parametrize("name", USUAL)
def test_what_chat_templates_use_gives_what_it_gives_in_transformers(name: str) -> None:
    theirs = render_jinja_template([MESSAGES], chat_template=USUAL[name])[0][0]
    ours = render(USUAL[name])
    assert ours.replace(GENERATION_BEGIN, "").replace(GENERATION_END, "") == theirs
    assert len(theirs) > 10


def test_a_mark_cannot_be_written_by_who_knows_an_earlier_one() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    first, second = CompiledTemplate(source), CompiledTemplate(source)
    assert first.walks_forward
    assert first.round_begin != second.round_begin
    text = first.render(MESSAGES, {}, with_rounds=True)
    assert text.split(first.round_begin) == ["", "Hello", "Hi."]
