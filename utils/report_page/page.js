"use strict";

const element = (id) => document.getElementById(id);
const viewer = element("viewer");
const stage = element("stage");
const crops = element("crops");
const body = document.querySelector("tbody");
const bothEndsFirst = [...body.rows];
const headings = [...document.querySelectorAll("thead th")];
const root = document.documentElement;

// The page is written in English; the texts of the other language lie in it by key.
const english = new Map([...document.querySelectorAll("[data-text]")].map((each) => [each, each.textContent]));
const chinese = JSON.parse(element("chinese").textContent);

// x, y: the upper left corner of the magnified region, in fractions of the image; its sides are 1 / zoom.
const view = { row: bothEndsFirst[0], left: 0, right: element("left").length - 1, divider: 50, zoom: 4, x: 0.375, y: 0.375 };

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function draw() {
  const pictures = [...view.row.querySelectorAll("img")];
  const [width, height] = view.row.dataset.size.split("×");
  view.x = clamp(view.x, 0, 1 - 1 / view.zoom);
  view.y = clamp(view.y, 0, 1 - 1 / view.zoom);
  for (const [name, value] of Object.entries({ width, height, zoom: view.zoom, x: view.x, y: view.y })) {
    viewer.style.setProperty(`--$${name}`.replace("$", ""), value);
  }
  viewer.style.setProperty("--divider", `${view.divider}%`);
}
