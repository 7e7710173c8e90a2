"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach(h => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = row => numeric ? Number(row.cells[column].dataset.value) : row.cells[column].textContent.trim();
      const less = (a, b) => numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
      body.append(...[...body.rows].sort((a, b) => sign * less(key(a), key(b))));
    });
  });
}
