// Sorts and searches tables. Without this script they are complete, in their original order.
"use strict";

// Reads "1,234", "12 %", "< 0.001" or "−0.5" as a number; NaN for other text.
function numberIn(text) {
  const plain = text.replace(/[,\s%<×]/g, "").replace("−", "-").replace("∞", "Infinity");
  return plain === "" ? NaN : Number(plain);
}

function compare(a, b, descending) {
  if (typeof a === "number") {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return (descending ? b - a : a - b) || 0;
  }
  return descending ? b.localeCompare(a) : a.localeCompare(b);
}

function sortBy(table, head, column) {
  const numeric = head.classList.contains("n");
  const sorted = head.getAttribute("aria-sort");
  const descending = sorted ? sorted === "ascending" : numeric;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => {
    const text = row.cells[column].textContent.trim();
    return { row, value: numeric ? numberIn(text) : text };
  });
  rows.sort((a, b) => compare(a.value, b.value, descending));
  body.append(...rows.map(({ row }) => row));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function makeSortable(table) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, head, column));
    head.append(button);
  });
}

// Shows the rows that contain every word of the query.
function makeSearchable(form) {
  const input = form.querySelector("input");
  const status = form.querySelector("output");
  const rows = Array.from(document.getElementById(form.dataset.table).tBodies[0].rows);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const search = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
      shown += row.hidden ? 0 : 1;
    });
    status.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("input", search);
  search();
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("form.search").forEach(makeSearchable);
