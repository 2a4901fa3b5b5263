// Sorts, filters and pages the ranking, whose rows are in the page as JSON. Names are inserted as text only.
"use strict";
(() => {
  const PAGE = 100;
  const { columns, rows } = JSON.parse(document.getElementById("ranking-rows").textContent);
  const body = document.querySelector("#ranking tbody");
  const filter = document.getElementById("filter");
  const status = document.getElementById("shown");
  const [previous, next] = ["previous", "next"].map((id) => document.getElementById(id));
  const heads = [...document.querySelectorAll("#ranking th[data-column]")];
  const filterColumns = ["target", "host", "kernel_release", "labels"].map((name) => columns.indexOf(name));
  const texts = rows.map((row) => filterColumns.map((index) => row[index] ?? "").join("\n").toLowerCase());
  let order = rows.map((_, index) => index);
  let matches = order;
  let page = 0;

  const BOUNDS = { lazy_bytes: ["≤", "at most"], wasted_bytes: ["≥", "at least"] };
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  function humanBytes(count) {
    let size = Math.abs(count);
    let unit = 0;
    for (; size >= 999.5; unit++) size /= 1024;
    const digits = unit === 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
    return `${count < 0 ? "-" : ""}${size.toFixed(digits)} ${UNITS[unit]}`;
  }

  function boundMark(sign, label) {
    const mark = document.createElement("span");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", label);
    mark.textContent = sign;
    return mark;
  }

  // A lower bound of 0 or less says nothing.
  function isUnknownWaste(row) {
    return row[columns.indexOf("lower_bound")] && row[columns.indexOf("wasted_bytes")] <= 0;
  }

  function cellOf(row, head) {
    const cell = document.createElement("td");
    const value = row[columns.indexOf(head.dataset.column)];
    if (head.classList.contains("n")) cell.className = "n";
    if (head.dataset.column === "target") cell.className = "name";
    if (head.dataset.column === "kernel_release") cell.className = "release";
    if (value === null) return cell;
    if (head.dataset.column.startsWith("wasted_") && isUnknownWaste(row)) {
      if (head.dataset.column === "wasted_bytes") cell.textContent = "none known";
      return cell;
    }
    if (head.dataset.column.endsWith("_bytes")) {
      const bound = row[columns.indexOf("lower_bound")] && BOUNDS[head.dataset.column];
      if (bound) cell.append(boundMark(...bound), " ");
      const error = head.dataset.column === "lazy_bytes" ? row[columns.indexOf("lazy_error_bytes")] : null;
      cell.append(humanBytes(value), error === null ? "" : ` ± ${humanBytes(error)}`);
      cell.title = `${value.toLocaleString("en")} bytes`;
    } else {
      cell.textContent = typeof value === "number" ? value.toLocaleString("en") : value;
    }
    return cell;
  }

  function show() {
    const from = page * PAGE;
    const part = matches.slice(from, from + PAGE);
    body.replaceChildren(
      ...part.map((index) => {
        const line = document.createElement("tr");
        line.append(...heads.map((head) => cellOf(rows[index], head)));
        return line;
      }),
    );
    const range = part.length ? `${from + 1} to ${from + part.length} of ` : "";
    status.textContent = `${range}${matches.length.toLocaleString("en")} hosts`;
    previous.disabled = page === 0;
    next.disabled = from + PAGE >= matches.length;
  }

  function select() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    matches = order.filter((index) => words.every((word) => texts[index].includes(word)));
    page = 0;
    show();
  }

  function sortBy(head) {
    const column = columns.indexOf(head.dataset.column);
    const wasAscending = head.getAttribute("aria-sort") === "ascending";
    const wasDescending = head.getAttribute("aria-sort") === "descending";
    // The first click sorts numbers from the largest, but the rank from 1.
    const firstSign = head.classList.contains("n") && head.dataset.column !== "rank" ? -1 : 1;
    const sign = wasAscending ? -1 : wasDescending ? 1 : firstSign;
    const hasValue = (value) => value !== null && value !== "";
    const isWaste = head.dataset.column.startsWith("wasted_");
    const sortValue = (row) => (isWaste && isUnknownWaste(row) ? 0 : row[column]);
    order.sort((a, b) => {
      const [x, y] = [rows[a], rows[b]].map(sortValue);
      if (!hasValue(x) || !hasValue(y)) return hasValue(y) - hasValue(x) || a - b;
      return (typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0) * sign || a - b;
    });
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    select();
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(head));
    head.replaceChildren(button);
  }
  heads[0].setAttribute("aria-sort", "ascending");
  filter.addEventListener("input", select);
  previous.addEventListener("click", () => { page -= 1; show(); });
  next.addEventListener("click", () => { page += 1; show(); });
  document.getElementById("tools").hidden = false;
  show();

  // Unfold all details for printing.
  let folds = [];
  addEventListener("beforeprint", () => {
    folds = [...document.querySelectorAll("details:not([open])")];
    for (const fold of folds) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of folds) fold.open = false;
  });
})();
