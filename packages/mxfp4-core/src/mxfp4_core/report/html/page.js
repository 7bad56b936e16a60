"use strict";
(() => {
  const $ = (query, from = document) => from.querySelector(query);
  const $$ = (query, from = document) => [...from.querySelectorAll(query)];
  const table = $("#tensors");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const nameOf = (row) => row.cells[0].textContent;
  rows.forEach((row) => {  // names may break after their dots
    const parts = row.cells[0].firstChild.data.split(/(?<=\.)/);
    row.cells[0].firstChild.replaceWith(...parts.flatMap((part) => [part, document.createElement("wbr")]));
  });

  // Choice of the rule.
  const shown = () => Number(document.body.dataset.v);
  $$("#chooser input").forEach((input) => {
    input.addEventListener("change", () => { document.body.dataset.v = input.value; hide(); });
    if (input.checked) document.body.dataset.v = input.value;  // a reload keeps the choice of the form
  });

  // Sorting: a text such as "1.50 MiB", "0.96 %" or "exact" becomes a number.
  const units = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };
  const value = (cell) => {
    const text = cell ? cell.textContent.trim() : "";
    if (text === "exact") return Infinity;
    if (text.startsWith("<")) return 1e-9;
    if (text.includes("\u00d7")) return text.split("\u00d7").reduce((product, size) => product * Number(size), 1);
    const match = /^(-?[\d.]+(?:e[-+]?\d+)?)(?:\s(\S+))?/.exec(text);
    return match ? Number(match[1]) * (units[match[2]] || 1) : text;
  };
  const sortBy = (column) => {
    const head = heads[column];
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const words = new Intl.Collator("en", { numeric: true });
    const keys = new Map(rows.map((row) => [row, column === 0 ? row.cells[column].textContent : value(row.cells[column])]));
    const compare = (a, b) => {
      const x = keys.get(a), y = keys.get(b);
      const missing = (x === "") - (y === "");
      if (missing) return missing;  // empty cells stay at the end
      const order = typeof x === "number" && typeof y === "number" ? x - y : words.compare(String(x), String(y));
      return up ? order : -order;
    };
    body.append(...[...rows].sort(compare));
  };
  heads.forEach((head, column) => $("button", head).addEventListener("click", () => sortBy(column)));

  // Filter.
  let kind = null;
  const filter = () => {
    const wanted = $("#filter").value.trim().toLowerCase();
    const stored = $("#stored").value;
    let count = 0;
    for (const row of rows) {
      row.hidden = !(nameOf(row).toLowerCase().includes(wanted)
        && (!stored || ("k" in row.dataset) === (stored === "quantised")) && (kind === null || row.dataset.k === kind));
      count += !row.hidden;
    }
    $("#count").textContent = count === rows.length ? `${count} rows` : `${count} of ${rows.length} rows`;
  };
  $("#filter").addEventListener("input", filter);
  $("#stored").addEventListener("change", filter);

  // One kind alone.
  const buttons = $$(".legend button");
  buttons.forEach((button) => button.addEventListener("click", () => {
    kind = kind === button.dataset.k ? null : button.dataset.k;
    buttons.forEach((each) => each.setAttribute("aria-pressed", String(each.dataset.k === kind)));
    $$(".area path[data-k]").forEach((path) => path.classList.toggle("dim", kind !== null && path.dataset.k !== kind));
    filter();
  }));
  filter();

  // Reading single dots, with a pointer or the arrow keys. Places come from the drawing, words from the table.
  const tip = $("#tip");
  let halo = null;
  const hide = () => {
    tip.hidden = true;
    if (halo) halo.remove();
    halo = null;
    $$("tr.hit").forEach((row) => row.classList.remove("hit"));
  };
  const dotsOf = (area) => $$(`.v${shown()} path.k`, area).filter((path) => !path.classList.contains("dim"))
    .flatMap((path) => {
      const own = path.dataset.rows ? path.dataset.rows.split(" ").map((number) => rows[number])
        : rows.filter((row) => row.dataset.k === path.dataset.k);
      let x = 0, y = 0;  // the path goes from dot to dot in steps
      return [...path.getAttribute("d").matchAll(/m(-?\d+) ?(-?\d+)z/g)]
        .map((match, place) => ({ x: x += Number(match[1]), y: y += Number(match[2]), row: own[place] }));
    }).filter((dot) => dot.row);
  const say = (row) => {
    const cell = (head) => {
      const found = heads.map((each, column) => [each, row.cells[column]])
        .filter(([each, data]) => each.textContent.startsWith(head) && data && data.textContent.trim()
          && getComputedStyle(data).display !== "none");
      return found.map(([each, data]) => `${each.textContent}: ${data.textContent}`).join("\n");
    };
    return [nameOf(row), ...["SQNR", "Flushed", "Clipped", "After", "Experts"].map(cell)].filter(Boolean).join("\n");
  };
  const show = (area, dot) => {
    hide();
    const svg = $(`.v${shown()}`, area), box = area.getBoundingClientRect();
    halo = $(".grid", svg).cloneNode();
    halo.setAttribute("class", "halo");
    halo.setAttribute("d", `M${dot.x} ${dot.y}z`);
    svg.insertBefore(halo, svg.children[3] || null);
    tip.textContent = say(dot.row);
    tip.hidden = false;
    const x = box.left + dot.x / 1000 * box.width, y = box.top + dot.y / 1000 * box.height;
    tip.style.left = `${Math.max(6, Math.min(x + 14, innerWidth - tip.offsetWidth - 6))}px`;
    tip.style.top = `${y + 16 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 14 : y + 16}px`;
    dot.row.classList.add("hit");
  };
  const nearest = (area, event, reach) => {
    const box = area.getBoundingClientRect();
    let best = null, least = reach * reach;
    for (const dot of dotsOf(area)) {
      const dx = box.left + dot.x / 1000 * box.width - event.clientX, dy = box.top + dot.y / 1000 * box.height - event.clientY;
      if (dx * dx + dy * dy < least) { least = dx * dx + dy * dy; best = dot; }
    }
    return best;
  };
  const reveal = (row) => {
    if (row.hidden) { $("#filter").value = ""; $("#stored").value = ""; filter(); }
    location.hash = row.id;
  };
  $$(".area").filter((area) => $("path.k", area)).forEach((area) => {
    let place = -1;
    area.tabIndex = 0;
    area.setAttribute("role", "group");
    area.setAttribute("aria-label", "Plot; arrow keys go from dot to dot, Enter goes to the table");
    area.addEventListener("pointermove", (event) => { const dot = nearest(area, event, 24); dot ? show(area, dot) : hide(); });
    area.addEventListener("pointerleave", hide);
    area.addEventListener("click", (event) => { const dot = nearest(area, event, 24); if (dot) show(area, dot); });
    area.addEventListener("dblclick", (event) => { const dot = nearest(area, event, 24); if (dot) reveal(dot.row); });
    area.addEventListener("blur", () => { place = -1; hide(); });
    area.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity };
      const dots = dotsOf(area).sort((a, b) => a.x - b.x || a.y - b.y);
      if (event.key === "Escape") { place = -1; hide(); }
      if (event.key === "Enter" && dots[place]) reveal(dots[place].row);
      if (!(event.key in steps) || !dots.length) return;
      event.preventDefault();
      place = Math.max(0, Math.min(dots.length - 1, place + steps[event.key]));
      show(area, dots[place]);
    });
  });
})();
