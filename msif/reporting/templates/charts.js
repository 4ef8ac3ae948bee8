// Charts as vector graphics, with the same numbers in words.

// as wide as there is room for, so that letters keep their size
let WIDTH = 640;
const measure = () => { WIDTH = Math.max(280, Math.min(640, byId("main").clientWidth)); };

const steps = () => (WIDTH < 480 ? 2 : 4);

function evenly(low, high) {
  return Array.from({ length: steps() + 1 }, (_, i) => low + ((high - low) * i) / steps());
}

function wholeNumbers(low, high) {
  const step = Math.max(1, Math.ceil((high - low) / steps()));
  const first = Math.ceil(low);
  return Array.from({ length: Math.floor((high - first) / step) + 1 }, (_, i) => first + i * step);
}

function axis(low, high, x, y, places, shown) {
  const marks = [svg("line", { class: "axis", x1: x(low), x2: x(high), y1: y, y2: y })];
  for (const value of places) {
    const anchor = x(value) < 20 ? "start" : x(value) > WIDTH - 20 ? "end" : "middle";
    marks.push(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: y, y2: y + 4 }));
    marks.push(svg("text", { x: x(value), y: y + 16, "text-anchor": anchor }, shown(value)));
  }
  return marks;
}

// Bars grow with the square root of the count, so that the few in the tails are seen beside the many in the middle.
function bars(counts, low, high, x, height) {
  const most = Math.sqrt(Math.max(...counts, 1));
  const step = (high - low) / counts.length;
  return counts.map((value, place) => {
    const tall = value ? Math.max(1, (height * Math.sqrt(value)) / most) : 0;
    const left = x(low + step * place);
    const width = Math.max(0.5, x(low + step * (place + 1)) - left - 0.5);
    return svg("rect", { class: "count", x: left, y: height - tall, width, height: tall },
      svg("title", null, count(value) + " from " + number(low + step * place, 3) + " to " + number(low + step * (place + 1), 3)));
  });
}

function drawing(height, label, ...children) {
  return svg("svg", { class: "chart", viewBox: "0 0 " + WIDTH + " " + height, role: "img", "aria-label": label }, ...children);
}

function histogram(found, scores, label, unit) {
  const x = (value) => (WIDTH * (value - found.low)) / (found.high - found.low);
  const ticks = scores.map((score) =>
    svg("line", { class: "tick " + (score > 0 ? "pro" : "opp"), x1: x(score), x2: x(score), y1: 92, y2: 103 }));
  return drawing(142, label, bars(found.counts, found.low, found.high, x, 90), ticks,
    axis(found.low, found.high, x, 106, evenly(found.low, found.high), (value) => number(value, 2)),
    svg("text", { x: WIDTH / 2, y: 139, "text-anchor": "middle" }, unit));
}

function spectrum(found) {
  const x = (value) => (WIDTH * (value - found.low)) / (found.high - found.low || 1);
  const shift = found.shift;
  const marks = shift ? [
    svg("rect", { class: "band", x: x(shift.spread[0]), width: Math.max(1, x(shift.spread[2]) - x(shift.spread[0])), y: 0, height: 90 }),
    svg("line", { class: "mark", x1: x(shift.spread[1]), x2: x(shift.spread[1]), y1: 0, y2: 90 }),
  ] : [];
  const label = "Histogram of the eigenvalues Λ, by their logarithm" + (shift ? ", with the damping in it" : "");
  return drawing(136, label, bars(found.counts, found.low, found.high, x, 90), marks,
    axis(found.low, found.high, x, 92, wholeNumbers(found.low, found.high), (value) => "1e" + value),
    svg("text", { x: WIDTH / 2, y: 130, "text-anchor": "middle" }, "eigenvalue Λ (loss per parameter², logarithmic)"));
}

// Two columns of ranks and a line for each document; who is not among one side's candidates ends at its foot.
function slopes(rows, names) {
  const step = 22, top = 34, left = 70, right = WIDTH - 70;
  const places = [0, 1].map((side) => {
    const ordered = rows.filter((row) => row.ranks[side] !== null).sort((a, b) => a.ranks[side] - b.ranks[side]);
    return new Map(ordered.map((row, number) => [row, top + step * number]));
  });
  const deepest = top + step * Math.max(places[0].size, places[1].size);
  const y = (row, side) => places[side].get(row) ?? deepest;
  const lines = rows.map((row) => {
    const [a, b] = row.ranks;
    const kind = b === null || (a !== null && a < b) ? "down" : a === b ? "level" : "up";
    const curve = "M" + left + " " + y(row, 0) + "C" + WIDTH / 2 + " " + y(row, 0) + " " + WIDTH / 2 + " " + y(row, 1) + " " + right + " " + y(row, 1);
    return svg("path", { class: kind + (row.source ? " source" : ""), d: curve },
      svg("title", null, row.id + ": rank " + (a ?? "none") + " and " + (b ?? "none")));
  });
  const ends = [0, 1].flatMap((side) => rows.filter((row) => row.ranks[side] !== null).map((row) =>
    svg("text", { class: row.source ? "source" : null, x: side ? right + 6 : left - 6, y: y(row, side) + 4, "text-anchor": side ? "start" : "end" },
      row.ranks[side] + " · " + (row.id.length > 8 ? row.id.slice(0, 7) + "…" : row.id))));
  const heads = [svg("text", { x: 0, y: 12 }, names[0]), svg("text", { x: WIDTH, y: 12, "text-anchor": "end" }, names[1])];
  const lost = rows.some((row) => row.ranks.includes(null));
  const chart = drawing(deepest + 24, "Ranks of documents in " + names[0] + " and in " + names[1], heads, lines, ends,
    lost && svg("text", { x: WIDTH / 2, y: deepest + 20, "text-anchor": "middle" }, "down here: not a candidate of that run"));
  chart.classList.add("slope");
  return chart;
}
