// One document of a query's list.

const SCALES = [["score", "score"], ["largest", "of the largest"], ["norm", "by gradient norm"], ["self", "by √self-influence"]];

function scaled(entry, view, scale) {
  const largest = Math.max(...view.entries.map((one) => Math.abs(one.score)));
  if (scale === "largest") return ["of the largest ", number(largest ? entry.score / largest : 0, 3)];
  if (scale === "norm" && entry.norm) return ["by gradient norm ", number(entry.score / entry.norm)];
  if (scale === "self" && entry.self_influence > 0) return ["by √self-influence ", number(entry.score / Math.sqrt(entry.self_influence))];
  return ["score ", number(entry.score)];
}

const SELF = "what training on this document does to the model's loss on itself (gᵀPg, with its gradient g and the run's inverse P of pre-training): "
  + "large for long, odd or mislabelled documents, whose scores are large whatever is asked";

// Beside that of the other documents that the run shows.
function selfInfluence(entry) {
  const usual = data("index").runs[runOf(place.params)].self;
  return "self-influence " + number(entry.self_influence, 3) + (usual > 0 ? ", " + number(entry.self_influence / usual, 2) + " × the median of what is shown" : "");
}

function marks(entry, view) {
  const found = [];
  const chip = (text, kind, title) => found.push(el("li", { class: "chip " + (kind || ""), title }, text));
  if (entry.source) chip("true source", "good", "a document that is known to state the answer");
  if (entry.common) {
    const [often, queries] = entry.common;
    chip("common: among the first of " + often + " of " + queries + " queries", "odd", "it ranks high whatever is asked");
  }
  if (entry.self_influence !== undefined) chip(selfInfluence(entry), entry.common ? "odd" : "", SELF);
  if (entry.prior) chip("of it " + number(entry.prior) + " by search", "odd", "the prior, which no word and no layer carries");
  const shared = entry.lexical;
  if (shared) {
    const rank = shared.rank ? "words in common: BM25 rank " + count(shared.rank) : "no words in common";
    const named = shared.words.map(([word, part]) => word + " " + number(part, 3)).join(" · ");
    chip(rank, shared.rank && shared.rank <= 10 ? "odd" : "", named ? "BM25 " + number(shared.score) + ": " + named : "");
  }
  if (entry.norm) chip("gradient norm " + number(entry.norm, 3), "", "of the document's loss, over the maps that take part");
  return found.length ? el("ul", { class: "chips", "aria-label": "Marks" }, found) : null;
}

function fieldsOf(fields) {
  const named = Object.entries(fields || {});
  return named.length ? el("p", { class: "soft" }, named.map(([name, value]) => name + ": " + fieldText(value)).join(" · ")) : null;
}

function sharedWords(entry) {
  const words = entry.lexical?.words || [];
  return words.length ? el("p", { class: "soft" }, "Words in common with the query (BM25): " + words.map(([word]) => word).join(", ")) : null;
}

function body(entry, view, own) {
  const text = el("p", { class: "text", dir: "auto" });
  fill(text, wordsOf(own, entry.words, entry.ofToken === undefined ? "the score" : "this token's part"));
  const loud = entry.common && entry.self_influence !== undefined
    && el("p", { class: "soft" }, "It ranks high for most queries. Its self-influence is " + SELF + ".");
  const parts = [text, loud, carried(own, entry.words, entry.kind === "opponent" ? -1 : 1), fieldsOf(own.fields), sharedWords(entry)];
  if (entry.cells) {
    const more = el("details", null, el("summary", null, "Layers and maps that carry it"));
    more.addEventListener("toggle", () => {
      if (more.childElementCount > 1) return;
      const named = entry.blocks.map(([name, part]) => name + " " + share(part)).join(" · ");
      put(more, [strip(view, entry), el("p", { class: "soft" }, "Strongest blocks: " + named)]);
    });
    parts.push(more);
  }
  return parts;
}

function card(entry, view, scale, link) {
  const own = data("documents")[entry.d];
  const side = entry.kind === "opponent" ? "opp" : "pro";
  const [name, value] = entry.ofToken === undefined ? scaled(entry, view, scale) : ["of this token ", number(entry.ofToken)];
  const size = (one) => Math.abs(one.ofToken ?? one.score);
  const largest = Math.max(...view.entries.map(size));
  const title = "rank-" + side + "-" + entry.rank;
  const head = el("div", { class: "head" },
    el("h3", { id: title }, "rank " + count(entry.rank)),
    el("a", { href: link(own.id), title: "address of this document" }, el("code", null, own.id)),
    el("span", { class: "score" }, name + value),
    entry.ofToken !== undefined ? el("span", { class: "soft" }, share((1000 * entry.ofToken) / Math.abs(entry.score), 1) + " of its score " + number(entry.score))
      : el("span", { class: "soft" }, percent(entry.share, 1) + (view.whole ? " of all that speaks " : " of what is shown that speaks ") + (side === "pro" ? "for it" : "against it")),
    el("span", { class: "bar", "aria-hidden": "true" }, el("i", { w: (largest ? size(entry) / largest : 0).toFixed(3) })));
  const rest = el("div");
  const whole = el("article", { class: side, "aria-labelledby": title, tabindex: -1 }, head, marks(entry, view), rest);
  rest.style.minHeight = "5rem";
  later(rest, () => {
    rest.style.minHeight = "";
    put(rest, body(entry, view, own));
  });
  return whole;
}

// Entries of one list, those that say nearly the same as one before them under it.
function folded(entries) {
  const first = new Map();
  for (const entry of entries) {
    const group = data("documents")[entry.d].group;
    if (first.has(group)) first.get(group).push(entry);
    else first.set(group, [entry]);
  }
  return [...first.values()];
}
