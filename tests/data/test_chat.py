"""Conversations, rendered by the templates that are in use: which tokens the assistant wrote."""

import pytest
from templates import ALTERNATING, CASES, CHATML, IN_PARTS, MARKED, MARKED_LINES, PLAIN, QWEN3, ROLES, Case
from transformers import ByT5Tokenizer
from zoo import bytes_bpe

from msif.data.chat import chat_prompt, encode_chat
from msif.errors import MsifError


def supervised(tokenizer, messages, last_only=False):
    ids, mask = encode_chat(tokenizer, messages, "row 5", last_only)
    return tokenizer.decode([token for token, own in zip(ids, mask, strict=True) if own])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_assistants_turns_are_found_in_the_whole_rendering(tokenizer_of, case: Case):
    tokenizer = tokenizer_of(chat_template=case.template)
    assert supervised(tokenizer, case.messages) == "".join(case.said)
    assert supervised(tokenizer, case.messages, last_only=True) == case.said[-1]
    whole = tokenizer.apply_chat_template(case.messages, tokenize=True, return_dict=True)["input_ids"]
    assert encode_chat(tokenizer, case.messages, "")[0] == whole


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_prompt_is_what_the_answers_turn_begins_with(tokenizer_of, case: Case):
    tokenizer = tokenizer_of(bos=True, chat_template=case.template)
    asked = case.messages[:-1]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = chat_prompt(tokenizer, asked, "")
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.bos_token_id) == text.count("<s>")  # the template's, and no other


@pytest.mark.parametrize("trim", [True, False])
def test_turns_that_begin_with_blanks(trim):
    """A tokenizer whose offsets leave out blanks: transformers' own mask then marks nothing at all."""
    tokenizer = bytes_bpe(trim=trim)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        "{% generation %} {{ m['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    assert supervised(tokenizer, ALTERNATING) == " She is.</s> Who?</s>"


def test_a_token_at_a_turns_edge(tokenizer_of):
    """One that spans the beginning of a turn is the turn's, one that spans its end is not."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    messages = [
        {"role": role, "content": text} for role, text in zip(ROLES * 2, ("a t", "he x t", "he t", "o"), strict=True)
    ]
    ids, mask = encode_chat(tokenizer_of(chat_template=template), messages, "")
    tokens = tokenizer_of().convert_ids_to_tokens(ids)
    assert list(zip(tokens, mask, strict=True)) == [
        ("a", False),
        ("Ġ", False),
        ("the", True),
        ("Ġ", True),
        ("x", True),
        ("Ġ", True),
        ("the", False),
        ("Ġ", False),
        ("t", False),
        ("o", True),
    ]


def test_a_slow_tokenizer_can_have_a_template():
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHATML
    ids, _ = encode_chat(tokenizer, PLAIN, "")
    assert ids == tokenizer(tokenizer.apply_chat_template(PLAIN, tokenize=False), add_special_tokens=False)["input_ids"]
    assert supervised(tokenizer, PLAIN) == "She is.<|im_end|>\nWho?<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        # each shows only the last turn's text, or shows the same for every text
        ("{% for m in messages %}{{ m['content'] if loop.last else '...' }}|{% endfor %}", PLAIN),
        ("{% for m in messages %}{{ m['content'] | length }} {{ loop.revindex }}|{% endfor %}", PLAIN),
    ],
)
def test_what_cannot_be_found_is_refused_with_row_and_turn(tokenizer_of, template, messages):
    with pytest.raises(MsifError, match=r"of row 5 so that turn \d cannot be found") as caught:
        encode_chat(tokenizer_of(chat_template=template), messages, "row 5")
    assert "\n" not in str(caught.value)


def test_marks_do_not_meet_characters_of_the_text(tokenizer_of):
    odd = [{**turn, "content": f"{turn['content']}\U000f0000\U000f0001"} for turn in PLAIN]
    for template in (CHATML, MARKED, QWEN3):
        assert "She is.\U000f0000\U000f0001<|im_end|>\n" in supervised(tokenizer_of(chat_template=template), odd)


def test_of_several_templates_the_default_is_taken(tokenizer_of):
    for template in (CHATML, MARKED):
        tokenizer = tokenizer_of(chat_template={"default": template, "tool_use": "{{ messages }}"})
        assert supervised(tokenizer, PLAIN) == "She is.<|im_end|>\nWho?<|im_end|>\n"


@pytest.mark.parametrize("template", [CHATML, MARKED_LINES])
def test_parts_are_not_written_out_as_python_does(tokenizer_of, template):
    tokenizer = tokenizer_of(chat_template=template)
    for encode in (encode_chat, chat_prompt):
        with pytest.raises(MsifError, match="takes texts only, and writes the parts of turn 0 of row 5 out"):
            encode(tokenizer, IN_PARTS, "row 5")
