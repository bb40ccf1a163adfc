"use strict";
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const one = (what) => document.querySelector(what);

  // Tables are sorted by their heads; groups that are alike stay together.
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.v ?? cell.textContent.trim();
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text.toLowerCase();
  };
  const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        all("th", table).forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const sign = falling ? -1 : 1;
        const bodies = [...table.tBodies];
        const parts = bodies.length > 1 ? bodies : [...bodies[0].rows];
        const row = (part) => (bodies.length > 1 ? part.rows[0] : part);
        parts.sort((a, b) => sign * compare(value(row(a), column), value(row(b), column)));
        const home = bodies.length > 1 ? table : bodies[0];
        parts.forEach((part) => home.append(part));
      });
    });
  }

  // Folded groups.
  const openFold = (body, open) => {
    all("tr.more", body).forEach((row) => { row.hidden = !open; if (!open) row.nextElementSibling.hidden = true; });
    all("button.unfold", body).forEach((b) => b.setAttribute("aria-expanded", open));
  };
  for (const button of all("button.unfold")) {
    button.addEventListener("click", () =>
      openFold(button.closest("tbody"), button.getAttribute("aria-expanded") !== "true"));
  }

  // A chosen group lights up in the drawing and shows its chain.
  const boxes = all("#graph .box");
  const light = (group) => boxes.forEach((box) =>
    box.classList.toggle("lit", group !== null && box.dataset.g.split(" ").includes(group)));
  for (const button of all("button.pick")) {
    button.addEventListener("click", () => {
      const row = button.closest("tr"), open = button.getAttribute("aria-expanded") !== "true";
      all("button.pick").forEach((b) => b.setAttribute("aria-expanded", false));
      all("tr.detail").forEach((r) => { r.hidden = true; });
      all("tr.lit").forEach((r) => r.classList.remove("lit"));
      button.setAttribute("aria-expanded", open);
      row.nextElementSibling.hidden = !open;
      row.classList.toggle("lit", open);
      light(open ? button.dataset.g : null);
      const first = one("#graph .lit");
      if (first) {
        const [x, y] = first.getAttribute("transform").match(/-?\d+/g).map(Number);
        const [, , w, h] = one("#graph").getAttribute("viewBox").split(" ").map(Number);
        one("#graph").setAttribute("viewBox", `${x + 75 - w / 2} ${y - h / 4} ${w} ${h}`);
      }
    });
  }

  // Search.
  const search = one("#search"), found = one("#found");
  search?.addEventListener("input", () => {
    const text = search.value.trim().toLowerCase();
    let count = 0;
    for (const body of all("#grouptable tbody")) {
      const rows = all("tr.group", body);
      const hits = rows.filter((row) => row.dataset.find.toLowerCase().includes(text));
      body.hidden = hits.length === 0;
      count += hits.length;
      openFold(body, text !== "" && hits.some((row) => row !== rows[0]));
    }
    found.textContent = text === "" ? "" : `${count} found`;
  });

  // The drawing is moved and zoomed.
  const graph = one("#graph");
  if (graph) {
    const box = () => graph.getAttribute("viewBox").split(" ").map(Number);
    const set = (b) => graph.setAttribute("viewBox", b.map((n) => n.toFixed(1)).join(" "));
    const zoom = (by) => {
      if (!by) { graph.setAttribute("viewBox", graph.dataset.home); return; }
      const [x, y, w, h] = box();
      set([x + (w - w / by) / 2, y + (h - h / by) / 2, w / by, h / by]);
    };
    all("[data-zoom]").forEach((b) => b.addEventListener("click", () => zoom(Number(b.dataset.zoom))));
    graph.addEventListener("wheel", (e) => { if (e.ctrlKey) { e.preventDefault(); zoom(e.deltaY < 0 ? 1.15 : 0.87); } }, { passive: false });
    graph.addEventListener("keydown", (e) => {
      const [x, y, w, h] = box(), step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (step) { e.preventDefault(); set([x + step[0] * w / 8, y + step[1] * h / 8, w, h]); }
      if (e.key === "+") zoom(1.25);
      if (e.key === "-") zoom(0.8);
    });
    let last = null;
    graph.addEventListener("pointerdown", (e) => { last = [e.clientX, e.clientY]; });
    window.addEventListener("pointerup", () => { last = null; });
    graph.addEventListener("pointermove", (e) => {
      if (!last) return;
      const [x, y, w, h] = box(), size = graph.getBoundingClientRect(), scale = Math.max(w / size.width, h / size.height);
      set([x - (e.clientX - last[0]) * scale, y - (e.clientY - last[1]) * scale, w, h]);
      last = [e.clientX, e.clientY];
    });
  }

  // Widths that were changed become a plan.
  const download = one("#download");
  download?.addEventListener("click", () => {
    const plan = JSON.parse(one("#plan").textContent), orders = JSON.parse(one("#orders").textContent);
    for (const input of all("input.width")) {
      const order = orders[input.dataset.g], width = Math.min(Math.max(1, Math.round(Number(input.value))), order.size);
      const kept = order.order.slice(0, width).sort((a, b) => a - b);
      plan.choices = plan.choices.filter((c) => c.name !== order.name);
      if (width < order.size) plan.choices.push({ name: order.name, size: order.size, kept, members: order.members, within: "" });
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(plan, null, 1)], { type: "application/json" }));
    link.download = "plan.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
})();
