"use strict";
// Sorts tables, updates the threshold explorer, and opens folded sections before printing. The page works without it.

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => {
      const isDescending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
      const value = (row) => row.cells[index].dataset.value ?? row.cells[index].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b), isDescending));
      table.tBodies[0].append(...rows);
    });
  });
}

function compare(a, b, isDescending) {
  if (a === "" || b === "") return (a === "") - (b === "");  // undefined comes last in either order
  const numbers = [Number(a), Number(b)];
  const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
  return isDescending ? -order : order;
}

window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});

const explorer = document.getElementById("explorer");
const findings = JSON.parse(document.getElementById("explorer-data").textContent);
const field = (name) => explorer.querySelector(`[name="${name}"]`);
const show = (name, text) => { explorer.querySelector(`[data-show="${name}"]`).textContent = text; };
const percent = (part, whole) => (whole > 0 ? `${(100 * part / whole).toFixed(1)} %` : "undefined");

function choose(threshold) {
  const { thresholds } = findings[field("finding").value];
  field("threshold").value = thresholds.length - 1 - thresholds.indexOf(threshold);
  update();
}

function start() {
  const finding = findings[field("finding").value];
  field("threshold").max = Math.max(0, finding.thresholds.length - 1);
  field("prevalence").value = (100 * finding.positives / (finding.positives + finding.negatives)).toPrecision(3);
  for (const button of explorer.querySelectorAll(".marks button")) {
    button.disabled = !(button.value in finding.chosen);
  }
  if ("youden" in finding.chosen) choose(finding.chosen.youden);
  else { field("threshold").value = Math.floor(finding.thresholds.length / 2); update(); }
}

function update() {
  const finding = findings[field("finding").value];
  const { positives, negatives, thresholds } = finding;
  if (!thresholds.length) return;
  const index = thresholds.length - 1 - Number(field("threshold").value);  // the slider's right end is the highest
  const truePositives = finding.true_positives[index], falsePositives = finding.false_positives[index];
  const falseNegatives = positives - truePositives, trueNegatives = negatives - falsePositives;
  show("threshold", thresholds[index].toPrecision(4));
  field("threshold").setAttribute("aria-valuetext", thresholds[index].toPrecision(4));
  show("tp", truePositives.toLocaleString("en")); show("fp", falsePositives.toLocaleString("en"));
  show("fn", falseNegatives.toLocaleString("en")); show("tn", trueNegatives.toLocaleString("en"));
  show("called", (truePositives + falsePositives).toLocaleString("en"));
  show("called-negative", (falseNegatives + trueNegatives).toLocaleString("en"));
  show("positives", positives.toLocaleString("en")); show("negatives", negatives.toLocaleString("en"));
  show("sensitivity", percent(truePositives, positives));
  show("specificity", percent(trueNegatives, negatives));
  show("ppv", percent(truePositives, truePositives + falsePositives));
  show("npv", percent(trueNegatives, falseNegatives + trueNegatives));
  const prevalence = Number(field("prevalence").value) / 100;
  if (!(prevalence >= 0 && prevalence <= 1) || !positives || !negatives) {
    show("ppv-at", "undefined"); show("npv-at", "undefined");
    return;
  }
  const sensitivity = truePositives / positives, specificity = trueNegatives / negatives;
  const right = sensitivity * prevalence, wrong = (1 - specificity) * (1 - prevalence);
  const clear = specificity * (1 - prevalence), missed = (1 - sensitivity) * prevalence;
  show("ppv-at", percent(right, right + wrong));
  show("npv-at", percent(clear, clear + missed));
}

field("finding").addEventListener("change", start);
field("threshold").addEventListener("input", update);
field("prevalence").addEventListener("input", update);
for (const button of explorer.querySelectorAll(".marks button")) {
  button.addEventListener("click", () => choose(findings[field("finding").value].chosen[button.value]));
}
explorer.hidden = false;
start();
