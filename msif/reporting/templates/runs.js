// How a run was made: the page brings its tables; charts are drawn here.

function drawScores(run) {
  const node = byId("scores-" + run);
  if (node.childElementCount) return;
  const found = data("index").runs[run].histogram;
  if (!found) {
    put(node, [el("p", { class: "soft" }, "There are no scores that differ.")]);
    return;
  }
  put(node, [el("figure", null, histogram(found, [], "Scores of all queries, each over the largest of its query", "score over the largest of its query"),
    el("figcaption", null, "Scores of all queries, each over the largest of its query. The first ten of a query lie above "
      + number(found.first, 3) + " in the median. Heights grow with the square root of the count."))]);
}

function drawSpectra(run) {
  data("runs")[run].factors.forEach((stage, place) => {
    const node = byId("spectrum-" + run + "-" + place);
    const found = stage.spectrum;
    if (node.childElementCount || !found || !found.counts.length) return;
    const shift = found.shift;
    const said = shift ? "The dashed line is the median of what damping adds (λ + α), the band its range over blocks; "
      + percent(found.shift.below) + " of the eigenvalues lie below the line." : "What damping adds is not drawn: its scale was read from the training record.";
    put(node, [el("figure", null, spectrum(found), el("figcaption", null, "Eigenvalues Λ of all blocks (a sample of rows). " + said
      + (found.zero > 0.001 ? " " + percent(found.zero, 1) + " are zero and not drawn." : "")))]);
  });
}

function showRun() {
  const asked = Number.parseInt(place.id ?? "0", 10) || 0;
  const section = byId("view-run-" + asked) || byId("view-run-0");
  const own = Number(section.id.slice("view-run-".length));
  drawScores(own);
  drawSpectra(own);
  return section;
}
