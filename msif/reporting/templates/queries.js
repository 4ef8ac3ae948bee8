// The list of queries.

const STEP = 100;
const SORTS = [
  ["", "as in the data"], ["best", "score of the best"], ["share", "share of the best in the total"],
  ["mrr", "reciprocal rank of the true sources"], ["probability", "probability of the answer"],
];

function sortsThere(run) {
  const all = data("index").queries;
  const there = {
    mrr: all.some((query) => query.runs[run] && query.runs[run].mrr !== null),
    probability: all.some((query) => query.probability !== null),
  };
  return SORTS.filter(([name]) => there[name] !== false);
}

function valueOf(query, sort, run) {
  if (sort === "probability") return query.probability;
  return query.runs[run] ? query.runs[run][sort] : null;
}

// Plain parts of texts: nothing that is typed is taken for a pattern.
function chosen(params) {
  const run = runOf(params);
  const wanted = (params.text || "").toLowerCase();
  const fields = Object.entries(params).filter(([name]) => name.startsWith("f."));
  const found = data("index").queries.filter((query) => {
    if (params.correct && String(query.correct) !== params.correct) return false;
    if (fields.some(([name, value]) => fieldText(query.fields[name.slice(2)] ?? "") !== value)) return false;
    if (!wanted) return true;
    const texts = [query.id, query.prompt, query.answer, ...Object.values(query.fields).map(fieldText)];
    return texts.some((text) => text.toLowerCase().includes(wanted));
  });
  const sort = SORTS.some(([name]) => name === params.sort) ? params.sort : "";
  if (!sort) return found;
  const sign = params.up === "1" ? 1 : -1;
  const of = (query) => valueOf(query, sort, run);
  return found.sort((a, b) => (of(a) === null) - (of(b) === null) || sign * (of(a) - of(b)));
}

function filterControls(params) {
  const index = data("index");
  const change = (name) => (value) => {
    keep({ [name]: value });
    listQueries();
  };
  const text = el("input", { type: "search", value: params.text || "", autocomplete: "off", spellcheck: "false" });
  text.addEventListener("input", () => change("text")(text.value));
  const controls = [el("label", { class: "wide" }, "Find in prompts, answers and fields", text)];
  if (index.queries.some((query) => query.correct !== null)) {
    controls.push(choice("Answered", [["", "any"], ["true", "right"], ["false", "wrong"]], params.correct || "", change("correct")));
  }
  for (const name of index.fields) {
    const values = [...new Set(index.queries.filter((query) => name in query.fields).map((query) => fieldText(query.fields[name])))];
    // one that tells every query apart is found by its text
    if (values.length < 2 || values.length > Math.min(40, index.queries.length / 2)) continue;
    const options = [["", "any"], ...values.sort().map((value) => [value, value])];
    controls.push(choice(name, options, params["f." + name] || "", change("f." + name)));
  }
  if (index.runs.length > 1) {
    const options = index.runs.map((run, number) => [number, run.name]);
    controls.push(choice("Scores of", options, runOf(params), change("run")));
  }
  controls.push(choice("Sort by", sortsThere(runOf(params)), params.sort || "", change("sort")));
  controls.push(choice("Order", [["", "largest first"], ["1", "smallest first"]], params.up || "", change("up")));
  return controls;
}

function factsOf(query, run) {
  const own = query.runs[run];
  const facts = [];
  const add = (text, kind) => facts.push(el("span", { class: kind }, text));
  if (query.correct !== null) add(query.correct ? "✓ right" : "✗ wrong", query.correct ? "good" : "bad");
  if (query.probability !== null) add("probability " + probability(query.probability));
  if (!own) add("not in this run");
  else {
    add("best " + number(own.best) + (own.share === null ? "" : ", " + percent(own.share, 1) + " of the total"));
    if (own.mrr !== null) add(own.mrr ? "first true source at rank " + Math.round(1 / own.mrr) : "no true source was scored");
    add(count(own.scored) + " documents");
  }
  for (const [name, value] of Object.entries(query.fields)) add(name + ": " + fieldText(value));
  return el("div", { class: "facts" }, facts);
}

// what the list was last asked for, to come back to
let listed = {};

function listQueries(length = STEP) {
  listed = place.params;
  const run = runOf(place.params);
  const found = chosen(place.params);
  const all = data("index").queries.length;
  const many = found.length === all ? count(all) + (all === 1 ? " query" : " queries") : count(found.length) + " of " + count(all) + " queries";
  const known = found.map((query) => query.runs[run]?.mrr).filter((value) => value !== null && value !== undefined);
  byId("queries-count").textContent = many + (known.length ? " · mean reciprocal rank of the true sources " + number(mean(known), 3)
    + (known.length < found.length ? " (of " + count(known.length) + ")" : "") : "");
  fill(byId("queries-list"), found.slice(0, length).map((query) => el("li", null,
    el("a", { href: address("query", query.id, { run: run || "" }) },
      el("span", { class: "ask", dir: "auto" }, query.prompt, " ", el("b", null, query.answer || "—")), factsOf(query, run)))));
  const more = byId("queries-more");
  more.hidden = found.length <= length;
  more.onclick = () => {
    listQueries(length + STEP);
    byId("queries-list").children[length].querySelector("a").focus();
  };
}

function showQueries() {
  const form = byId("filters");
  form.onsubmit = (event) => event.preventDefault();
  fill(form, filterControls(place.params));
  listQueries();
  return "Queries";
}
