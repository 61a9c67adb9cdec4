"use strict";

const element = (id) => document.getElementById(id);
const root = document.documentElement;
const viewer = element("viewer");
const stage = element("stage");
const frame = element("frame");
const crops = element("crops");
const panels = [...crops.querySelectorAll("figure")];
const body = document.querySelector("tbody");
const bothEndsFirst = [...body.rows];
const headings = [...document.querySelectorAll("thead th")];

// The page is written in English; it holds the Chinese texts by key.
const english = new Map([...document.querySelectorAll("[data-text]")].map((each) => [each, each.textContent]));
const chinese = JSON.parse(element("chinese").textContent);

// left, right: indices of the two images compared. x, y: the upper left corner of the magnified region, in fractions of
// the image; its sides are 1 / zoom of the image's.
const view = {
  row: bothEndsFirst[0],
  left: 0,
  right: Math.min(2, panels.length - 1),
  divider: 50,
  zoom: 4,
  x: 0.375,
  y: 0.375,
};

const MAX_ZOOM = 16;
// A step of an arrow key, in sides of the region.
const KEY_STEP = 0.1;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const ZOOM_KEYS = { "+": Math.SQRT2, "=": Math.SQRT2, "-": Math.SQRT1_2 };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Show the pair of `view`: its images, its name, its sizes. */
function drawPair() {
  const sources = [...view.row.querySelectorAll("img")].map((image) => image.src);
  const [width, height] = view.row.dataset.size.split("x");
  viewer.style.setProperty("--width", width);
  viewer.style.setProperty("--height", height);
  element("over").src = sources[view.left];
  element("under").src = sources[view.right];
  panels.forEach((panel, index) => (panel.querySelector("img").src = sources[index]));
  element("shown").textContent = view.row.querySelector("bdi").textContent;
  for (const name of ["size", "embedded"]) element(name).textContent = view.row.dataset[name].replace("x", "×");
  element("end").replaceChildren(...[...view.row.querySelectorAll(".badge")].map((badge) => badge.cloneNode(true)));
  for (const row of body.rows) row.toggleAttribute("aria-current", false);
  view.row.setAttribute("aria-current", "true");
}

/** Show which two images are compared, and where the divider and the magnified region are. */
function drawView() {
  const side = 1 / view.zoom;
  view.x = clamp(view.x, 0, 1 - side);
  view.y = clamp(view.y, 0, 1 - side);
  for (const name of ["zoom", "x", "y"]) viewer.style.setProperty(`--${name}`, view[name]);
  const box = { left: view.x, top: view.y, width: side, height: side };
  for (const [name, fraction] of Object.entries(box)) frame.style[name] = `${100 * fraction}%`;
  viewer.style.setProperty("--divider", `${view.divider}%`);
  frame.hidden = view.zoom === 1;
  element("divider").value = view.divider;
  element("zoom").value = Math.log2(view.zoom);
  element("factor").textContent = `${view.zoom.toFixed(1)}×`;
  for (const name of ["left", "right"]) {
    const select = element(name);
    select.selectedIndex = view[name];
    element(`${name}-tag`).textContent = select.options[view[name]].textContent;
  }
}

function draw() {
  drawPair();
  drawView();
}

/** Change the zoom around the region's centre. */
function zoomTo(zoom) {
  const centreX = view.x + 0.5 / view.zoom;
  const centreY = view.y + 0.5 / view.zoom;
  view.zoom = clamp(zoom, 1, MAX_ZOOM);
  view.x = centreX - 0.5 / view.zoom;
  view.y = centreY - 0.5 / view.zoom;
  drawView();
}

function moveBy(x, y) {
  view.x += x;
  view.y += y;
  drawView();
}

/** Call `moved(event, dx, dy)`, in pixels, while a pointer that went down on `target` moves; first with 0, 0. */
function onDrag(target, moved) {
  let last = null;
  target.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.stopPropagation();
    target.setPointerCapture(event.pointerId);
    last = event;
    moved(event, 0, 0);
  });
  target.addEventListener("pointermove", (event) => {
    if (!target.hasPointerCapture(event.pointerId)) return;
    const [dx, dy] = [event.clientX - last.clientX, event.clientY - last.clientY];
    last = event;
    moved(event, dx, dy);
  });
}

/** Choose the image on one side; if the other side shows it already, the two swap. */
function choose(side, index) {
  const other = side === "left" ? "right" : "left";
  if (view[other] === index) view[other] = view[side];
  view[side] = index;
  draw();
}

function show(row) {
  view.row = row;
  drawPair();
}

/** Sort the rows by a column, undefined values last; the next call reverses the order. */
function sortBy(heading) {
  const column = headings.indexOf(heading);
  const cell = (row) => row.cells[column];
  const byName = heading.classList.contains("name");
  // The first order: names from A, ranks from 1, metrics from the greatest.
  const usual = byName || heading.dataset.smallFirst !== undefined ? "ascending" : "descending";
  const opposite = usual === "ascending" ? "descending" : "ascending";
  const order = heading.getAttribute("aria-sort") === usual ? opposite : usual;
  const sign = order === "ascending" ? 1 : -1;
  const { compare } = new Intl.Collator(undefined, { numeric: true });
  const name = (row) => cell(row).querySelector("bdi").textContent;
  const value = (row) => Number(cell(row).dataset.value);
  const byValue = (a, b) => Number.isNaN(a) - Number.isNaN(b) || sign * ((a > b) - (a < b));
  arrange(
    [...bothEndsFirst].sort((a, b) => (byName ? sign * compare(name(a), name(b)) : byValue(value(a), value(b)))),
    heading,
    order,
  );
}

function arrange(rows, heading = null, order = null) {
  body.append(...rows);
  for (const each of headings) each.removeAttribute("aria-sort");
  heading?.setAttribute("aria-sort", order);
  element("ends").setAttribute("aria-pressed", String(heading === null));
}

function setLanguage(language) {
  root.lang = language;
  for (const [each, text] of english) each.textContent = language === "en" ? text : chinese[each.dataset.text];
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
  }
  draw();
}

onDrag(stage, (event) => {
  const box = stage.getBoundingClientRect();
  view.divider = clamp((100 * (event.clientX - box.left)) / box.width, 0, 100);
  drawView();
});
onDrag(frame, (_, dx, dy) => moveBy(dx / stage.clientWidth, dy / stage.clientHeight));
for (const panel of panels) {
  const pane = panel.querySelector(".window");
  onDrag(pane, (_, dx, dy) => moveBy(-dx / pane.clientWidth / view.zoom, -dy / pane.clientHeight / view.zoom));
}
crops.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in ARROWS) moveBy(...ARROWS[event.key].map((step) => (step * KEY_STEP) / view.zoom));
  else if (event.key in ZOOM_KEYS) zoomTo(view.zoom * ZOOM_KEYS[event.key]);
  else return;
  event.preventDefault();
});
element("zoom").addEventListener("input", (event) => zoomTo(2 ** event.target.value));
element("divider").addEventListener("input", (event) => {
  view.divider = Number(event.target.value);
  drawView();
});
for (const side of ["left", "right"]) {
  element(side).addEventListener("change", (event) => choose(side, event.target.selectedIndex));
}
element("previous").addEventListener("click", () => show(view.row.previousElementSibling ?? body.lastElementChild));
element("next").addEventListener("click", () => show(view.row.nextElementSibling ?? body.firstElementChild));
body.addEventListener("click", (event) => {
  if (!event.target.closest("button")) return;
  show(event.target.closest("tr"));
  viewer.scrollIntoView();
  viewer.focus({ preventScroll: true });
});
for (const heading of headings) heading.querySelector("button")?.addEventListener("click", () => sortBy(heading));
element("ends").addEventListener("click", () => arrange(bothEndsFirst));
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => setLanguage(button.dataset.language));
}

document.querySelector("table").style.setProperty("--numbers", headings.length - 2);
arrange(bothEndsFirst);
const preferred = navigator.languages.find((language) => /^(en|zh)\b/i.test(language)) ?? "en";
setLanguage(preferred.toLowerCase().startsWith("zh") ? "zh-CN" : "en");
