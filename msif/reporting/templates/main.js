// From the address to a view.

const VIEWS = { queries: showQueries, query: showQuery, compare: showCompare };

function show(moved) {
  forgetWaiting();
  measure();
  const sections = [...document.querySelectorAll("main > section")];
  const known = place.view === "run" || (VIEWS[place.view] && byId("view-" + place.view));
  if (!known) place = { view: "queries", id: null, params: {} };
  let section = byId("view-" + place.view);
  let title;
  if (place.view === "run") {
    section = showRun();
    title = section.querySelector("h1").textContent;
  } else title = VIEWS[place.view]();
  sections.forEach((one) => { one.hidden = one !== section; });
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    const current = link.dataset.view === (place.view === "query" ? "queries" : place.view)
      && (place.view !== "run" || link.dataset.id === section.id.slice("view-run-".length));
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = title;
  if (!moved) return;
  byId("status").textContent = title;
  if (!place.params.doc) {
    section.querySelector("h1").focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function arrived(moved) {
  place = read(location.hash);
  show(moved);
}

addEventListener("hashchange", () => arrived(true));

document.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link) return;
  if (link.id === "skip") {
    event.preventDefault();
    byId("main").focus();
  } else if (framed && link.getAttribute("href").startsWith("#/")) {
    event.preventDefault();
    go(link.getAttribute("href"));
  }
});

byId("theme").addEventListener("change", (event) => {
  const theme = event.target.value;
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
});

arrived(false);
