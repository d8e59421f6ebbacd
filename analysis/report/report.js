// Sorts and searches tables. Without this script they are complete, in their original order.
"use strict";

const NUMBER = /[-−]?(?:∞|(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-−+]?\d+)?)/i;
const UNITS = { bytes: 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 };

// Reads the first number in "1,234", "12 %", "< 0.001", "−0.5 to 0.1" or "1.2 MB"; NaN without any.
function numberIn(text) {
  const found = NUMBER.exec(text);
  if (!found) return NaN;
  const plain = found[0].replace(/,/g, "").replace(/−/g, "-").replace("∞", "Infinity");
  const unit = text.slice(found.index + found[0].length).trim();
  return Number(plain) * (UNITS[unit] ?? 1);
}

function compare(a, b, descending) {
  if (typeof a === "number") {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return (descending ? b - a : a - b) || 0;
  }
  // Numbers inside of text count as numbers: neuron 9 comes before neuron 10.
  const order = a.localeCompare(b, "en", { numeric: true });
  return descending ? -order : order;
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

// The query is kept in the address (#q=…), so that a search can be linked to and gone back to.
function queryInAddress() {
  return new URLSearchParams(location.hash.slice(1)).get("q") ?? "";
}

function keepInAddress(query) {
  const hash = query ? `#${new URLSearchParams({ q: query })}` : "";
  if (hash !== location.hash) history.replaceState(null, "", hash || location.pathname);
}

// "neuron 166" and "UNIT:166" ask for the number in the row's name, other words for any text.
function conditions(query) {
  const words = query.toLowerCase().replace(/:(?=\d+(?:\s|$))/g, " neuron ").split(/\s+/);
  return words.filter(Boolean).map((word, index, all) => {
    const isNumber = /^\d+$/.test(word);
    if (isNumber && all[index - 1] === "neuron") return ({ name }) => name.includes(word);
    if (isNumber) return ({ words: own }) => own.includes(word);
    return ({ text }) => text.includes(word);
  });
}

// What a row is searched by: cells of text, not of figures. "neuron" is a word of every row.
function searchable(row, heads) {
  const cells = Array.from(row.cells).filter((_, index) => !heads[index].classList.contains("n"));
  const texts = cells.map((cell) => cell.textContent.toLowerCase());
  const split = (text) => text.split(/[\s·]+/);
  return { row, text: ["neuron", ...texts].join(" "), words: texts.flatMap(split), name: split(texts[0]) };
}

// Shows the rows that meet every condition of the query.
function makeSearchable(form) {
  const input = form.querySelector("input");
  const status = form.querySelector("output");
  const table = document.getElementById(form.dataset.table);
  const heads = table.tHead.rows[0].cells;
  const rows = Array.from(table.tBodies[0].rows, (row) => searchable(row, heads));
  const search = () => {
    const wanted = conditions(input.value);
    let shown = 0;
    for (const each of rows) {
      each.row.hidden = !wanted.every((holds) => holds(each));
      shown += each.row.hidden ? 0 : 1;
    }
    status.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  const readAddress = () => {
    input.value = queryInAddress();
    search();
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("input", () => {
    search();
    keepInAddress(input.value.trim());
  });
  window.addEventListener("hashchange", readAddress);
  readAddress();
}

// The search field of every page leads to the table of neurons.
function makeFinder(form) {
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const query = form.querySelector("input").value.trim();
    location.href = `${form.dataset.page}#${new URLSearchParams({ q: query })}`;
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("form.search").forEach(makeSearchable);
document.querySelectorAll("form.find").forEach(makeFinder);
