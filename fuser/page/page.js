"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const regions = [...document.querySelectorAll(".region")];
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes, ...children) {
  const svg = ["svg", "g", "rect", "path", "text", "title"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// -- drawings, made when a region is opened ---------------------------------------------------------------------------

function describe(box, name) {
  const [, , , title, type, kind, role] = box;
  const what = { given: "comes from outside", taken: "what reads it", stop: "matching stopped here" }[kind];
  return [role, title, type, name, what].filter(Boolean).join(" · ");
}

function draw(caption, hint, drawn, room) {
  const form = data.forms[drawn.form];
  const [width, height] = form.size;
  // a drawing that is a little too wide is made smaller, not cut
  const scale = Math.min(1, Math.max(0.72, (room - 16) / width));
  const svg = make("svg", { width: width * scale, height: height * scale, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const [path, walked] of form.wires) {
    const kind = walked ? " walked" : "";
    const [x, y] = path.split(/[C ]/).slice(-2);
    svg.append(make("path", { class: "wire" + kind, d: path }));
    svg.append(make("path", { class: "tip" + kind, d: `M${x} ${+y + 3}l-4 -7h8z` }));
  }
  const half = data.height / 2;
  const boxes = form.boxes.map((box, number) => {
    const [x, y, w, title, type, kind, role] = box;
    const round = kind === "given" || kind === "taken" ? half : 6;
    const group = make("g", { class: "box " + kind },
      make("title", {}, describe(box, drawn.names[number])),
      make("rect", { x: x - w / 2, y: y - half, width: w, height: data.height, rx: round }),
      make("text", { x, y: y - 3 }, title),
      make("text", { x, y: y + 11, class: "type" }, type));
    if (role) group.append(make("text", { x: x - w / 2 + 4, y: y - half - 4, class: "role" }, role));
    if (kind === "stop") group.append(make("text", { x: x - w / 2 - 8, y: y - half - 4, class: "tag" }, "✕ stopped"));
    svg.append(group);
    return group;
  });
  const info = make("p", { class: "info", role: "status" }, "Choose a node, by pointer or with the arrow keys.");
  let chosen = -1;
  const choose = (number) => {
    boxes[chosen]?.classList.remove("chosen");
    chosen = (number + boxes.length) % boxes.length;
    boxes[chosen].classList.add("chosen");
    info.textContent = describe(form.boxes[chosen], drawn.names[chosen]);
    boxes[chosen].scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  boxes.forEach((group, number) => group.addEventListener("click", () => choose(number)));
  const canvas = make("div", { class: "canvas", tabindex: "0", role: "group", "aria-label":
    `${caption}: ${form.boxes.length} nodes; arrow keys go from node to node` }, svg);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(chosen < 0 ? (step > 0 ? 0 : -1) : chosen + step);
  });
  const title = make("figcaption", {}, caption + " ", make("span", {}, hint));
  const figure = make("figure", {}, title, canvas, info);
  // wide drawings open on what they are about
  requestAnimationFrame(() => {
    const at = form.boxes.find((box) => ["stop", "kernel", "softmax"].includes(box[5]));
    if (at) canvas.scrollLeft = at[0] * scale - canvas.clientWidth / 2;
    if (at && at[5] === "stop") canvas.scrollTop = at[1] * scale - canvas.clientHeight / 2;
  });
  return figure;
}

function walk(drawn) {
  const form = data.forms[drawn.form];
  const list = make("ol");
  form.boxes.forEach((box, number) => {
    if (["walked", "softmax", "stop"].includes(box[5]))
      list.append(make("li", { class: box[5] }, describe(box, drawn.names[number])));
  });
  return make("details", { class: "walk" }, make("summary", {}, "The walk in words"), list);
}

function open(region) {
  const place = region.querySelector(".drawings");
  const { before, after } = data.regions[place.dataset.region];
  if (place.childElementCount || !before) return;
  const kernel = data.forms[before.form].boxes.some((box) => box[5] === "kernel");
  const columns = after ? getComputedStyle(place).gridTemplateColumns.split(" ").length : 1;
  const room = place.clientWidth / columns - (columns > 1 ? 8 : 0) - 2;
  const hint = kernel ? "as the program has it" : "the way that the matcher walked is marked";
  place.append(draw("Before", hint, before, room));
  if (after) place.append(draw("After", "the kernel, and what is laid out for it", after, room));
  if (!kernel) place.append(walk(before));
}

for (const region of regions) region.addEventListener("toggle", () => region.open && open(region));

// -- filters and search -----------------------------------------------------------------------------------------------

const search = document.getElementById("search");
const filters = [...document.querySelectorAll(".filter")];
const texts = regions.map((region) => region.textContent.toLowerCase());

function sift() {
  const kinds = new Set(filters.filter((each) => each.ariaPressed === "true").map((each) => each.dataset.kind));
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  regions.forEach((region, number) => {
    region.hidden = !kinds.has(region.dataset.kind) || !words.every((word) => texts[number].includes(word));
    shown += !region.hidden;
    document.querySelector(`.model a[href="#${region.id}"]`)?.classList.toggle("off", region.hidden);
  });
  const all = shown === regions.length;
  document.getElementById("shown").textContent = all ? "" : `${shown} of ${regions.length} shown`;
}

filters.forEach((button) => button.addEventListener("click", () => {
  button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
  sift();
}));
search.addEventListener("input", sift);
document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input");
  if (event.key === "/" && !typing) { event.preventDefault(); search.focus(); }
  if (event.key === "Escape" && typing) { search.value = ""; sift(); search.blur(); }
});

const all = document.getElementById("all");
all.addEventListener("click", () => {
  const opened = all.ariaPressed !== "true";
  all.ariaPressed = String(opened);
  all.textContent = opened ? "Close all" : "Open all";
  for (const region of regions) if (!region.hidden) region.open = opened;
});

// a mark of the model, or a link from elsewhere, opens what it points to
function arrive() {
  const region = /^#r\d+$/.test(location.hash) && document.querySelector(location.hash);
  if (!region) return;
  if (region.hidden) {
    search.value = "";
    filters.forEach((each) => { each.ariaPressed = "true"; });
    sift();
  }
  region.open = true;
  region.scrollIntoView();
  region.querySelector("summary").focus({ preventScroll: true });
}
window.addEventListener("hashchange", arrive);
document.querySelectorAll(".model a").forEach((link) => link.addEventListener("click", () => {
  if (link.getAttribute("href") === location.hash) arrive();
}));

// -- light and dark ---------------------------------------------------------------------------------------------------

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
// where pages may not remember, the toggle works all the same
const memory = { get() { try { return localStorage.getItem("theme"); } catch { return null; } },
                 set(theme) { try { localStorage.setItem("theme", theme); } catch { /* none */ } } };
if (memory.get()) root.dataset.theme = memory.get();
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
  memory.set(root.dataset.theme);
});

if (regions.length === 1) regions[0].open = true;
arrive();
root.dataset.ready = "yes";
