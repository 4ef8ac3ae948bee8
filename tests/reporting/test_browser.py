"""The page in a real browser: it opens from the disk, shows what is asked for, and runs nothing but itself."""

import html
import re

import pytest
from browser import Browser, find_browser
from result_folders import large, scored, shown, small, write_results, write_truth

from msif.reporting.page import write_page

pytestmark = pytest.mark.skipif(find_browser() is None, reason="needs chromium or google-chrome on the PATH")


@pytest.fixture(scope="module")
def browser():
    found = Browser(find_browser())
    yield found
    found.close()


@pytest.fixture(autouse=True)
def silent(browser):
    """Nothing is complained of, nothing comes from elsewhere, and no document has run."""
    browser.errors.clear()
    browser.requests.clear()
    yield
    assert browser.errors == [] and browser.js("window.evil") is None
    assert all(url.startswith(("file:", "about:", "data:")) for url in browser.requests)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = [large(folder / "one"), large(folder / "two", shift=3, queries=5, method="gdp")]
    truth = write_truth(folder / "truth.jsonl")
    return {
        "two": write_page(runs, folder / "two.html", [truth]),
        "one": write_page(runs[0], folder / "one.html", [truth]),
        "small": write_page(small(folder / "small")),
    }


# what a screen reader would have no name for, and ids that stand twice
UNNAMED = """[...document.querySelectorAll('input, select, button, svg[role=img], nav, article, section')]
.filter(n => !(n.labels?.length || n.getAttribute('aria-label') || n.getAttribute('aria-labelledby') || n.innerText))
.map(n => n.outerHTML)"""
TWICE = "[...document.querySelectorAll('[id]')].map(n => n.id).filter((id, at, all) => all.indexOf(id) !== at)"


def titles(browser):
    return browser.js("[...document.querySelectorAll('#queries-list b')].map(b => b.textContent.trim())")


def ids(browser, kind="pro"):
    return browser.js(f"[...document.querySelectorAll('#view-query > article.{kind}')].map(a => a.dataset.document)")


def test_one_query_is_opened_at_once(browser, tmp_path):
    rows = [shown("only", "proponent", 1, 4.0, text="a document")]
    browser.open(write_page(write_results(tmp_path / "one", rows, scored("only", [4.0, 0.5]))))
    assert ids(browser) == ["p1"] and "All queries" in browser.text(".ways")
    browser.click(".ways a")
    assert browser.js("location.hash") == "#/queries" and len(titles(browser)) == 1


def test_queries_are_found_sorted_and_kept_in_the_address(browser, pages):
    browser.open(pages["one"])
    assert len(titles(browser)) == 6 and browser.text("#queries-count").startswith(
        "6 queries · mean reciprocal rank of the true sources 0.375"
    )
    browser.js("document.querySelector('#filters input').focus()")
    for letter in "grAZ":
        browser.send("Input.insertText", text=letter)
    assert titles(browser) == ["Graz now"] and browser.text("#queries-count").startswith("1 of 6 queries")
    assert browser.js("location.hash") == "#/queries?text=grAZ"
    browser.go("#/queries?f.relation=born&sort=probability&up=1")
    assert titles(browser) == ["Graz now", "Wien now", "Bern now"]
    browser.go("#/queries?correct=false")
    assert titles(browser) == ["Graz now"]
    browser.go("#/queries?sort=mrr")
    assert titles(browser)[:2] == ["Linz now", "Graz now"]
    browser.go("#/queries?f.relation=born")
    browser.click("#queries-list a")
    assert "All 3 queries found" in browser.text(".ways") and "previous" not in browser.text(".ways")
    browser.click(".ways a:nth-of-type(2)")  # the next of those that were found
    assert browser.js("location.hash") == "#/query/q3"
    browser.click(".ways a")
    assert browser.js("location.hash") == "#/queries?f.relation=born" and len(titles(browser)) == 3
    browser.go("#/queries?text=.*")  # no pattern
    assert titles(browser) == []


def test_a_query_shows_what_carries_its_answer(browser, pages):
    browser.open(pages["one"], "#/query/q0")
    assert "Where is Ada 0?" in browser.text("h1#query-title")
    assert "✓ the answer is right" in browser.text("#view-query")
    assert ids(browser) == ["d0", "Linz-1", "Linz-3", "Linz-4", "Linz-5"] and len(ids(browser, "opp")) == 1
    assert "true source" in browser.text("article[data-document='Linz-1'] .chips")
    chips = browser.text("article[data-document='d0'] .chips")
    assert (
        "common: among the first of 6 of 6" in chips and "self-influence 64, 32 × the median of what is shown" in chips
    )
    assert "BM25 rank 1" in browser.text("article[data-document='d0'] .chips")
    browser.until("document.querySelectorAll('#view-query > article .text .p').length >= 5")
    # said in words where it is marked as common, and there only
    said = "[...document.querySelectorAll('#view-query > article')].filter(a => a.innerText.includes('mislabelled'))"
    assert browser.js(f"{said}.map(a => a.dataset.document)") == ["d0"]
    # near-duplicates lie under the first of them
    browser.js("document.querySelector('details.same').open = true")
    browser.until("document.querySelector('details.same article')?.dataset.document === 'Linz-2'")
    # layers, drawn when they are opened
    browser.js("document.querySelector('article details:not(.same)').open = true")
    browser.until("document.querySelector('table.strip tbody th')?.innerText === 'attention q'")


def test_long_texts_open_around_their_strongest_words(browser, pages):
    browser.open(pages["one"], "#/query/q0?doc=Linz-3")
    long = "article[data-document='Linz-3'] .text"
    assert browser.count(f"{long} button.gap") >= 2 and browser.text(long).count(" w") < 150
    assert browser.js("document.activeElement.dataset.document") == "Linz-3"  # the deep link leads to it
    while browser.count(f"{long} button.gap"):
        browser.click(f"{long} button.gap")
    assert browser.text(long).split() == [*(f"w{n}" for n in range(300)), "Linz", *(f"w{n}" for n in range(300))]


def test_sources_lead_to_their_documents(browser, pages):
    browser.open(pages["one"], "#/query/q0")
    chips = browser.js("[...document.querySelectorAll('#sources-title + ul li')].map(li => li.innerText)")
    assert chips == ["Linz-1: rank 2", "Linz-4: rank 5", "elsewhere: not scored"]
    browser.click("#sources-title + ul li:nth-child(2) button")
    assert browser.js("document.activeElement.dataset.document") == "Linz-4"
    assert browser.js("location.hash") == "#/query/q0?doc=Linz-4"


def test_a_token_of_the_answer_shows_what_carries_it(browser, pages):
    browser.open(pages["one"], "#/query/q0")
    browser.click("button.token:nth-of-type(1)")
    assert browser.js("location.hash") == "#/query/q0?token=0"
    assert "of this token" in browser.text("article .score")
    browser.go("#/query/q0?token=1")
    assert browser.js("document.querySelectorAll('button.token')[1].getAttribute('aria-pressed')") == "true"
    assert ids(browser, "opp")
    browser.js("document.querySelector('#view-query article.opp').scrollIntoView()")
    browser.until("document.querySelector('#view-query article.opp .text .o')")


def test_an_answer_that_is_not_split_says_why(browser, tmp_path):
    told = {"id": "a", "prompt": "Who?", "completion": " Ada", "fields": {}, "tokens": [[" A", -0.1], ["da", -0.2]]}
    told |= {"label": None, "occurrences": None, "documents": None, "unsplit": "it would take a run of the solver"}
    rows = [shown("a", "proponent", 1, 4.0)]
    browser.open(write_page(write_results(tmp_path / "out", rows, scored("a", [4.0]), [told])))
    assert "scores are not split by them: it would take a run of the solver" in browser.text("#tokens-title")
    assert browser.count("button.token") == 0 and browser.count("span.token") == 2


def test_two_runs_side_by_side(browser, pages):
    browser.open(pages["two"], "#/compare/q0?a=0&b=1")
    assert "Over 5 queries that both have" in browser.text("#view-compare")
    assert browser.count("svg.slope path") >= 6
    assert "2 · Linz-1" in browser.js("document.querySelector('.slope').textContent")
    browser.click("#view-compare tbody td.wide a[href*='q1']")
    assert "Where is Ada 1?" in browser.text("#view-compare h2")
    browser.go("#/query/q5?run=1")
    assert "This run has no such query" in browser.text("#view-query")
    browser.go("#/run/1")
    assert browser.text("#view-run-1 h1") == "Run two" and browser.count("#scores-1 svg") == 1


def test_documents_run_nothing(browser, pages):
    for hash in ("", "#/query/a", "#/query/b", "#/query/c", "#/run/0", "#/query/%3Cscript%3E", "#/odd/%E0%A4%A"):
        browser.open(pages["small"], hash)
        assert browser.count("img") == 0 and browser.js("window.evil") is None
    browser.go("#/query/a")
    assert "<img src=x onerror='window.evil = 1'>" in browser.text("#view-query")
    assert "No score differs from zero" not in browser.text()
    # even what got into the page by another way is stopped by its policy
    browser.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.evil = 1\">')")
    browser.settle()
    assert browser.js("window.evil") is None and browser.errors
    browser.errors.clear()
    browser.requests.clear()


@pytest.mark.parametrize("hash", ["", "#/query/q0", "#/query/q0?doc=Linz-3", "#/compare/q0", "#/run/0"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_narrow_window_needs_no_scrolling_aside(browser, pages, hash, dark):
    browser.open(pages["two"], hash, width=375, height=700, dark=dark)
    assert browser.js("document.documentElement.scrollWidth") <= 375
    back = browser.js("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")


def test_it_is_used_by_keyboard_and_read_aloud(browser, pages):
    browser.open(pages["one"])
    browser.press("Tab", 9)
    assert browser.js("document.activeElement.id") == "skip"
    browser.click("#skip")
    assert browser.js("document.activeElement.id") == "main" and browser.js("location.hash") == ""
    browser.click("#queries-list a")
    assert browser.js("document.activeElement.id") == "query-title" and "Ada 0" in browser.text("#status")
    assert browser.js(UNNAMED) == [] and browser.js(TWICE) == []


def test_what_is_printed_is_whole(browser, pages):
    browser.open(pages["one"], "#/query/q0", height=300)
    empty = "[...document.querySelectorAll('#view-query > article')].filter(a => !a.querySelector('.text')).length"
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert browser.js(empty) == 0


def test_in_the_frame_of_a_notebook(browser, pages, tmp_path):
    """The frame is of another origin; what it says comes by a message of a line that is added to its script."""
    page = pages["one"].read_text(encoding="utf-8")
    outer = tmp_path / "notebook.html"
    script = "onmessage = event => { window.said = event.data }"
    talking = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page).replace(
        "</body>",
        "<script>document.querySelector('#queries-list a').click();"
        "parent.postMessage(document.querySelector('#query-title').innerText, '*')</script></body>",
    )
    frame = f'<iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{html.escape(talking)}"></iframe>'
    outer.write_text(f"<script>{script}</script>{frame}")
    browser.open(outer)
    browser.until("window.said")
    assert "Where is Ada 0?" in browser.js("window.said")


def test_many_queries_and_documents_are_drawn_when_they_are_looked_at(browser, tmp_path):
    rows, scores = [], []
    for query in range(110):
        scores += scored(f"q{query}", [100.0 - rank for rank in range(100)])
        for rank in range(1, 101):
            tokens = [[f" w{rank}x{n}", 0.1 + n % 7] for n in range(20)]
            text = f"{query} {rank}" + "".join(token for token, _ in tokens)
            rows.append(shown(f"q{query}", "proponent", rank, 101.0 - rank, text=text, tokens=tokens))
    page = write_page(write_results(tmp_path / "out", rows, scores))
    browser.open(page)
    assert browser.count("#queries-list li") == 100
    took = browser.js(
        "new Promise(r => { const began = performance.now(); location.hash = '#/query/q109';"
        " requestAnimationFrame(() => requestAnimationFrame(() => r(performance.now() - began))) })"
    )
    assert browser.count("#view-query > article") == 100 and browser.count("#view-query .text") < 60
    assert took < 3000
