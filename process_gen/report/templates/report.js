"use strict";
// Filters, sorts, folds and enlarges; without scripts the page simply shows everything.
const form = document.querySelector(".filter");
const holder = document.querySelector(".paintings");
const paintings = [...document.querySelectorAll("article")];
const count = form.querySelector("output");
const nothing = document.querySelector(".nothing");
const said = new Map();  // article -> its words, read when first searched

function words(article, deep) {
  const key = deep ? ".head h3, .strip p" : ".head h3";
  if (!said.has(article)) said.set(article, {});
  const kept = said.get(article);
  kept[key] ??= [...article.querySelectorAll(key)].map((e) => e.textContent).join(" ").toLowerCase();
  return kept[key];
}

// ---- filter and sort ----

const by = {  // what is compared, and whether large values come first
  order: [(a) => +a.dataset.order, false],
  tag: [(a) => a.dataset.tag, false],
  wrong: [(a) => +a.dataset.right, false],
  steps: [(a) => +a.dataset.most, true],
  nfe: [(a) => +a.dataset.nfe, true],
  seconds: [(a) => +a.dataset.seconds, true],
};
let sorted = "order";

function sort(name) {
  if (name === sorted) return;
  sorted = name;
  const [key, falling] = by[name];
  const keys = new Map(paintings.map((a) => [a, key(a)]));
  const place = (a) => +a.dataset.order;
  paintings.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    const order = x < y ? -1 : x > y ? 1 : 0;
    return (falling ? -order : order) || place(a) - place(b);
  });
  holder.append(...paintings);
}

function apply() {
  const wanted = form.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const facets = [...form.querySelectorAll("select")].filter((s) => s.name !== "sort" && s.value);
  let shown = 0;
  for (const painting of paintings) {
    const fits = facets.every((s) => painting.dataset[s.name].split("|").includes(s.value));
    const text = fits && wanted.length ? words(painting, form.deep.checked) : "";
    painting.hidden = !(fits && wanted.every((word) => text.includes(word)));
    shown += !painting.hidden;
  }
  sort(form.sort.value);
  count.textContent = `${shown} of ${paintings.length} shown`;
  nothing.hidden = shown > 0 || !paintings.length;
}

// ---- words ----

function fold(article, open) {
  article.classList.toggle("folded", !open);
  article.querySelector(".fold").setAttribute("aria-expanded", open);
}

function foldAll(open) {
  for (const painting of paintings) fold(painting, open);
}

// ---- one picture, enlarged ----

const view = document.querySelector(".view");
let row = [], at = 0;

function look(place) {
  at = (place + row.length) % row.length;
  const cell = row[at];
  view.querySelector(".bar-bottom").hidden = row.length < 2;
  view.querySelector(".stage").replaceChildren(cell.querySelector("img").cloneNode());
  view.querySelector(".place").textContent =
    `${cell.querySelector("h4").textContent} (${at + 1} of ${row.length})`;
  const texts = [...cell.querySelectorAll("p")].map((p) => p.cloneNode(true));
  view.querySelector(".said").replaceChildren(...texts);
}

holder.addEventListener("click", (event) => {
  const zoom = event.target.closest(".zoom"), folder = event.target.closest(".fold");
  if (zoom) {
    const cell = zoom.closest("li");
    row = [...cell.parentElement.children].filter((li) => li.querySelector("img"));
    look(row.indexOf(cell));
    view.showModal();
  } else if (folder) {
    const article = folder.closest("article");
    fold(article, article.classList.contains("folded"));
  }
});
view.querySelector(".before").addEventListener("click", () => look(at - 1));
view.querySelector(".after").addEventListener("click", () => look(at + 1));
view.querySelector(".close").addEventListener("click", () => view.close());
view.addEventListener("click", (event) => event.target === view && view.close());
view.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") look(at - 1);
  if (event.key === "ArrowRight") look(at + 1);
});

// ---- keys ----

function go(step) {
  const shown = paintings.filter((p) => !p.hidden);
  const here = shown.indexOf(document.activeElement.closest("article"));
  const next = here < 0 ? (step > 0 ? 0 : -1) : here + step;
  const target = shown.at(Math.max(here < 0 ? next : 0, Math.min(next, shown.length - 1)));
  if (target) {
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "start" });
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || view.open) return;
  if (event.target.matches("input[type=search], select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const article = document.activeElement.closest("article");
  if (event.key === "/") form.search.focus();
  else if (event.key === "j") go(1);
  else if (event.key === "k") go(-1);
  else if (event.key === "o" && article) fold(article, article.classList.contains("folded"));
  else return;
  event.preventDefault();
});

form.hidden = false;
for (const button of document.querySelectorAll(".fold")) button.hidden = false;
form.addEventListener("input", (event) => {
  if (event.target.name === "words") foldAll(event.target.checked);
  else apply();
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => { foldAll(true); apply(); }));
document.querySelector(".again").addEventListener("click", () => form.reset());
apply();
