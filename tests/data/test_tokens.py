"""Prompt and completion are tokenised together, whatever the tokenizer does to spaces and at the ends of a text."""

from itertools import takewhile
from typing import ClassVar

import pytest
from tokenizers import AddedToken
from zoo import BEGINS, BOTH, ZOO, bert, bytes_bpe, folded, llama2, metaspace_bpe

from msif.data.encoding import Encoder
from msif.data.format import Format
from msif.data.tokens import pair_tokens, pieces, prompt_tokens

PAIRS = [
    ("At?", " London"),
    ("At? ", "London"),
    ("At?\n", "London"),
    ("At?\n\n", "  London the"),
    ("At Lon", "don"),  # one token, were it not for the boundary
    ("At?", "\n"),
    ("At", " "),
    (" At", "?"),
    ("the café", " é"),
    ("At ﬁ ①", " ﬁn"),
    ("", "London the"),
    ("", " London"),
]


def bare(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def prefix_of(tokenizer):
    """What a tokenizer puts before a text, told from one that it does nothing else to."""
    wrapped, own = tokenizer("the")["input_ids"], bare(tokenizer, "the")
    return next(wrapped[:start] for start in range(len(wrapped)) if wrapped[start : start + len(own)] == own)


def alike(left, right):
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_a_pair_is_one_text_split_where_its_prompt_ends(make):
    tokenizer = make()
    prefix = prefix_of(tokenizer)
    for (prompt, completion), tokens in zip(PAIRS, pair_tokens(tokenizer, *zip(*PAIRS, strict=True)), strict=True):
        whole = bare(tokenizer, prompt + completion)
        assert tokens.ids == ([*prefix, *whole] if whole else []), (prompt, completion)
        if make is folded and prompt != prompt.rstrip():
            continue  # alone it would lose its last blanks
        # the tokens of the prompt are those it has alone, as far as the completion leaves them as they are
        assert tokens.before == [len(prefix) * bool(whole) + alike(whole, bare(tokenizer, prompt))], (
            prompt,
            completion,
        )


@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_a_prompt_to_go_on_from_has_nothing_behind_it(make):
    tokenizer = make()
    for prompt in ("At?", "At London", "the\n", "the "):
        assert prompt_tokens(tokenizer, prompt) == [*prefix_of(tokenizer), *bare(tokenizer, prompt)]


BEGINNING = {
    "<s>": [lambda: bytes_bpe(post=BOTH), llama2, lambda: metaspace_bpe("first", BEGINS), bytes_bpe],
    "[CLS]": [bert],
}


@pytest.mark.parametrize(("bos", "make"), [(bos, make) for bos, makes in BEGINNING.items() for make in makes])
def test_a_text_that_begins_with_the_token_gets_no_second_one(bos, make):
    tokenizer = make()
    ids = prompt_tokens(tokenizer, f"{bos}At?")
    assert ids.count(tokenizer.bos_token_id) == 1 and ids == bare(tokenizer, f"{bos}At?")
    (tokens,) = pair_tokens(tokenizer, [f"{bos}At?"], [" London"])
    assert tokens.ids.count(tokenizer.bos_token_id) == 1 and tokens.ids[0] == tokenizer.bos_token_id
    assert tokens.ids[: tokens.before[0]] == ids


def supervised(tokenizer, prompt, completion):
    encoder = Encoder(Format(prompt="p", completion="c"), tokenizer)
    (document,) = encoder.encode([(0, {"p": prompt, "c": completion})])
    return tokenizer.convert_ids_to_tokens(document.input_ids[document.supervised].tolist())


def test_what_the_completion_is():
    for scheme in ("first", "always", "never"):
        assert supervised(metaspace_bpe(scheme), "At?", " London") == ["▁London"]
        assert supervised(metaspace_bpe(scheme), "At?\n", "London") == ["London"]
    assert supervised(llama2(), "At?", " London") == ["▁London"]  # not ▁ ▁London
    assert supervised(llama2(), "At?\n", "London") == ["London"]  # not ▁London
    for trim in (True, False):
        # a token that spans the boundary is the completion's
        assert supervised(bytes_bpe(trim=trim), "At? ", "London") == ["ĠLondon"]
        assert supervised(bytes_bpe(trim=trim), "At Lon", "don?") == ["ĠLondon", "?"]
        assert supervised(bytes_bpe(trim=trim, post=BEGINS), "", " London") == ["ĠLondon"]
        assert supervised(bytes_bpe(trim=trim, post=BEGINS), "", " \n") == ["Ġ", "Ċ"]
        assert supervised(bytes_bpe(trim=trim), "At", "  ") == ["Ġ", "Ġ"]
    assert supervised(bytes_bpe(post=BEGINS, leads=True), "", " \n") == [
        "Ġ",
        "Ċ",
    ]  # of the first the offsets are (0, 0)
    assert supervised(bert(), "At?", " London") == ["london"]
    assert supervised(folded(), "ﬁ ﬁ ½ AT?", " ﬁ LONDON ") == ["▁", "f", "i", "▁london"]


def test_a_control_token_that_takes_the_blanks_after_it_is_the_prompts():
    tokenizer = bytes_bpe(trim=False)
    tokenizer.add_tokens([AddedToken("<|assistant|>", rstrip=True, special=True)], special_tokens=True)
    assert supervised(tokenizer, "At?<|assistant|>\n", " London") == ["London"]
    assert supervised(tokenizer, "At?<|assistant|>", "\nLondon") == ["London"]


def test_tokens_that_stand_for_no_character():
    class Odd:
        """Says (0, 0) of a token amidst the others."""

        is_fast = True
        added_tokens_decoder: ClassVar = {}

        def __call__(self, texts, **_):
            offsets = [(0, 3), (3, 7), (0, 0), (7, 9)]
            return {"input_ids": [[1, 2, 3, 4]], "offset_mapping": [offsets], "special_tokens_mask": [[0] * 4]}

    assert [pair_tokens(Odd(), ["x" * place], ["y"])[0].before for place in (3, 4, 7)] == [[1], [1], [3]]


@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_the_pieces_of_a_text_make_it_up(make):
    tokenizer = make()
    ids = bare(tokenizer, "the cat At London don")
    parts = pieces(tokenizer, ids)
    assert len(parts) == len(ids)
    assert "".join(parts).lower() == tokenizer.decode(ids, clean_up_tokenization_spaces=False).lower()


def test_a_character_of_several_tokens_is_said_by_the_last():
    tokenizer = bytes_bpe()
    text = "the 字 é 😀\ufffd."
    parts = pieces(tokenizer, bare(tokenizer, text))
    assert "".join(parts) == text
    assert [part for part in parts if part.strip()] == ["the", "字", "é", "😀", "\ufffd."]
