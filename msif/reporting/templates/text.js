// A document's words in the colour of their parts; of a long text those around its strongest words.

const AROUND = 18, SHORT = 110, PEAKS = 5, WORTH = 0.1, FAINT = 0.02;

function tinted(name, text, part, strongest, title) {
  const strength = strongest ? Math.abs(part) / strongest : 0;
  if (strength < FAINT) return el(name, { title }, text);
  return el(name, { class: part > 0 ? "p" : "o", w: strength.toFixed(2), title }, text);
}

const split = (unit) => {
  const text = unit.trimStart();
  return [unit.slice(0, unit.length - text.length), text];
};

// [from, to) of the words that are shown at first
function windows(sizes) {
  if (sizes.length <= SHORT) return [[0, sizes.length]];
  const least = WORTH * Math.max(...sizes);
  const peaks = sizes.map((size, place) => [size, place]).filter(([size]) => size >= least).sort((a, b) => b[0] - a[0]).slice(0, PEAKS);
  const wanted = peaks.map(([, place]) => [Math.max(0, place - AROUND), Math.min(sizes.length, place + AROUND + 1)]);
  const joined = [];
  for (const [from, to] of wanted.sort((a, b) => a[0] - b[0])) {
    const last = joined[joined.length - 1];
    if (last && from <= last[1] + 4) last[1] = Math.max(last[1], to);
    else joined.push([from, to]);
  }
  return joined;
}

function wordsOf(own, parts, of) {
  if (!own.words.length) return [own.plain ?? "", ...unread(own)];
  const sizes = parts.map(Math.abs);
  const strongest = Math.max(...sizes, 0);
  const piece = (from, to) => own.words.slice(from, to).flatMap((unit, offset) => {
    const at = from + offset;
    const [space, text] = split(unit);
    const next = own.words[at + 1];
    const title = share(parts[at], 1) + " of " + of + (next ? ", predicting “" + next.trim() + "”" : "");
    return [space, tinted("span", text, parts[at], strongest, title)];
  });
  const gap = (from, to) => {
    const button = el("button", { type: "button", class: "gap", title: "show them" }, "… " + count(to - from) + " words …");
    button.addEventListener("click", () => {
      const found = piece(from, to);
      const first = found.find((node) => node instanceof Element);
      button.replaceWith(...found);
      if (first) {
        first.tabIndex = -1;
        first.focus();
      }
    });
    return button;
  };
  const shown = [];
  let at = 0;
  for (const [from, to] of windows(sizes)) {
    if (from > at) shown.push(gap(at, from));
    shown.push(...piece(from, to));
    at = to;
  }
  if (at < own.words.length) shown.push(gap(at, own.words.length));
  return [...shown, ...unread(own)];
}

function unread(own) {
  if (!own.unread) return [];
  const more = own.more ? " … and " + count(own.more) + " more characters" : "";
  return [el("span", { class: "unread", title: "beyond the longest length: not read" }, own.unread + more)];
}

// The strongest words of the score's sign in numbers, for those who do not hover.
function carried(own, parts, sign) {
  const ordered = parts.map((part, place) => [part * sign, place]).filter(([part]) => part >= 10).sort((a, b) => b[0] - a[0]);
  const named = ordered.slice(0, 5).map(([part, place]) => {
    const next = own.words[place + 1];
    return own.words[place].trim() + (next ? " → " + next.trim() : "") + " " + share(part * sign);
  });
  return named.length ? el("p", { class: "carried" }, "Carried by: " + named.join(" · ")) : null;
}

function strip(view, entry) {
  const all = entry.cells.flat().filter((part) => part !== null);
  const strongest = Math.max(...all.map(Math.abs), 0);
  const printed = view.layers.length <= 12;
  const head = el("tr", null, el("th", null, "layer"),
    view.layers.map((layer) => el("th", { scope: "col" }, layer === null ? "–" : layer)));
  const rows = entry.cells.map((cells, row) => el("tr", null, el("th", { scope: "row" }, view.kinds[row]),
    cells.map((part, column) => {
      if (part === null) return el("td");
      const where = view.kinds[row] + ", layer " + (view.layers[column] ?? "none") + ": " + share(part, 1) + " of the score";
      return tinted("td", printed ? share(part) : "", part, strongest, where);
    })));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Parts of the score by layer" },
    el("table", { class: "strip" }, el("thead", null, head), el("tbody", null, rows)));
}
