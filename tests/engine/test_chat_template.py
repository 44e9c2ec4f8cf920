"""Chat templates: equal to plain jinja2 on honest ones, and hostile ones stopped in time, memory and output."""

# ruff: noqa: E501 (templates are as models carry them)
from __future__ import annotations

import json
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.engine.chat_template import ChatTemplate
from sixfold.errors import TemplateError
from tests.engine.small_vocabularies import Model

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " ~ date_string ~ "\\n\\n" ~ system_message ~ "<|eot_id|>" }}
{%- if tools is not none and tools %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}"""
GEMMA = """{{ bos_token }}
{%- set loop_messages = messages -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception("roles must alternate") }}{%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}<image>{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"""
THINKING = """{%- macro part(text, n=1) -%}<{{ n }}:{{ text }}>{%- endmacro -%}
{%- set ns = namespace(last=-1, seen=[]) -%}
{%- for message in messages[::-1] -%}
    {%- set index = (messages|length - 1) - loop.index0 -%}
    {%- if ns.last < 0 and message.role == "user" and not(message.content.startswith('<tool>')) -%}
        {%- set ns.last = index -%}{%- set ns.seen = ns.seen + [message.role] -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if loop.index0 > 3 -%}{%- break -%}{%- endif -%}
    {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') if '</think>' in message.content else message.content -%}
    {{ part(answer, n=loop.index) }}{{ "%s-%03d" % (message.role, loop.index) }}{{ "{}:{role:>6}".format(1, role='ab') }}
{%- endfor -%}
{{ ns.last }}{{ ns.seen | join(', ') }}{{ messages | map(attribute='role') | list | tojson }}
{%- set roles = messages | selectattr('role', 'equalto', 'user') | list -%}{{ roles | length }}
{%- for key, value in {'b': 1, 'a': (1, 2)}.items() | sort -%}{{ key ~ '=' ~ value }};{%- endfor -%}
{%- generation -%}x{%- endgeneration -%}{{ 'a,b' | replace(',', ';') | upper | indent(2) }}{{ undefined_name or 'none' }}"""
CHAT = [
    {"role": "user", "content": " Hi <b>there</b> & 'you' "},
    {"role": "assistant", "content": "<think>hm</think>\nHello é人"},
    {"role": "user", "content": "Bye {{ 7 * 7 }}"},
]


def plain_jinja(source: str, **variables: Any) -> str:
    """What transformers does, without the limits."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    source = source.replace("{%- generation -%}", "{%- if true -%}").replace("{%- endgeneration -%}", "{%- endif -%}")
    return environment.from_string(source).render(bos_token="<bos>", eos_token="<eos>", **variables)


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA, THINKING], ids=["chatml", "llama3", "gemma", "thinking"])
@pytest.mark.parametrize("prompt", [True, False])
def test_honest_templates_render_as_in_plain_jinja(source: str, prompt: bool) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "<é>"}}]
    template = ChatTemplate(source, bos_token="<bos>", eos_token="<eos>")
    expected = plain_jinja(source, messages=CHAT, add_generation_prompt=prompt, tools=tools)
    assert template.render(CHAT, add_generation_prompt=prompt, tools=tools) == expected


@settings(max_examples=30)
@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text()}), min_size=1))
def test_any_content_passes_as_it_is(messages: list[dict[str, str]]) -> None:
    assert ChatTemplate(CHATML).render(messages) == plain_jinja(CHATML, messages=messages, add_generation_prompt=True)


def test_parts_become_text_where_the_template_reads_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert template.render([{"role": "user", "content": parts}]) == "[one\ntwo]"
    assert template.render([{"role": "assistant", "content": None, "tool_calls": []}]) == "[]"
    with pytest.raises(TemplateError, match="image_url"):
        template.render([{"role": "user", "content": [{"type": "image_url"}]}])
    assert "onetwo" in ChatTemplate(GEMMA).render([{"role": "user", "content": parts}])


def test_text_becomes_a_part_where_the_template_reads_parts() -> None:
    template = ChatTemplate("{% for m in messages %}{% for p in m['content'] %}<{{ p.text }}>{% endfor %}{% endfor %}")
    assert template.render([{"role": "user", "content": "hi"}]) == "<hi>"


def test_extra_variables_and_dates() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ strftime_now('%Y') }} {{ tools is none }}")
    assert template.render([], enable_thinking=False) == f"False {time.strftime('%Y')} True"


def test_the_template_may_refuse() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        ChatTemplate(GEMMA).render([{"role": "assistant", "content": "x"}])


NS = "{% set ns = namespace(x=[1], y=[1], s='ab', n=3) %}"
HOSTILE = {
    "class": "{{ ''.__class__ }}",
    "subclasses": "{{ messages.__class__.__base__.__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "self": "{{ self.__init__ }}",
    "attr": "{{ messages|attr('__class__') }}",
    "item": "{{ messages['__class__'] }}",
    "format attribute": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "format class": "{{ '{0.__class__}'.format(messages) }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format item": "{{ ''['format_map']({}) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format computed": "{{ '{:{}}'.format(1, 10**9) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent name": "{{ '%(a)01000000000d' % {'a': 1} }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "change a list": "{{ messages.append(1) }}",
    "change a dict": "{{ messages[0].update({'a': 1}) }}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that filter": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loop of tests": "{% for i in range(99999) %}{{ range(99999)|select('eq', 7)|list }}{% endfor %}",
    "loop of sorts": "{% set x = range(99999)|list %}{% for a in x %}{{ x|sort }}{% endfor %}",
    "times": "{{ 'x' * 10**9 }}",
    "times twice": "{{ ('x' * 1000000) * 1000000 }}",
    "list times": "{{ [1] * 10**9 }}",
    "long list times": "{{ range(99999)|list * 1000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": NS + "{% for i in range(99999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "concat": NS + "{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "plus": NS + "{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "capture": NS + "{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "static text": "{% for i in range(99999) %}{% set x %}" + "a" * 5000 + "{% endset %}{% endfor %}",
    "nested lists": NS + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nested dicts": NS + "{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|tojson }}",
    "nested dict()": NS + "{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x|tojson }}",
    "nested varargs": NS + "{% macro m() %}{% set ns.x = varargs %}{% endmacro %}"
    "{% for i in range(60) %}{{ m(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    "compare": NS + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
    "{{ ns.x == ns.y }}",
    "list plus": NS + "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "hoard": NS + "{% for i in range(99999) %}{% set ns.x = ns.x + ['x' * 4000000] %}{% endfor %}{{ ns.x }}",
    "recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "tree": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "growing recursion": "{% macro m(s) %}{{ m(s ~ s) }}{% endmacro %}{{ m('abcdefgh') }}",
    "slices": "{% macro m(s) %}{{ m(s[1:]) }}{% endmacro %}{{ m('a' * 4000000) }}",
    "recursive loop": "{% for i in range(200) recursive %}{{ loop(range(200)) }}{% endfor %}",
    "center": "{{ 'x'|center(1000000000) }}",
    "center method": "{{ 'x'.center(1000000000) }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "expandtabs": "{{ 'x\ty'.expandtabs(1000000000) }}",
    "replace": "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
    "replace method": "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
    "filter block": "{% filter replace('x', 'y' * 4000000) %}{{ 'x' * 4000000 }}{% endfilter %}",
    "join": "{{ range(99999)|join('y' * 1000000) }}",
    "join method": "{{ ('y' * 1000000).join(range(9999)|map('string')) }}",
    "indent": "{{ ('x\n' * 100000)|indent(1000000) }}",
    "indent text": "{{ ('x\n' * 100000)|indent('y' * 100000) }}",
    "json indent": "{{ [[1]]|tojson(indent=1000000000) }}",
    "round": "{{ 3.5|round(1000000000, 'ceil') }}",
    "sum": "{{ [[1]]|sum(start=[]) }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "to_bytes": "{{ (5).to_bytes(1000000000) }}",
    "date width": "{{ strftime_now('%1000000000d') }}",
    "refuel": "{{ [-10**15]|map('sixfold draw')|list }}{{ 'x' * 10**9 }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'a' %}",
    "import": "{% import 'os' as os %}",
    "division": "{{ 1 / 0 }}",
    "undefined": "{{ nothing.here }}",
    "unclosed": "{% for i in x %}",
    "unknown filter": "{{ 1|nonsense }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "ifs": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "fors": "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "sums": "{{ " + "1+" * 5000 + "1 }}",
    "many nodes": "{{a}}" * 25_000,
    "long": "x" * (300 << 10),
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_stopped(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(TemplateError):
        ChatTemplate(source, seconds=0.1).render(CHAT)
    assert time.thread_time() - start < 3.0


@pytest.mark.parametrize("name", ["concat", "capture", "nested lists", "hoard", "slices", "join method", "static text"])
def test_hostile_templates_take_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            ChatTemplate(HOSTILE[name], max_output=1 << 20).render(CHAT)
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()


def test_output_is_limited() -> None:
    template = ChatTemplate("{% for i in range(100) %}{{ messages[0].content }}{% endfor %}", max_output=1000)
    assert len(template.render([{"content": "x" * 10}])) == 1000
    with pytest.raises(TemplateError, match="longer than 1000"):
        template.render([{"content": "x" * 11}])


def test_a_long_chat_is_no_attack() -> None:
    messages = [{"role": "user", "content": "x" * 1000}, {"role": "assistant", "content": "y" * 1000}] * 500
    assert len(ChatTemplate(GEMMA).render(messages)) > 1_000_000
    assert len(ChatTemplate(CHATML).render([{"role": "user", "content": "z" * 1_000_000}])) > 1_000_000


def test_a_stopped_template_does_not_disturb_others() -> None:
    good, results = ChatTemplate(CHATML), []
    expected = good.render(CHAT)

    def attack() -> None:
        with pytest.raises(TemplateError):
            ChatTemplate(HOSTILE["loops"], seconds=0.3).render(CHAT)

    def work() -> None:
        results.extend(good.render(CHAT) == expected for _ in range(50))

    threads = [threading.Thread(target=target) for target in (attack, work, attack, work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 100 and all(results)


def test_from_gguf() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ bos_token }}a{{ eos_token }}",
        "tokenizer.chat_template.tool_use": "with {{ tools | length }} tools",
    }
    template = ChatTemplate.from_model(Model(metadata))
    assert template is not None
    assert template.render([]) == "<s>a</s>"
    assert template.render([], tools=[{}]) == "with 1 tools"
    assert ChatTemplate.from_model(Model({})) is None


def test_from_directory(tmp_path: Path) -> None:
    model = Model({}, "safetensors", tmp_path)
    assert ChatTemplate.from_model(model) is None
    settings_file = tmp_path / "tokenizer_config.json"
    settings_file.write_text(json.dumps({"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}one"}))
    template = ChatTemplate.from_model(model)
    assert template is not None and template.render([]) == "<s>one"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    settings_file.write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_model(model)
    assert template is not None and template.render([]) + template.render([], tools=[{}]) == "dt"
    (tmp_path / "chat_template.jinja").write_text("file{{ eos_token }}")
    template = ChatTemplate.from_model(model)
    assert template is not None and template.render([]) == "file"


def test_from_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("mine{{ bos_token }}")
    model = Model({"tokenizer.ggml.tokens": ["<s>"], "tokenizer.ggml.bos_token_id": 0})
    assert ChatTemplate.from_file(tmp_path / "mine.jinja", model).render([]) == "mine<s>"
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate.from_file(tmp_path / "absent.jinja", model)
