"""Tokenizers of every make, built on the spot: what they do to spaces, at the ends of a text, and to characters."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
WORDS = ["London", "Lon", "don", "ond", "on", "the", "cat", "At", "?"]


def fast(model, *, normalizer=None, pre=None, decoder=None, post=None, **special):
    tokenizer = Tokenizer(model)
    for name, part in (
        ("normalizer", normalizer),
        ("pre_tokenizer", pre),
        ("decoder", decoder),
        ("post_processor", post),
    ):
        if part is not None:
            setattr(tokenizer, name, part)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def around(template, *tokens):
    """A post-processor that puts special tokens around a text."""
    return processors.TemplateProcessing(
        single=template, special_tokens=[(token, SPECIAL.index(token)) for token in tokens]
    )


BEGINS, ENDS, BOTH = around("<s> $A", "<s>"), around("$A </s>", "</s>"), around("<s> $A </s>", "<s>", "</s>")


def merged(words, space):
    """A BPE vocabulary and the merges that lead to some words, each also with a space before it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if space == "Ġ" else list(map(chr, range(10, 127)))
    vocabulary = dict.fromkeys([*SPECIAL, *alphabet, space, "é"])
    merges = {}
    for word in [*(space + word for word in words), *words]:
        made = word[0]
        for letter in word[1:]:
            merges[(made, letter)] = None
            made += letter
            vocabulary[made] = None
    return {token: number for number, token in enumerate(vocabulary)}, list(merges)


def bytes_bpe(*, prefix=False, trim=True, post=None, leads=False):
    """GPT-2 and its kin; with `leads` offsets are made as if a text began with a space of its own."""
    offsets = processors.ByteLevel(add_prefix_space=prefix or leads, trim_offsets=trim)
    steps = [offsets, *([post] if post else [])]
    return fast(
        models.BPE(*merged(WORDS, "Ġ")),
        pre=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        decoder=decoders.ByteLevel(),
        post=processors.Sequence(steps),
    )


def metaspace_bpe(scheme, post=None, **special):
    """Llama and Mistral, as they are converted today."""
    return fast(
        models.BPE(*merged(WORDS, "▁"), unk_token="<unk>"),
        pre=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False),
        decoder=decoders.Metaspace(prepend_scheme=scheme, split=False),
        post=post,
        **special,
    )


def llama2(post=BEGINS):
    """As meta-llama/Llama-2 has it: a normaliser that puts a space before every text."""
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return fast(
        models.BPE(*merged(WORDS, "▁"), unk_token="<unk>"),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(strip),
        post=post,
    )


def t5(post=ENDS):
    """Unigram pieces with an end token."""
    pieces = [*SPECIAL, *map(chr, range(10, 127)), "▁", *WORDS, *("▁" + word for word in WORDS)]
    scores = [(piece, -10.0 + len(piece)) for piece in dict.fromkeys(pieces)]
    return fast(
        models.Unigram(scores, unk_id=0),
        normalizer=normalizers.NFKC(),
        pre=pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoder=decoders.Metaspace(prepend_scheme="always"),
        post=post,
    )


def bert():
    """Lower-cased word pieces between [CLS] and [SEP]; spaces are gone."""
    pieces = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"abcdefghijklmnopqrstuvwxyz?.,1",
        *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    pieces += [word.lower() for word in WORDS] + ["##don"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return fast(
        models.WordPiece(vocabulary, unk_token="[UNK]"),
        normalizer=normalizers.BertNormalizer(lowercase=True),
        pre=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
        post=processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1)),
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def folded():
    """A normaliser that changes lengths (ligatures, capitals, outer blanks) before pieces are cut."""
    vocabulary, merges = merged([word.lower() for word in WORDS], "▁")
    return fast(
        models.BPE(vocabulary, merges, unk_token="<unk>"),
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]),
        pre=pre_tokenizers.Metaspace(prepend_scheme="first"),
        decoder=decoders.Metaspace(prepend_scheme="first"),
        post=BOTH,
    )


def words():
    """Whole words."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, "the.", "cat."])}
    return fast(models.WordLevel(vocabulary, unk_token="<unk>"), pre=pre_tokenizers.WhitespaceSplit(), post=BEGINS)


def roberta():
    return bytes_bpe(
        post=processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=True, add_prefix_space=False)
    )


ZOO = {
    "bytes": bytes_bpe,
    "bytes, offsets with spaces": lambda: bytes_bpe(trim=False),
    "bytes after a space": lambda: bytes_bpe(prefix=True),
    "bytes after a space, offsets with spaces": lambda: bytes_bpe(prefix=True, trim=False),
    "bytes, begun": lambda: bytes_bpe(post=BEGINS),
    "bytes, begun and ended": lambda: bytes_bpe(trim=False, post=BOTH),
    "bytes, ended": lambda: bytes_bpe(post=ENDS),
    "metaspace first": lambda: metaspace_bpe("first", BEGINS),
    "metaspace always": lambda: metaspace_bpe("always", BEGINS),
    "metaspace never": lambda: metaspace_bpe("never", BOTH),
    "llama 2": llama2,
    "llama 2, ended": lambda: llama2(BOTH),
    "t5": t5,
    "bert": bert,
    "roberta": roberta,
    "folded": folded,
    "words": words,
    "slow bytes, ended": ByT5Tokenizer,
    "slow characters, begun and ended": CanineTokenizer,
}
