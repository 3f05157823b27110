"use strict";
// Tables that can be sorted: a button in each head; numbers begin with the largest, texts with A.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  heads.forEach((head, column) => {
    const values = Array.from(body.rows, (row) => key(row, column));
    const numbers = values.every((value) => value !== "" && !Number.isNaN(Number(value)));
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before === null ? numbers : before === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = Array.from(body.rows).sort((one, two) => {
        const [a, b] = [key(one, column), key(two, column)];
        return numbers ? Number(a) - Number(b) : a.localeCompare(b);
      });
      body.append(...(down ? order.reverse() : order));
    });
  });
}
