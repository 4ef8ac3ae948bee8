"""Words of many scripts: the document with the query's word goes before those with its pieces."""

import re
import unicodedata

import pytest

from msif.candidates.bm25 import BM25Selector, terms
from msif.candidates.words import neighbours, normalised, unpointed, words

# language: a word, and a sentence that has it, as people write it
SENTENCES = {
    "English": ("physicist", "The physicist found a new element."),
    "French": ("élève", "Chaque élève lit un livre."),
    "Vietnamese": ("tiếng", "Tôi học tiếng Việt mỗi ngày."),
    "Yoruba": ("ẹ̀kọ́", "Mo fẹ́ràn ẹ̀kọ́ yìí."),
    "Greek": ("ΘΆΛΑΣΣΑ", "Η θάλασσα είναι γαλάζια."),
    "Turkish": ("istanbul", "İSTANBUL güzel bir şehir."),
    "German": ("straße", "DIE STRASSE IST LANG."),
    "Russian": ("ёлка", "В доме стоит ёлка."),
    "Hindi": ("हिन्दी", "मैं हिन्दी बोलता हूँ।"),
    "Hindi, joined": ("क्षत्रिय", "वह क्\u200dषत्रिय था।"),
    "Bengali": ("বিজ্ঞানী", "তিনি একজন বিজ্ঞানী ছিলেন।"),
    "Tamil": ("புத்தகம்", "இது ஒரு புத்தகம் ஆகும்."),
    "Telugu": ("పుస్తకం", "ఇది ఒక పుస్తకం."),
    "Malayalam": ("പുസ്തകം", "ഇത് ഒരു പുസ്തകം ആണ്."),
    "Sinhala": ("ශ්‍රී", "මේ ශ්‍රී ලංකාව."),
    "Punjabi": ("ਪੰਜਾਬੀ", "ਉਹ ਪੰਜਾਬੀ ਬੋਲਦਾ ਹੈ।"),
    "Arabic": ("كِتَابٌ", "هَذَا كِتَابٌ جَدِيدٌ."),
    "Arabic, without marks": ("كتاب", "هَذَا كِتَاب جَدِيد."),
    "Arabic, stretched": ("كتاب", "هذا كتـــاب جديد."),
    "Persian": ("می\u200cخواهم", "من می\u200cخواهم بروم."),
    "Persian, without joiner": ("میخواهم", "من می\u200cخواهم بروم."),
    "Hebrew": ("שָׁלוֹם", "אָמַר לוֹ שָׁלוֹם."),
    "Hebrew, without points": ("שלום", "אָמַר לוֹ שָׁלוֹם."),
    "Amharic": ("መጽሐፍ", "ይህ መጽሐፍ ነው።"),
    "Georgian": ("წიგნი", "ეს არის წიგნი."),
    "Thai": ("หนังสือ", "ฉันชอบอ่านหนังสือทุกวัน"),
    "Thai, with am": ("น้ำ", "เขาดื่มน้ำเย็น"),
    "Lao": ("ປຶ້ມ", "ຂ້ອຍອ່ານປຶ້ມທຸກມື້"),
    "Khmer": ("សៀវភៅ", "ខ្ញុំអានសៀវភៅរាល់ថ្ងៃ"),
    "Khmer, set off": ("ខ្មែរ", "ភាសា\u200bខ្មែរ\u200bពិរោះ"),
    "Burmese": ("စာအုပ်", "ကျွန်တော်စာအုပ်ဖတ်တယ်"),
    "Burmese, stacked": ("သတ္တဗေဒ", "သူသည်သတ္တဗေဒကိုလေ့လာသည်"),
    "Tibetan": ("སྐད་ཡིག", "འདི་ནི་བོད་ཀྱི་སྐད་ཡིག་ཡིན།"),
    "Javanese": ("ꦧꦸꦏꦸ", "ꦄꦏꦸꦩꦕꦧꦸꦏꦸꦱꦧꦼꦤ꧀ꦢꦶꦤ"),
    "Chinese": ("图书馆", "我每天去图书馆看书"),
    "Chinese, rare": ("𠮷野家", "他们在𠮷野家吃饭"),
    "Japanese": ("図書館", "私は毎日図書館に行きます"),
    "Japanese, one character": ("猫", "隣の家の猫が寝ている"),
    "Japanese, repeated": ("人々", "多くの人々が集まった"),
    "Japanese, katakana": ("ラーメン", "毎日ラーメンを食べます"),
    "Japanese, half width": ("ガラス", "窓のｶﾞﾗｽが割れた"),
    "Korean, with a particle": ("서울", "나는 서울에서 태어났다"),
    "Korean, composed": ("도서관", unicodedata.normalize("NFD", "나는 도서관에 간다")),
}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("language", SENTENCES)
def test_the_document_with_the_word_goes_first(language, form):
    word, sentence = SENTENCES[language]
    pieces = re.findall(r"\w", unicodedata.normalize("NFD", word).casefold())
    without = [
        " ".join(pieces * 3) if len(pieces) > 1 else "",  # the letters, each a word by itself
        f"{word[::-1]} {''.join(pieces[::-1])}." if len(pieces) > 1 else "",
        re.sub(re.escape(word), "", sentence, flags=re.IGNORECASE) if word in sentence else "",
        "A document in another script.",
    ]
    query = unicodedata.normalize(form, f"«{word}»")
    (rows,) = BM25Selector(5, progress=False).select([query], [*without, sentence])
    assert rows[0] == 4, language


def test_words():
    assert words("The U.S., in 1987: Ørsted's “café”") == ["the", "u", "s", "in", "1987", "ørsted", "s", "café"]
    assert words("東京 is Tokyo") == ["東", "京", "is", "tokyo"]
    assert words("हिन्दी में, বাংলা; தமிழ்") == ["हिन्दी", "में", "বাংলা", "தமிழ்"]
    assert words("snake_case ๒๕๖๓ปี 第3回") == ["snake_case", "๒๕๖๓", "ปี", "第", "3", "回"]
    assert words("... — !") == words("") == []


@pytest.mark.parametrize(
    "unseen", ["\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\ufe0f", "\u034f", "\u200e"]
)
@pytest.mark.parametrize("word", ["example", "пример", "παράδειγμα", "उदाहरण", "مثال", "ตัวอย่าง"])
def test_what_is_not_seen_splits_no_word(unseen, word):
    inside = word[:3] + unseen + word[3:]
    assert terms(f"x {inside} y") == terms(f"x {word} y")
    assert terms(unseen) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cafe\u0301", "café"),
        ("ﬁne", "FINE"),
        ("Ｗｉｄｅ１２", "wide12"),
        ("x²", "x2"),
        ("Straße", "STRASSE"),
        ("σοφός", "ΣΟΦΌΣ"),
        ("ｶﾞｷﾞ", "ガギ"),
        ("क़लम", "क\u093cलम"),
        ("서울", unicodedata.normalize("NFD", "서울")),
        ("ﻛﺘﺎﺐ", "كتاب"),
        ("İzmir", "izmir"),
        ("⽔", "水"),
    ],
)
def test_differences_that_readers_do_not_see(one, other):
    assert terms(one) == terms(other)
    assert normalised(normalised(one)) == normalised(one)


def test_neighbours_are_of_characters_as_they_are_read():
    assert neighbours("東京タワー") == ["東京", "京タ", "タワ", "ワー"]
    assert neighbours("ภาษา") == ["ภา", "าษ", "ษา"]
    assert neighbours("ខ្មែរ") == ["ខ្មែរ"] and neighbours("သတ္တ") == ["သတ္တ"]  # stacked letters are not taken apart
    assert neighbours("서울에서 온") == ["서울", "울에", "에서"]  # none over a space
    assert neighbours("東京is京都, हिन्दी and words") == ["東京", "京都"]


def test_points_can_be_left_out():
    assert unpointed("هَذَا كتاب") == ["هذا"] and unpointed("שָׁלוֹם עולם") == ["שלום"]
    assert unpointed("हिन्दी café") == [] == unpointed("plain")
    # the pointed word itself still weighs more
    (rows,) = BM25Selector(2, progress=False).select(["כָּתַב"], ["כָּתֻב היום", "כָּתַב היום"])
    assert rows.tolist() == [1, 0]


def test_characters_apart_are_no_word():
    """However often they come."""
    for word, sentence in (("人々", "多くの人々が集まった"), ("ภาษา", "ฉันเรียนภาษาไทย"), ("서울", "나는 서울에서 왔다")):
        apart = " ".join(list(word) * 50)
        (rows,) = BM25Selector(2, progress=False).select([word], [apart, sentence * 4])
        assert rows.tolist() == [1, 0]


def test_letters_of_every_block():
    """None is lost, and none joins two words."""
    for code in range(0x80, 0x32400, 23):
        letter = chr(code)
        if unicodedata.category(letter) in ("Lu", "Ll", "Lo", "Lm", "Nd") and normalised(letter):
            assert words(letter) and words(f"{letter} {letter}") == words(letter) * 2, hex(code)
