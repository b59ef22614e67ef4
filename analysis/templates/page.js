"use strict";
(() => {
  const root = document.documentElement;
  const status = document.getElementById("status");
  const sorted = new Map(); // id of a table -> [column, order]; nothing is kept beyond the page
  const said = document.createElement("p");
  said.className = "unseen";
  said.setAttribute("aria-live", "polite");
  document.body.append(said);

  // --- tables ---------------------------------------------------------------------------------
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true });
  // What has no value comes last in either order.
  const rank = (key, numeric) => (key === "" || (numeric && typeof key !== "number") ? 1 : 0);

  function sort(table, column, order) {
    const body = table.tBodies[0];
    table.planned ??= [...body.rows];
    const keyed = table.planned.map((row) => [keyOf(row, column), row]);
    const numeric = keyed.some(([key]) => typeof key === "number");
    if (order !== "none") {
      const sign = order === "ascending" ? 1 : -1;
      keyed.sort(([a], [b]) => rank(a, numeric) - rank(b, numeric) || sign * compare(a, b));
    }
    body.append(...keyed.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      if (place === column && order !== "none") head.setAttribute("aria-sort", order);
      else head.removeAttribute("aria-sort");
    });
    sorted.set(table.id, [column, order]);
  }

  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (head.classList.contains("plain")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("name") ? "ascending" : "descending";
        const second = first === "ascending" ? "descending" : "ascending";
        const next = { [first]: second, [second]: "none" }[head.getAttribute("aria-sort")] ?? first;
        sort(table, column, next);
        const name = button.textContent;
        said.textContent = next === "none" ? "In the order of the plan" : `Sorted by ${name}, ${next}`;
      });
    });
    const [column, order] = sorted.get(table.id) ?? [];
    if (order && column < table.tHead.rows[0].cells.length) sort(table, column, order);
  }

  // --- light and dark -------------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.createElement("button");
  theme.type = "button";
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const label = () => { theme.textContent = isDark() ? "Light colours" : "Dark colours"; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  document.getElementById("bar").append(theme);
  label();

  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details")) one.open = true;
  });

  const enhance = () => document.querySelectorAll("table[data-sortable]").forEach(sortable);
  enhance();

  // --- while the sweep runs: only where it is served --------------------------------------------
  function say(text) {
    if (status.textContent !== text) status.textContent = text;
    status.hidden = text === "";
  }

  async function replace() {
    const answer = await fetch("/", { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const old = document.getElementById("content");
    const open = new Map([...old.querySelectorAll("details[id]")].map((d) => [d.id, d.open]));
    const boxes = new Map([...old.querySelectorAll(".scroll > table[id]")].map((t) => [t.id, t.parentElement.scrollLeft]));
    const focused = old.contains(document.activeElement) ? pathOf(old, document.activeElement) : null;
    const [x, y] = [scrollX, scrollY];
    const content = document.adoptNode(fresh.getElementById("content"));
    old.replaceWith(content);
    document.title = fresh.title;
    root.dataset.version = fresh.documentElement.dataset.version ?? "";
    if (fresh.documentElement.dataset.refresh) root.dataset.refresh = fresh.documentElement.dataset.refresh;
    else delete root.dataset.refresh;
    for (const [id, was] of open) {
      const one = document.getElementById(id);
      if (one) one.open = was;
    }
    enhance();
    for (const [id, left] of boxes) {
      const one = document.getElementById(id);
      if (one) one.parentElement.scrollLeft = left;
    }
    if (focused) follow(content, focused)?.focus({ preventScroll: true });
    scrollTo({ left: x, top: y, behavior: "instant" });
  }

  // The place of an element: from the nearest element above it that has an id, by position.
  function pathOf(top, element) {
    const steps = [];
    while (element !== top && !element.id) {
      steps.unshift([...element.parentElement.children].indexOf(element));
      element = element.parentElement;
    }
    return [element.id, steps];
  }
  const follow = (top, [id, steps]) =>
    steps.reduce((element, place) => element?.children[place], document.getElementById(id) ?? top);

  async function look() {
    let next = Number(root.dataset.refresh);
    if (!next) return;
    try {
      const answer = await fetch("/state", { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const state = await answer.json();
      if (state.version !== root.dataset.version) await replace();
      say(state.note);
    } catch {
      say("hdsweep watch does not answer; this page is as it was last.");
      next *= 4;
    }
    if (root.dataset.refresh) setTimeout(look, 1000 * next);
  }
  if (root.dataset.refresh) setTimeout(look, 1000 * Number(root.dataset.refresh));
})();
