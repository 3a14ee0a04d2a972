"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Sorting and filtering: the cells carry their keys, empty ones stay last.
  const table = $("#ranked");
  if (table) {
    const body = table.tBodies[0];
    all("th button", table).forEach((button) => {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const column = [...head.parentNode.children].indexOf(head);
        const down = head.getAttribute("aria-sort") === "ascending";
        all("th", table).forEach((th) => th.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sign = down ? -1 : 1;
        const key = (row) => row.cells[column].dataset.v;
        const compare = (one, other) => {
          const a = key(one), b = key(other);
          if (a === "" || b === "") return (a === "") - (b === "");
          const x = Number(a), y = Number(b);
          const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
          return sign * order;
        };
        body.append(...[...body.rows].sort(compare));
      });
    });
    const filter = $("#filter");
    if (filter) filter.addEventListener("input", () => {
      const wanted = filter.value.trim().toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }

  // The 3-D view: balls, sticks and the cell on a canvas, turned by the pointer or the arrow keys.
  const canvas = $("#view");
  if (!canvas || !data.scenes.length) return;
  const pen = canvas.getContext("2d");
  const edges = [];
  for (let i = 0; i < 8; i++)
    for (const bit of [1, 2, 4]) if (!(i & bit)) edges.push([i, i | bit]);
  const show = { labels: false, bonds: true, cell: true };
  const identity = () => [1, 0, 0, 0, 1, 0, 0, 0, 1];
  let scene = null, turn = identity(), zoom = 1, reach = 1, pending = false;

  const multiply = (a, b) => {
    const c = [];
    for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++)
      c.push(a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j]);
    return c;
  };
  const turnBy = (x, y) => {
    const [cx, sx, cy, sy] = [Math.cos(x), Math.sin(x), Math.cos(y), Math.sin(y)];
    turn = multiply(multiply([1, 0, 0, 0, cx, -sx, 0, sx, cx], [cy, 0, sy, 0, 1, 0, -sy, 0, cy]), turn);
    draw();
  };
  const vectors = (flat) => {
    const found = [];
    for (let i = 0; i < flat.length; i += 3) found.push([flat[i] / 100, flat[i + 1] / 100, flat[i + 2] / 100]);
    return found;
  };
  const rotate = (p) => [0, 3, 6].map((k) => turn[k] * p[0] + turn[k + 1] * p[1] + turn[k + 2] * p[2]);
  const mix = (one, other, share) => {
    const part = (text, k) => parseInt(text.slice(k, k + 2), 16);
    return "#" + [1, 3, 5].map((k) => Math.round(part(one, k) + (part(other, k) - part(one, k)) * share)
      .toString(16).padStart(2, "0")).join("");
  };
  const hex = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const draw = () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => { pending = false; paint(); });
  };
  const paint = () => {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!scene) return;
    const surface = hex("--surface"), ink = hex("--ink"), dim = hex("--dim");
    const scale = zoom * 0.46 * Math.min(width, height) / reach;
    const spots = scene.points.map(rotate), corners = scene.corners.map(rotate);
    const flat = (p) => [width / 2 + p[0] * scale, height / 2 - p[1] * scale];
    const fog = (z) => Math.max(0, Math.min(0.55, 0.28 - 0.28 * z / reach));
    const shapes = [];
    const line = (from, to, colour, thick, z) => shapes.push([z, () => {
      const [x, y] = flat(from), [u, v] = flat(to);
      pen.strokeStyle = mix(colour, surface, fog(z)); pen.lineWidth = thick; pen.lineCap = "round";
      pen.beginPath(); pen.moveTo(x, y); pen.lineTo(u, v); pen.stroke();
    }]);
    const between = (p, q, t) => p.map((x, k) => x + (q[k] - x) * t);
    if (show.cell) for (const [i, j] of edges) for (let k = 0; k < 8; k++) {
      const from = between(corners[i], corners[j], k / 8), to = between(corners[i], corners[j], (k + 1) / 8);
      line(from, to, dim, 1.2, (from[2] + to[2]) / 2);
    }
    if (show.bonds) for (let k = 0; k < scene.bonds.length; k += 2) {
      const pair = [scene.bonds[k], scene.bonds[k + 1]];
      const middle = between(spots[pair[0]], spots[pair[1]], 0.5);
      for (const atom of pair) {
        const element = data.elements[scene.species[atom]];
        const colour = mix(element.colour, "#000000", 0.15);
        // From within the surface: a bond to the reader must not start at the middle.
        const length = 2 * Math.hypot(...middle.map((x, n) => x - spots[atom][n]));
        const start = between(spots[atom], middle, Math.min(0.9, 1.7 * element.radius / length));
        line(start, middle, colour, Math.max(1.5, 0.17 * scale), (spots[atom][2] + middle[2]) / 2 - 0.05);
      }
    }
    spots.forEach((spot, k) => shapes.push([spot[2], () => {
      const element = data.elements[scene.species[k]];
      const [x, y] = flat(spot), r = element.radius * scale, far = fog(spot[2]);
      const ball = pen.createRadialGradient(x - 0.35 * r, y - 0.4 * r, 0.05 * r, x, y, r);
      ball.addColorStop(0, mix(mix(element.colour, "#ffffff", 0.6), surface, far));
      ball.addColorStop(0.45, mix(element.colour, surface, far));
      ball.addColorStop(1, mix(mix(element.colour, "#000000", 0.48), surface, far));
      pen.fillStyle = ball;
      pen.beginPath(); pen.arc(x, y, r, 0, 7); pen.fill();
      if (show.labels) {
        pen.font = `600 ${Math.max(10, Math.min(15, 0.75 * r))}px ${hex("--sans")}`;
        pen.textAlign = "center"; pen.textBaseline = "middle";
        pen.lineWidth = 3; pen.strokeStyle = surface; pen.strokeText(element.symbol, x, y);
        pen.fillStyle = ink; pen.fillText(element.symbol, x, y);
      }
    }]));
    shapes.sort((one, other) => one[0] - other[0]).forEach((shape) => shape[1]());
    if (show.cell) {
      pen.font = `italic 14px ${hex("--sans")}`; pen.textAlign = "center"; pen.textBaseline = "middle";
      ["a", "b", "c"].forEach((name, k) => {
        const [x, y] = flat(between(corners[0], corners[1 << k], 1 + 0.35 / Math.max(0.5, zoom) * 0.6));
        pen.lineWidth = 4; pen.strokeStyle = surface; pen.strokeText(name, x, y);
        pen.fillStyle = ink; pen.fillText(name, x, y);
      });
    }
  };

  const reset = () => { turn = identity(); zoom = 1; draw(); };
  const along = (k) => {
    // Look along a cell vector: it points to the reader, c (or b) upwards.
    const edge = (n) => scene.corners[1 << n].map((x, i) => x - scene.corners[0][i]);
    const unit = (v) => { const n = Math.hypot(...v) || 1; return v.map((x) => x / n); };
    const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
    const z = unit(edge(k)), up = edge(k === 2 ? 1 : 2);
    const x = unit(cross(up, z)), y = cross(z, x);
    turn = [...x, ...y, ...z];
    draw();
  };
  const select = (index) => {
    const found = data.scenes[index];
    if (!found) return;
    scene = { species: found.z, points: vectors(found.p), bonds: found.b, corners: vectors(found.c) };
    reach = Math.max(...scene.points.map((p, k) => Math.hypot(...p) + data.elements[scene.species[k]].radius),
      ...scene.corners.map((p) => Math.hypot(...p)));
    const card = document.getElementById(`card-${found.rank}`);
    const chosen = $("#chosen");
    chosen.replaceChildren(...[".title", ".facts", ".pattern"].map((part) => $(part, card)).filter(Boolean)
      .map((node) => node.cloneNode(true)));
    const legend = $("#legend");
    legend.replaceChildren(...[...new Set(scene.species)].map((z) => {
      const item = document.createElement("span"), dot = document.createElement("i");
      dot.style.background = data.elements[z].colour;
      item.append(dot, data.elements[z].symbol);
      return item;
    }));
    canvas.setAttribute("aria-label", `3-D view of rank ${found.rank}; arrow keys turn it`);
    all("tr.on").forEach((row) => row.classList.remove("on"));
    const row = $(`#ranked tr[data-rank="${found.rank}"]`);
    if (row) row.classList.add("on");
    current = index;
    reset();
  };
  let current = 0;
  const byRank = new Map(data.scenes.map((item, index) => [String(item.rank), index]));
  all("#ranked tbody tr").forEach((row) => row.addEventListener("click", (event) => {
    if (event.target.closest("a") || !byRank.has(row.dataset.rank)) return;
    select(byRank.get(row.dataset.rank));
  }));
  all(".card .turn").forEach((button) => button.addEventListener("click", () => {
    select(byRank.get(button.dataset.rank));
    $("#structure").scrollIntoView();
  }));

  const touches = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    touches.set(event.pointerId, [event.clientX, event.clientY]);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = touches.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    if (touches.size === 2) {
      const other = [...touches.entries()].find(([id]) => id !== event.pointerId)[1];
      const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
      zoomBy(far(now) / far(before));
    } else turnBy((now[1] - before[1]) / 120, (now[0] - before[0]) / 120);
    touches.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => touches.delete(event.pointerId));
  const zoomBy = (factor) => { zoom = Math.max(0.3, Math.min(8, zoom * factor)); draw(); };
  // A wheel over the view zooms only once it was clicked, so that the page scrolls as usual.
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 500));
  }, { passive: false });
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("keydown", (event) => {
    const step = 0.12;
    const moves = {
      ArrowLeft: () => turnBy(0, -step), ArrowRight: () => turnBy(0, step),
      ArrowUp: () => turnBy(-step, 0), ArrowDown: () => turnBy(step, 0),
      "+": () => zoomBy(1.15), "-": () => zoomBy(1 / 1.15), Home: reset,
    };
    if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
  });
  const actions = {
    in: () => zoomBy(1.25), out: () => zoomBy(0.8), reset,
    a: () => along(0), b: () => along(1), c: () => along(2),
    before: () => select((current + data.scenes.length - 1) % data.scenes.length),
    next: () => select((current + 1) % data.scenes.length),
  };
  all("[data-do]").forEach((button) => button.addEventListener("click", () => actions[button.dataset.do]()));
  all("[data-show]").forEach((button) => button.addEventListener("click", () => {
    const name = button.dataset.show;
    show[name] = !show[name];
    button.setAttribute("aria-pressed", show[name]);
    draw();
  }));
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  select(0);
})();
