// What is shown is built of elements and text: no string of the data ever becomes markup.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else if (name === "w") node.style.setProperty("--w", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return node;
}

function put(node, children) {
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

const el = (name, attributes, ...children) => put(set(document.createElement(name), attributes), children);
const svg = (name, attributes, ...children) => put(set(document.createElementNS(SVG, name), attributes), children);

function fill(node, ...children) {
  node.replaceChildren();
  return put(node, children);
}

// Each part of the data is read when it is first looked at.
const parts = new Map();
function data(name) {
  if (!parts.has(name)) parts.set(name, JSON.parse(byId("data-" + name).textContent));
  return parts.get(name);
}

// What is far from the window is filled when it comes near.
const waiting = new Map();
const near = new IntersectionObserver((seen) => {
  for (const one of seen) if (one.isIntersecting) fillNow(one.target);
}, { rootMargin: "800px" });

function fillNow(node) {
  const make = waiting.get(node);
  if (!make) return;
  near.unobserve(node);
  waiting.delete(node);
  make();
}

function later(node, make) {
  waiting.set(node, make);
  near.observe(node);
  return node;
}

function forgetWaiting() {
  for (const node of waiting.keys()) near.unobserve(node);
  waiting.clear();
}

addEventListener("beforeprint", () => [...waiting.keys()].forEach(fillNow));

function choice(label, options, value, change) {
  const select = el("select", { on: { change: () => change(select.value) } },
    options.map(([key, text]) => el("option", { value: key, selected: String(key) === String(value) }, text)));
  return el("label", null, label, select);
}
