"use strict";
// Tables that can be sorted: a button in each head; numbers begin with the largest, texts with A; what is missing is last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const missing = (value) => value === "" || value === "-";
  heads.forEach((head, column) => {
    const values = Array.from(body.rows, (row) => key(row, column)).filter((value) => !missing(value));
    const numbers = values.length > 0 && values.every((value) => !Number.isNaN(Number(value)));
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before === null ? numbers : before === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows);
      const last = rows.filter((row) => missing(key(row, column)));
      const order = rows.filter((row) => !missing(key(row, column))).sort((one, two) => {
        const [a, b] = [key(one, column), key(two, column)];
        return numbers ? Number(a) - Number(b) : a.localeCompare(b);
      });
      body.append(...(down ? order.reverse() : order), ...last);
    });
  });
}
