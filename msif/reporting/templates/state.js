// Where one is stands in the address, so that every view can be kept and sent: #/query/ID?run=0&doc=...
// In a frame of a notebook there is no address of one's own; then it is held here.

const framed = location.protocol === "about:";
let place = { view: "queries", id: null, params: {} };

// an address cannot hold half of a character
const whole = (text) => String(text).replace(/\p{Surrogate}/gu, "\ufffd");

function address(view, id, params) {
  const path = "#/" + view + (id === null || id === undefined ? "" : "/" + encodeURIComponent(whole(id)));
  const kept = Object.entries(params || {}).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(kept.map(([name, value]) => [name, whole(value)])).toString();
  return query ? path + "?" + query : path;
}

// Without a place in the address: the list, or where there is but one query that one.
function start() {
  const { queries } = data("index");
  return queries.length === 1 ? { view: "query", id: whole(queries[0].id), params: {} } : { view: "queries", id: null, params: {} };
}

function read(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, id] = path.split("/");
  let name = null;
  try {
    name = id ? decodeURIComponent(id) : null;
  } catch {
    // no address that this page wrote: as if nothing stood there
  }
  if (!view && !query) return start();
  return { view: view || "queries", id: name, params: Object.fromEntries(new URLSearchParams(query || "")) };
}

function go(hash) {
  if (!framed) {
    location.hash = hash;
    return;
  }
  place = read(hash);
  show(true);
}

// The same view with other settings: no step back, and nothing is drawn anew here.
function keep(changes) {
  place.params = { ...place.params, ...changes };
  const hash = address(place.view, place.id, place.params);
  if (!framed) history.replaceState(null, "", hash);
}

const numberOf = (id) => data("index").queries.findIndex((query) => whole(query.id) === id);

function runOf(params) {
  const number = Number.parseInt(params.run, 10);
  return number >= 0 && number < data("index").runs.length ? number : 0;
}
