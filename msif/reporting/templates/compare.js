// Two runs side by side: how far they agree on each query, and how the ranks of one move.

const SHOWN = 20;

function pairOf(params) {
  const runs = data("index").runs.length;
  const valid = (value, other) => (Number(value) >= 0 && Number(value) < runs && value !== undefined ? Number(value) : other);
  const a = valid(params.a, 0);
  return [a, valid(params.b, a === 1 ? 0 : 1)];
}

function agreementsOf(a, b) {
  const found = data("index").agreement.find((one) => (one.a === a && one.b === b) || (one.a === b && one.b === a));
  return found ? found.rows : data("index").queries.map(() => null);
}

function mean(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function agreementTable(rows, params) {
  const index = data("index");
  const ordered = index.queries.map((query, number) => [query, rows[number]]).filter(([, row]) => row);
  const sort = params.by || "";
  const value = ([, row]) => (sort === "overlap" ? row.overlap / row.of : row.spearman ?? 2);
  if (sort) ordered.sort((a, b) => value(a) - value(b));
  const header = (name, text) => el("th", { scope: "col", "aria-sort": sort === name ? "ascending" : null },
    el("button", { type: "button", on: { click: () => { keep({ by: sort === name ? "" : name }); show(false); } } }, text));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Agreement by query" },
    el("table", { class: "numbers" },
      el("caption", null, "Agreement by query; the least first where a column is chosen"),
      el("thead", null, el("tr", { class: "sorted" }, el("th", { scope: "col" }, "query"), header("spearman", "Spearman"), header("overlap", "same in the first ten"), el("th", { scope: "col" }, "scored by both"))),
      el("tbody", null, ordered.map(([query, row]) => el("tr", null,
        el("td", { class: "wide" }, el("a", { href: address("compare", query.id, params) }, query.prompt + " " + query.answer)),
        el("td", null, row.spearman === null ? "–" : row.spearman.toFixed(2)),
        el("td", null, row.overlap + " of " + row.of), el("td", null, count(row.common)))))));
}

// The first of either run with their ranks in both.
function movers(part, a, b) {
  const found = new Map();
  for (const run of [a, b]) {
    for (const entry of part.runs[run] ? part.runs[run].entries : []) {
      const own = data("documents")[entry.d];
      const ranks = [entry.ranks[a], entry.ranks[b]];
      if (entry.kind === "proponent" && entry.rank <= SHOWN && !found.has(own.id)) found.set(own.id, { id: own.id, ranks, source: entry.source, d: entry.d });
    }
  }
  return [...found.values()].sort((x, y) => (x.ranks[0] ?? Infinity) - (y.ranks[0] ?? Infinity));
}

function moved(rows, names) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Ranks in both runs" }, el("table", { class: "numbers" },
    el("caption", null, "The same ranks as a table"),
    el("thead", null, el("tr", null, ["document", names[0], names[1], "text"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", null, rows.map((row) => {
      const own = data("documents")[row.d];
      const text = (own.words.join("") || own.plain || "").trim();
      return el("tr", null, el("th", { scope: "row" }, row.id + (row.source ? " (true source)" : "")), row.ranks.map((rank) => el("td", null, rank ?? "–")),
        el("td", { class: "wide" }, text.length > 160 ? text.slice(0, 160) + "…" : text));
    }))));
}

function showCompare() {
  const index = data("index");
  const params = place.params;
  const [a, b] = pairOf(params);
  const names = [index.runs[a].name, index.runs[b].name];
  const rows = agreementsOf(a, b);
  const again = (name) => (value) => { keep({ [name]: value }); show(false); };
  const options = index.runs.map((run, number) => [number, run.name + " (" + run.method + ")"]);
  const controls = el("form", { class: "filters", "aria-label": "Which runs", on: { submit: (event) => event.preventDefault() } },
    choice("Left", options, a, again("a")), choice("Right", options, b, again("b")));
  const known = rows.filter(Boolean);
  const whole = index.runs[a].whole && index.runs[b].whole;
  const said = el("p", null, a === b ? "Choose two different runs." : "Over " + count(known.length) + " queries that both have: Spearman "
    + number(mean(known.map((row) => row.spearman)), 3) + " on average, and " + number(mean(known.map((row) => row.overlap)), 3)
    + " documents in common among the first ten." + (whole ? "" : " Of a file only the documents that it shows are known."));
  const parts = [el("h1", { id: "compare-title", tabindex: -1 }, "Side by side"), controls, said];
  const at = place.id === null ? -1 : numberOf(place.id);
  if (at >= 0 && a !== b) {
    const query = index.queries[at];
    const found = movers(data("query-" + at), a, b);
    parts.push(el("h2", null, query.prompt + " " + query.answer),
      el("p", { class: "ways" }, [a, b].map((run) => el("a", { href: address("query", query.id, { run: run || "" }) }, "documents of " + index.runs[run].name))),
      found.length ? el("figure", null, slopes(found, names), el("figcaption", null,
        "Ranks of the first documents of either run: blue rises from left to right, dashed orange falls, bold is a true source.")) : el("p", { class: "note" }, "Neither run shows a proponent."),
      found.length ? moved(found, names) : null);
  }
  if (a !== b) parts.push(el("h2", null, "All queries"), agreementTable(rows, { ...params, a, b }));
  fill(byId("view-compare"), parts);
  return "Side by side";
}
