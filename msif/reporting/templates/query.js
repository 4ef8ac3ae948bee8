// One query: its answer, the documents that made it likely and those that made it less so.

const LISTS = [["proponent", "Made it more likely"], ["opponent", "Made it less likely"]];

function asked(entry, part) {
  const nodes = [part.prompt, " ", el("b", null, (entry.answer || "—").trim())];
  return el("h1", { id: "query-title", class: "asked", tabindex: -1, dir: "auto" }, nodes);
}

function answerTokens(part, view) {
  if (!part.tokens || part.tokens.length < 1 || !part.tokens[0][0]) return null;
  const split = view && view.entries.some((one) => one.answer);
  const chosen = tokenOf(part, view);
  const inside = (text, log) => [el("span", null, text.trim() || "␣"), el("small", null, probability(Math.exp(log)))];
  const press = (number) => () => {
    keep({ token: number === chosen ? "" : number });
    show(false);
    byId("view-query").querySelectorAll("button.token")[number].focus();
  };
  const tokens = part.tokens.map(([text, log], number) => el("li", null, split
    ? el("button", { type: "button", class: "token", "aria-pressed": String(number === chosen), on: { click: press(number) } }, inside(text, log))
    : el("span", { class: "token" }, inside(text, log))));
  const said = split ? "The answer's tokens with their probabilities; choose one for the documents and words that carry it"
    : "The answer's tokens with their probabilities" + (view && view.unsplit ? "; scores are not split by them: " + view.unsplit : "");
  return el("div", null, el("p", { class: "soft", id: "tokens-title" }, said),
    el("ul", { class: "tokens", "aria-labelledby": "tokens-title" }, tokens));
}

function tokenOf(part, view) {
  const number = Number.parseInt(place.params.token ?? "", 10);
  const split = view && view.entries.some((one) => one.answer);
  return split && number >= 0 && number < part.tokens.length ? number : -1;
}

// The same documents by what one token of the answer gives to their scores.
function forToken(view, token) {
  const entries = view.entries.filter((one) => one.answer).map((one) => {
    const { part, words } = one.answer[token];
    return { ...one, words, ofToken: part, kind: part < 0 ? "opponent" : "proponent", cells: null };
  });
  return { ...view, entries: entries.sort((a, b) => Math.abs(b.ofToken) - Math.abs(a.ofToken)) };
}

function told(entry, part, view) {
  const facts = [];
  const add = (text, kind) => facts.push(el("span", { class: kind }, text));
  if (entry.correct !== null) add(entry.correct ? "✓ the answer is right" : "✗ the answer is wrong", entry.correct ? "good" : "bad");
  if (entry.correct === false && part.answers.length) add("right would be: " + part.answers.join(", "));
  if (entry.probability !== null) add("probability of the answer " + probability(entry.probability));
  if (part.occurrences !== null && part.occurrences !== undefined) {
    add("the answer stands in " + count(part.occurrences) + (part.documents ? " of " + count(part.documents) : "") + " documents");
  }
  if (view) add(count(view.scored) + (view.whole ? " documents were scored" : " documents are shown"));
  add("id: " + entry.id);
  for (const [name, value] of Object.entries(entry.fields)) add(name + ": " + fieldText(value));
  return el("div", { class: "facts" }, facts);
}

// Chips of the known true sources, which lead to those that are shown.
function sourceChips(view) {
  if (!view.sources) return null;
  const there = new Set(view.entries.filter((one) => one.source).map((one) => data("documents")[one.d].id));
  const ranks = view.sources.filter((one) => one.rank).map((one) => one.rank);
  const said = ranks.length ? ", the first at rank " + count(Math.min(...ranks)) : ", none of them was scored";
  return el("div", null,
    el("p", { class: "soft", id: "sources-title" }, count(view.sources.length) + " known true sources" + said),
    el("ul", { class: "chips", "aria-labelledby": "sources-title" }, view.sources.map((one) => {
      const text = one.id + (one.rank ? ": rank " + count(one.rank) : ": not scored");
      if (!there.has(one.id)) return el("li", { class: "chip" }, text);
      return el("li", null, el("button", { type: "button", class: "chip good", on: { click: () => jump(one.id) } }, text));
    })));
}

// To the queries before and after in the list as it was last filtered and sorted.
function ways(entry, params) {
  const found = chosen(listed);
  const list = found.includes(entry) ? found : data("index").queries;
  const at = list.indexOf(entry);
  const link = (query, text) => query && el("a", { href: address("query", query.id, { run: params.run }) }, text);
  return el("nav", { class: "ways", "aria-label": "Other queries" },
    el("a", { href: address("queries", null, list === found ? listed : {}) }, (list.length > 1 ? "All " + count(list.length) + " queries" : "All queries") + (list.length < data("index").queries.length ? " found" : "")),
    link(list[at - 1], "← previous"), link(list[at + 1], "next →"),
    data("index").runs.length > 1 && el("a", { href: address("compare", entry.id, {}) }, "Side by side"));
}

function lists(view, entry, params) {
  const scale = params.scale || "score";
  const link = (id) => address("query", entry.id, { ...params, doc: id });
  const found = [];
  for (const [kind, title] of LISTS) {
    const own = view.entries.filter((one) => one.kind === kind);
    if (!own.length) continue;
    found.push(el("h2", { id: kind + "s" }, title));
    for (const [first, ...others] of folded(own)) {
      const shown = card(first, view, scale, link);
      if (others.length) shown.append(duplicates(others, view, scale, link));
      shown.dataset.document = data("documents")[first.d].id;
      found.push(shown);
    }
  }
  return found;
}

function duplicates(others, view, scale, link) {
  const more = el("details", { class: "same" }, el("summary", null, count(others.length) + (others.length === 1 ? " near-duplicate" : " near-duplicates")
    + ", rank " + others.map((one) => count(one.rank)).join(", ")));
  more.addEventListener("toggle", () => {
    if (more.childElementCount > 1) return;
    for (const other of others) {
      const shown = card(other, view, scale, link);
      shown.dataset.document = data("documents")[other.d].id;
      more.append(shown);
    }
  });
  more.dataset.holds = JSON.stringify(others.map((one) => data("documents")[one.d].id));
  return more;
}

function jump(id) {
  for (const more of byId("view-query").querySelectorAll("details.same")) {
    if (!JSON.parse(more.dataset.holds).includes(id) || more.open) continue;
    more.open = true;
    requestAnimationFrame(() => requestAnimationFrame(() => jump(id)));
    return;
  }
  const all = [...byId("view-query").querySelectorAll("article")];
  const wanted = all.find((one) => whole(one.dataset.document) === whole(id));
  all.forEach((one) => one.classList.toggle("marked", one === wanted));
  if (!wanted) return;
  // what is above it is filled first, so that it does not slide away
  all.slice(0, all.indexOf(wanted) + 1).forEach((one) => one.querySelectorAll("div").forEach(fillNow));
  wanted.scrollIntoView({ block: "start" });
  wanted.focus({ preventScroll: true });
  keep({ doc: id });
}

function queryControls(view, entry, params) {
  const index = data("index");
  const again = (name) => (value) => {
    keep({ [name]: value });
    show(false);
  };
  const controls = [];
  if (index.runs.length > 1) {
    controls.push(choice("Run", index.runs.map((run, number) => [number, run.name]), runOf(params), again("run")));
  }
  if (view && view.entries.length) {
    const needs = { norm: (one) => one.norm, self: (one) => one.self_influence > 0 };
    const scales = SCALES.filter(([name]) => !needs[name] || view.entries.some(needs[name]));
    controls.push(choice("Scores", scales, params.scale || "score", again("scale")));
  }
  return controls.length ? el("form", { class: "filters", "aria-label": "What is shown", on: { submit: (event) => event.preventDefault() } }, controls) : null;
}

const legend = () => el("p", { class: "soft" },
  el("span", { class: "key p" }, "blue"), " made the answer more likely, ",
  el("span", { class: "key o" }, "orange"), " made it less likely. A word is as strong in colour as its part of the score is beside the "
  + "largest of its document; the part arises where the model, having read this word, predicts the next. Point at a word for its "
  + "number. Scores are compared within one query only.");

function showQuery() {
  const number = numberOf(place.id);
  const section = byId("view-query");
  if (number < 0) {
    fill(section, el("h1", { id: "query-title", tabindex: -1 }, "There is no such query"),
      el("p", null, el("a", { href: address("queries") }, "All queries")));
    return "No such query";
  }
  const entry = data("index").queries[number];
  const part = data("query-" + number);
  const params = place.params;
  const all = part.runs[runOf(params)];
  const token = tokenOf(part, all);
  const view = token < 0 ? all : forToken(all, token);
  const chart = view && view.histogram && el("figure", null,
    histogram(view.histogram, view.entries.map((one) => one.score), "Scores of " + count(view.scored) + " documents; those that are shown are marked", "score"),
    el("figcaption", null, "All " + count(view.scored) + " scores; the ticks are the documents below. Heights grow with the square root of the count."));
  const shown = !view ? [el("p", { class: "note" }, "This run has no such query.")]
    : view.entries.length ? lists(view, entry, params)
    : [el("p", { class: "note" }, "No score differs from zero.")];
  fill(section, ways(entry, params), asked(entry, part), told(entry, part, view), answerTokens(part, all),
    view && sourceChips(view), queryControls(view, entry, params), chart,
    view && view.entries.some((one) => one.words.length) && legend(), shown);
  if (params.doc) requestAnimationFrame(() => jump(params.doc));
  return entry.prompt;
}
