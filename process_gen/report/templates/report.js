"use strict";
// Filters the paintings; without scripts the page simply shows them all.
const form = document.querySelector(".filter");
const paintings = [...document.querySelectorAll("article")];
const fields = [...form.querySelectorAll("select")];
const search = form.querySelector("input");
const count = form.querySelector("output");

function apply() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const painting of paintings) {
    const facets = fields.every(
      (field) => !field.value || painting.dataset[field.name].split("|").includes(field.value));
    const prompt = words.length ? painting.querySelector("h3").textContent.toLowerCase() : "";
    painting.hidden = !(facets && words.every((word) => prompt.includes(word)));
    shown += !painting.hidden;
  }
  count.textContent = `${shown} of ${paintings.length} shown`;
}

form.hidden = false;
form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
apply();
