// Sorts, filters and pages the ranking, whose rows are in the page as JSON. Names are only ever set as text.
"use strict";
(() => {
  const PAGE = 100;
  const { columns, rows } = JSON.parse(document.getElementById("ranking-rows").textContent);
  const body = document.querySelector("#ranking tbody");
  const filter = document.getElementById("filter");
  const said = document.getElementById("shown");
  const [previous, next] = ["previous", "next"].map((id) => document.getElementById(id));
  const heads = [...document.querySelectorAll("#ranking th[data-column]")];
  const searched = ["target", "host", "kernel_release", "labels"].map((name) => columns.indexOf(name));
  const texts = rows.map((row) => searched.map((at) => row[at] ?? "").join("\n").toLowerCase());
  let order = rows.map((_, at) => at);
  let found = order;
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

  function marked(sign, said) {
    const mark = document.createElement("span");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", said);
    mark.textContent = sign;
    return mark;
  }

  function cellOf(row, head) {
    const cell = document.createElement("td");
    const value = row[columns.indexOf(head.dataset.column)];
    if (head.classList.contains("n")) cell.className = "n";
    if (head.dataset.column === "target") cell.className = "name";
    if (head.dataset.column === "kernel_release") cell.className = "release";
    if (value === null) return cell;
    if (head.dataset.column.endsWith("_bytes")) {
      const bound = row[columns.indexOf("bounded")] && BOUNDS[head.dataset.column];
      if (bound) cell.append(marked(...bound), " ");
      cell.append(humanBytes(value));
      cell.title = `${value.toLocaleString("en")} bytes`;
    } else {
      cell.textContent = typeof value === "number" ? value.toLocaleString("en") : value;
    }
    return cell;
  }

  function show() {
    const from = page * PAGE;
    const part = found.slice(from, from + PAGE);
    body.replaceChildren(
      ...part.map((at) => {
        const line = document.createElement("tr");
        line.append(...heads.map((head) => cellOf(rows[at], head)));
        return line;
      }),
    );
    const range = part.length ? `${from + 1} to ${from + part.length} of ` : "";
    said.textContent = `${range}${found.length.toLocaleString("en")} hosts`;
    previous.disabled = page === 0;
    next.disabled = from + PAGE >= found.length;
  }

  function select() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = order.filter((at) => words.every((word) => texts[at].includes(word)));
    page = 0;
    show();
  }

  function sortBy(head) {
    const at = columns.indexOf(head.dataset.column);
    const wasAscending = head.getAttribute("aria-sort") === "ascending";
    const wasDescending = head.getAttribute("aria-sort") === "descending";
    // Numbers are looked at from the largest, but the rank from 1.
    const first = head.classList.contains("n") && head.dataset.column !== "rank" ? -1 : 1;
    const sign = wasAscending ? -1 : wasDescending ? 1 : first;
    const known = (value) => value !== null && value !== "";
    order.sort((a, b) => {
      const [x, y] = [rows[a][at], rows[b][at]];
      if (!known(x) || !known(y)) return known(y) - known(x) || a - b;
      return (typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0) * sign || a - b;
    });
    for (const other of heads) other.removeAttribute("aria-sort");
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

  // What is folded is printed, too.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of opened) fold.open = false;
  });
})();
