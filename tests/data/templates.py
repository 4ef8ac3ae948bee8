"""Chat templates as they are published, shortened, with what each does that others do not.

Each comes with a conversation and with what the assistant said in it, end marks and all, as one would read it off the
rendering.
"""

from dataclasses import dataclass

ROLES = ("user", "assistant")
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTIONS = [("Who?", "She is."), ("She is.", "Who?")]  # each says what the other said


def turns(*pairs, system=True):
    said = [{"role": role, "content": text} for pair in pairs for role, text in zip(ROLES, pair, strict=True)]
    return [SYSTEM, *said] if system else said


PLAIN = turns(*QUESTIONS)
ALTERNATING = turns(*QUESTIONS, system=False)
THINKING = turns(
    ("1 + 1?", "<think>\nOne more than one.\n</think>\n\nTwo."),
    ("Sure?", "<think>\nLet me see.\n</think>\n\nYes, two."),
)
BLANK = turns((" Who? ", " She is.\n\n"), ("Where?", "  In <Linz>.  "), system=False)
CALL = {"name": "weather", "arguments": {"town": "Linz"}}
TOOLS = [
    {"role": "user", "content": "Rain in Linz?"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "dry"},
    {"role": "assistant", "content": "No."},
]
# the same, as older templates have it: the response is in a user's turn, which is not a question
RESPONSES = [
    {"role": "user", "content": "Rain in Linz?"},
    {"role": "assistant", "content": "<think>\nAsk.\n</think>\n\nWeather of Linz?"},
    {"role": "user", "content": "<tool_response>\ndry\n</tool_response>"},
    {"role": "assistant", "content": "No."},
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = """{%- for m in messages -%}
    <|im_start|>{{ m['role'] + '\\n' }}
    {%- if m['role'] == 'assistant' %}
        {%- generation %}
        {{- m['content'] + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- m['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
MARKED_LINES = """{% for m in messages %}
<|im_start|>{{ m['role'] }}
  {% if m['role'] == 'assistant' %}
  {% generation %}
{{ m['content'] }}<|im_end|>
  {% endgeneration %}
  {% else %}
{{ m['content'] }}<|im_end|>
  {% endif %}
{% endfor %}"""
MARKED_MACRO = """{%- macro turn(m) -%}
<|im_start|>{{ m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\\n' }}
{%- endmacro -%}
{%- for m in messages %}{{ turn(m) }}{% endfor %}"""  # noqa: E501
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{% set content = message.content %}{% else %}{% set content = '' %}{% endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- set tool_call = tool_call.function or tool_call %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' + tool_call.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""  # noqa: E501
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if SYSTEM_IS_HERE and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK = (
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\n'}}{% endif %}"
)
OLMO = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'].strip() + ' ' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'].strip() + eos_token }}"
    "{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n"
    "{% elif m['role'] == 'assistant' %}### Response:\n{{ m['content'] }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if 'image' in part %}<image>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IN_PARTS = [
    {"role": "user", "content": [{"type": "image", "image": "x.png"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat, "}, {"type": "text", "text": "asleep."}]},
    {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Here."}]},
]
# two rounds of thinking, of which a template keeps the second only, since no question came after it
ROUNDS = [*THINKING[1:3], *RESPONSES]
OPENED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
QUOTING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}U: {% if not loop.first %}"
    "> {{ messages[loop.index0 - 1].content }}\n{% endif %}{{ m['content'] }}\n"
    "{% else %}A: {{ m['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"town": "Linz"}}\n</tool_call>'


@dataclass(frozen=True)
class Case:
    """A template, a conversation, and what the assistant said in each of its turns."""

    template: str
    messages: list
    said: list[str]
    bos: str = ""


E = "<|im_end|>\n"
CASES = {
    "chatml": Case(CHATML, PLAIN, [f"She is.{E}", f"Who?{E}"]),
    "chatml, blanks kept": Case(CHATML, BLANK, [f" She is.\n\n{E}", f"  In <Linz>.  {E}"]),
    "chatml, assistant first": Case(CHATML, [PLAIN[2], *PLAIN], [f"She is.{E}"] * 2 + [f"Who?{E}"]),
    "chatml, assistant twice": Case(CHATML, [*PLAIN[:3], PLAIN[2]], [f"She is.{E}"] * 2),
    "generation tags": Case(MARKED, PLAIN, [f"She is.{E}", f"Who?{E}"]),
    "generation tags, blanks": Case(MARKED, BLANK, [f" She is.\n\n{E}", f"  In <Linz>.  {E}"]),
    "generation tags on lines": Case(MARKED_LINES, PLAIN, [f"She is.{E}", f"Who?{E}"]),
    "generation tags in a macro": Case(MARKED_MACRO, PLAIN, ["She is.<|im_end|>", "Who?<|im_end|>"]),
    "qwen3": Case(QWEN3, PLAIN, [f"She is.{E}", f"<think>\n\n</think>\n\nWho?{E}"]),
    "qwen3, thinking": Case(QWEN3, THINKING, [f"Two.{E}", f"<think>\nLet me see.\n</think>\n\nYes, two.{E}"]),
    "qwen3, thinking apart": Case(
        QWEN3,
        [{**turn, "reasoning_content": "Hm."} if turn["role"] == "assistant" else turn for turn in PLAIN],
        [f"She is.{E}", f"<think>\nHm.\n</think>\n\nWho?{E}"],
    ),
    "qwen3, tools": Case(QWEN3, TOOLS, [f"{CALLED}{E}", f"<think>\n\n</think>\n\nNo.{E}"]),
    "qwen3, tool responses of the user": Case(
        QWEN3, RESPONSES, [f"<think>\nAsk.\n</think>\n\nWeather of Linz?{E}", f"<think>\n\n</think>\n\nNo.{E}"]
    ),
    "qwen3, rounds": Case(
        QWEN3,
        ROUNDS,
        [f"Two.{E}", f"<think>\nAsk.\n</think>\n\nWeather of Linz?{E}", f"<think>\n\n</think>\n\nNo.{E}"],
    ),
    "a thought that the generation prompt begins": Case(
        OPENED,
        turns(("Who?", "<think>\nHm.\n</think>She is."), ("So?", "Yes.")),
        [f"<think>\nHm.\n</think>She is.{E}", f"Yes.{E}"],
    ),
    "earlier answers are quoted": Case(QUOTING, ALTERNATING, ["She is.\n", "Who?\n"]),
    "mistral, system in the last user turn": Case(
        MISTRAL.replace("SYSTEM_IS_HERE", "message == user_messages[-1]"), PLAIN, [" She is.</s>", " Who?</s>"], "<s>"
    ),
    "mistral, the user says it twice": Case(
        MISTRAL.replace("SYSTEM_IS_HERE", "message == user_messages[-1]"),
        turns(("Who?", "She is."), ("Who?", "I said it.")),
        [" She is.</s>", " I said it.</s>"],
        "<s>",
    ),
    "mistral, system where the user is last": Case(
        MISTRAL.replace("SYSTEM_IS_HERE", "loop.last"), PLAIN, [" She is.</s>", " Who?</s>"], "<s>"
    ),
    "llama 2": Case(LLAMA2, PLAIN, [" She is. </s>", " Who? </s>"], "<s>"),
    "llama 3": Case(LLAMA3, PLAIN, ["She is.<|eot_id|>", "Who?<|eot_id|>"], "<s>"),
    "llama 3, stripped": Case(LLAMA3, BLANK, ["She is.<|eot_id|>", "In <Linz>.<|eot_id|>"], "<s>"),
    "gemma": Case(GEMMA, ALTERNATING, ["She is.<end_of_turn>\n", "Who?<end_of_turn>\n"], "<s>"),
    "phi 3": Case(PHI3, PLAIN, ["She is.<|end|>\n", "Who?<|end|>\n</s>"]),
    "deepseek": Case(DEEPSEEK, PLAIN, ["She is.<｜end▁of▁sentence｜>", "Who?<｜end▁of▁sentence｜>"], "<s>"),
    "deepseek, thinking": Case(
        DEEPSEEK, THINKING, ["\n\nTwo.<｜end▁of▁sentence｜>", "\n\nYes, two.<｜end▁of▁sentence｜>"], "<s>"
    ),
    "olmo": Case(OLMO, PLAIN, ["She is.</s>", "Who?</s>"], "<s>"),
    "vicuna": Case(VICUNA, PLAIN, [" She is.</s>", " Who?</s>"]),
    "alpaca": Case(ALPACA, ALTERNATING, ["She is.\n\n", "Who?\n\n"]),
    "lists of parts": Case(PARTS, IN_PARTS, [f"A cat, asleep.{E}", f"Here.{E}"]),
    "texts where parts may be": Case(PARTS, PLAIN, [f"She is.{E}", f"Who?{E}"]),
}
