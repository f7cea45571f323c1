"""A chat template becomes plain pieces, or is refused in one line."""

import json

import pytest
from dlm_edge.export.members.chat import (
    CONFIG_NAME,
    PROCESSOR_NAME,
    TEMPLATE_NAME,
    join,
    pieces_of,
    read_chat,
)
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.text.chat_template import ChatTemplate

CHATML = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == "system" and loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] =="
    " 'assistant' else 'user' %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim +"
    " '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\\n' }}{% endif %}"
)
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = CHATML.replace(
    "'\\n' + message.content +", "'\\n' + message.content.split('</think>')[-1] +"
)
"""Drops the thoughts of earlier answers, as templates of models that think do."""
THOUGHTFUL = """{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if ns.last < 0 and message.role == 'user' and message.content is string %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role in ('user', 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- else %}
        {%- set thought, said = '', message.content %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- said + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""Writes thoughts only behind the last question, as Qwen3's own template does."""
TAGGED = CHATML.replace(
    "        {{- '<|im_start|>' + message.role",
    "        {% generation %}{{- '<|im_start|>' + message.role",
).replace(
    "'\\n' }}\n    {%- endif %}\n{%- endfor",
    "'\\n' }}{% endgeneration %}\n    {%- endif %}\n{%- endfor",
)
DATED = "{{ strftime_now('%d') }}" + THINKING
NAMES = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>")


def test_a_template_with_a_default_system_text_is_taken_apart():
    found = pieces_of({"chat_template": CHATML, "eos_token": "<|im_end|>"}, NAMES)
    assert found.begin == ""
    assert found.system == ("<|im_start|>system\n", "<|im_end|>\n")
    assert found.user == ("<|im_start|>user\n", "<|im_end|>\n")
    assert found.assistant == ("<|im_start|>assistant\n", "<|im_end|>\n")
    assert found.default_system == "You are kind."
    assert found.stop == ("<|im_end|>",)


def test_the_pieces_join_to_what_transformers_renders():
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    found = pieces_of({"chat_template": CHATML, "eos_token": "<|im_end|>"}, NAMES)
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two.\n"},
        {"role": "user", "content": " Three {{ 4 }} "},
    ]
    wanted, _ = render_jinja_template(
        conversations=[messages], chat_template=CHATML, add_generation_prompt=True
    )
    assert join(found, messages) == wanted[0]


def test_thoughts_that_a_template_drops_from_earlier_answers_are_dropped_by_the_pieces():
    found = pieces_of({"chat_template": THOUGHTFUL, "eos_token": "<|im_end|>"}, NAMES)
    assert found.thoughts_end == "</think>"
    assert found.kept("<think>\nHm.\n</think>\n\nYes.") == "Yes."
    assert found.kept("<think>\nHm") == "<think>\nHm"
    assert ChatTemplate.from_json(found.to_json()) == found
    assert pieces_of({"chat_template": CHATML}, NAMES).thoughts_end is None


def test_what_marks_the_text_that_training_counts_is_no_obstacle():
    assert "endgeneration" in TAGGED
    assert pieces_of({"chat_template": TAGGED}, NAMES) == pieces_of(
        {"chat_template": CHATML}, NAMES
    )


def test_how_the_last_answer_is_written_does_not_matter():
    found = pieces_of({"chat_template": THINKING, "eos_token": "<|im_end|>"}, NAMES)
    assert found.assistant == ("<|im_start|>assistant\n", "<|im_end|>\n")


def test_a_template_that_refuses_system_texts_has_no_place_for_them():
    config = {"chat_template": GEMMA, "bos_token": {"content": "<bos>"}, "eos_token": "<eos>"}
    found = pieces_of(config, NAMES)
    assert (found.begin, found.system, found.default_system) == ("<bos>", None, None)
    assert found.assistant == ("<start_of_turn>model\n", "<end_of_turn>\n")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (FORGETFUL, "sum of its pieces"),
        (DATED, "strftime_now"),
        ("{% for", "no template"),
        ("{{ messages[0].content }}", "does not come out"),
        ("{{ ''.__class__.__mro__ }}", "cannot render|does not come out"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot render"),
        ("{{ 'a'.encode('x') }}", "cannot render"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "no template that can be read"),
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
         "{% if add_generation_prompt %}[assistant]{% endif %}", "no special token ends"),
    ],
)  # fmt: skip
def test_a_template_that_is_no_sum_of_pieces_is_refused_with_the_reason(template, why):
    with pytest.raises(ConfigError, match=why):
        pieces_of({"chat_template": template}, NAMES)


def test_a_checkpoint_without_a_template_has_no_chat_and_says_nothing():
    assert read_chat({}, "{}") == (None, "")
    assert read_chat({CONFIG_NAME: "{}"}, "{}") == (None, "")


def test_a_refused_template_is_told_in_one_line():
    config = json.dumps({"chat_template": DATED})
    found, why = read_chat({CONFIG_NAME: config}, json.dumps({"added_tokens": []}))
    assert found is None
    assert "without chat" in why
    assert "\n" not in why
    assert "not readable" in read_chat({CONFIG_NAME: "{"}, "{}")[1]


@pytest.mark.parametrize("template", [3, [3], [{"name": "tools", "template": "x"}], {}, [[]]])
def test_templates_of_no_known_form_are_told_in_a_line(template):
    found, why = read_chat({CONFIG_NAME: json.dumps({"chat_template": template})}, "{}")
    assert found is None
    assert "\n" not in why


def test_a_template_in_a_file_of_its_own_goes_before_the_one_of_the_settings():
    config = json.dumps({"chat_template": THINKING, "eos_token": "<|im_end|>"})
    added = [{"content": name, "special": True} for name in NAMES]
    files = {CONFIG_NAME: config, TEMPLATE_NAME: CHATML}
    found, why = read_chat(files, json.dumps({"added_tokens": added}))
    assert why == ""
    assert found is not None
    assert found.default_system == "You are kind."


def test_a_template_in_a_json_file_of_its_own_is_read():
    tokenizer = json.dumps({"added_tokens": [{"content": "<|im_end|>", "special": True}]})
    files = {CONFIG_NAME: '{"eos_token": "<|im_end|>"}'}
    both = {**files, PROCESSOR_NAME: json.dumps({"chat_template": CHATML})}
    assert read_chat(files, tokenizer) == (None, "")
    found, why = read_chat(both, tokenizer)
    assert found is not None, why
    assert read_chat({**both, PROCESSOR_NAME: "["}, tokenizer)[0] is None
