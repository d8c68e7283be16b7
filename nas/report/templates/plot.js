/* Plots: points and lines over two axes, as SVG that fits its container. */

const MARGIN = { left: 74, right: 18, top: 14, bottom: 46 };
const SHAPES = ["circle", "triangle", "square", "diamond", "down", "cross"];
const MAX_DISTANCE = 24; // pixels from the pointer to the point that it points at

/** Return the path of a marker with its middle at (x, y). */
function markerPath(shape, x, y, r) {
  const at = (points) => `M${points.map(([a, b]) => `${(x + a * r).toFixed(1)},${(y + b * r).toFixed(1)}`).join("L")}Z`;
  switch (shape) {
    case "triangle": return at([[0, -1.15], [1.05, 0.75], [-1.05, 0.75]]);
    case "down": return at([[0, 1.15], [1.05, -0.75], [-1.05, -0.75]]);
    case "square": return at([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]]);
    case "diamond": return at([[0, -1.3], [1.1, 0], [0, 1.3], [-1.1, 0]]);
    case "cross": {
      const a = 0.4;
      return at([[-a, -1.1], [a, -1.1], [a, -a], [1.1, -a], [1.1, a], [a, a], [a, 1.1], [-a, 1.1],
        [-a, a], [-1.1, a], [-1.1, -a], [-a, -a]]);
    }
    case "star":
      return at(Array.from({ length: 10 }, (_, corner) => {
        const length = corner % 2 ? 0.72 : 1.75, angle = (corner * Math.PI) / 5;
        return [length * Math.sin(angle), -length * Math.cos(angle)];
      }));
    default: {
      const left = (x - r).toFixed(1), d = (2 * r).toFixed(1);
      return `M${left},${y.toFixed(1)}a${r},${r} 0 1 0 ${d},0a${r},${r} 0 1 0 -${d},0Z`;
    }
  }
}

const KIND_SHAPES = { trained: "star", published: "diamond", float32: "cross", int8: "cross", cascade: "down", unshown: "down" };
const OPEN_KINDS = ["published", "int8", "unshown"];
const shapeOf = (space) => SHAPES[(space ?? 0) % SHAPES.length];
const colourOf = (space) => (space === null || space === undefined ? "var(--muted)" : `var(--space-${space % 6})`);
const DASHES = { solid: null, dashed: "6 4", dotted: "2 3" };

/** Return round values between two ends: about `count` of them, and on a log axis 1, 2 and 5. */
function ticks(low, high, count, isLog) {
  if (isLog && high / low > 4) {
    const values = [];
    const steps = high / low > 300 ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const step of steps) values.push(step * 10 ** power);
    }
    return values.filter((value) => value >= low && value <= high);
  }
  const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
  const step = size * [1, 2, 5, 10].find((each) => each * size >= raw);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) =>
    parseFloat(((first + i) * step).toPrecision(12)));
}

/** Return a scale from values to pixels, with `low`, `high` and `isLog`. */
function scaleOf(values, start, stop, axis) {
  let low = axis.min ?? Math.min(...values), high = axis.max ?? Math.max(...values);
  if (!(low < high)) [low, high] = low > 0 ? [low * 0.9, low * 1.1] : [low - 1, low + 1];
  const isLog = axis.log === true || (axis.log === "auto" && low > 0 && high / low > 8);
  const f = isLog ? Math.log : (value) => value;
  const room = 0.04 * (f(high) - f(low));
  const from = axis.min === undefined ? f(low) - room : f(low);
  const to = axis.max === undefined ? f(high) + room : f(high);
  const scale = (value) => start + ((f(value) - from) / (to - from)) * (stop - start);
  const back = isLog ? Math.exp : (value) => value;
  return Object.assign(scale, { low: back(from), high: back(to), isLog });
}

/**
 * Draw points and lines over two axes in a container, and again when its width changes.
 *
 * options.name: what the plot shows, for screen readers.
 * options.x, options.y: axes: { label, log: true | "auto", format, min, max }.
 * options.clouds: [{ name, space, points: [{ id, x, y, text }] }]: many pale points, for the pointer
 *   alone. Points may lack an ID.
 * options.points: [{ id, x, y, space, kind, low, high, ends, label, text: [lines] }]: points that
 *   the keyboard reaches, too. `kind` is `front`, `trained`, `published`, `float32`, `int8`, `cascade` or `unshown`; low
 *   and high are the ends of a bar, and `ends` those of a horizontal one.
 * options.lines: [{ name, space, style, step: "after" | "before", points: [[x, y], ...] }].
 * options.bands: [{ name, space, points: [[x, low, high, id], ...] }]: pale vertical bars.
 * options.diagonal: whether to draw the line where both axes are equal.
 * options.isVisible(id): whether a network is shown in full rather than pale.
 * options.marks(): [{ axis: "x" | "y", value, label }]: limits, drawn as lines.
 * options.picked(): IDs with a ring: [{ id, label }].
 * options.choose(id): called when a point is chosen.
 *
 * Returns a function that draws the plot again.
 */
function scatterPlot(container, options) {
  const { clouds = [], points = [], lines = [], bands = [] } = options;
  container.classList.add("plot");
  const holder = el("div", { class: "drawing" });
  container.replaceChildren(holder, legendOf(options));
  const order = [...points].sort((a, b) => a.x - b.x);
  let places = [], current = 0, halo = null, width = 0;

  function draw() {
    width = Math.max(240, holder.clientWidth);
    const height = options.height ?? Math.round(Math.min(460, Math.max(260, 0.5 * width)));
    const all = [...clouds.flatMap((cloud) => cloud.points), ...points,
      ...lines.flatMap((line) => line.points.map(([x, y]) => ({ x, y })))];
    const bars = [...points, ...bands.flatMap((band) => band.points.map(([, low, high]) => ({ low, high })))];
    const ends = bars.filter((bar) => bar.low !== undefined && bar.low !== null).flatMap((bar) => [bar.low, bar.high]);
    const xs = [...all.map((p) => p.x), ...points.flatMap((p) => p.ends ?? [])], ys = [...all.map((p) => p.y), ...ends];
    if (options.diagonal) { xs.push(...ys); ys.push(...xs); }
    const range = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    const x = scaleOf(range(xs), MARGIN.left, width - MARGIN.right, options.x);
    const y = scaleOf(range(ys), height - MARGIN.bottom, MARGIN.top, options.y);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": options.name });
    drawAxes(picture, x, y, options, width, height);
    const labels = [];
    places = [];
    if (options.diagonal) {
      const low = Math.max(x.low, y.low), high = Math.min(x.high, y.high);
      picture.append(svg("line", { class: "diagonal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }));
    }
    for (const band of bands) {
      for (const name of ["band", "band beyond"]) {
        const own = band.points.filter(([, , , id]) => (!options.isVisible || options.isVisible(id)) === (name === "band"));
        const d = own.map(([at, low, high]) => `M${x(at)},${y(low)}V${y(high)}`).join("");
        if (d) picture.append(svg("path", { d, class: name, stroke: colourOf(band.space) }));
      }
    }
    for (const cloud of clouds) {
      const paths = { cloud: "", "cloud beyond": "" };
      for (const point of cloud.points) {
        const isVisible = !options.isVisible || options.isVisible(point.id);
        const [px, py] = [x(point.x), y(point.y)];
        paths[isVisible ? "cloud" : "cloud beyond"] += markerPath(shapeOf(cloud.space), px, py, cloud.size ?? 2.6);
        places.push({ px, py, point });
      }
      for (const [name, d] of Object.entries(paths)) {
        if (d) picture.append(svg("path", { d, class: name, fill: colourOf(cloud.space) }));
      }
    }
    for (const line of lines) picture.append(svg("path", {
      d: linePath(line, x, y), class: "line", stroke: line.space === undefined || line.space === null ? "var(--text)" : colourOf(line.space),
      "stroke-dasharray": DASHES[line.style ?? "solid"] }));
    for (const mark of options.marks?.() ?? []) drawMark(picture, mark, x, y, width, height);
    order.forEach((point, index) => {
      const px = x(point.x), py = y(point.y), isVisible = !options.isVisible || options.isVisible(point.id);
      places.push({ px, py, point });
      if (point.low !== undefined && point.low !== null) {
        picture.append(svg("path", { class: isVisible ? "bar" : "bar beyond", d: `M${px},${y(point.low)}V${y(point.high)}` }));
      }
      if (point.ends && point.ends[0] < point.ends[1]) {
        picture.append(svg("path", { class: isVisible ? "bar range" : "bar range beyond", d: `M${x(point.ends[0])},${py}H${x(point.ends[1])}` }));
      }
      const shape = KIND_SHAPES[point.kind] ?? shapeOf(point.space), isOpen = OPEN_KINDS.includes(point.kind);
      const marker = svg("path", {
        d: markerPath(shape, px, py, point.kind === "front" ? 5 : 6), class: `point ${point.kind}${isVisible ? "" : " beyond"}`,
        fill: isOpen ? "var(--background)" : colourOf(point.space), style: isOpen ? `stroke:${colourOf(point.space)}` : null,
        tabindex: index === current ? 0 : -1, role: options.choose ? "button" : "img", "aria-label": point.text.join("; "),
        "data-network": point.id,
        onkeydown: (event) => moveFocus(event, index),
        onfocus: () => { current = index; pointAt(places.find((place) => place.point === point)); },
        onclick: () => options.choose?.(point.id),
      });
      picture.append(marker);
      if (point.label) labels.push({ px, py, text: point.label });
    });
    for (const { id, label } of options.picked?.() ?? []) {
      const own = places.filter(({ point }) => point.id === id);
      const place = own.find(({ point }) => point.kind === "trained") ?? own.find(({ point }) => point.text) ?? own[0];
      if (!place) continue;
      picture.append(svg("circle", { class: "ring", cx: place.px, cy: place.py, r: 11 }));
      if (label) labels.unshift({ px: place.px, py: place.py, text: label, isRing: true });
    }
    picture.append(...placedLabels(labels, width));
    halo = picture.appendChild(svg("circle", { class: "halo", r: 9, visibility: "hidden" }));
    picture.addEventListener("pointermove", (event) => pointAt(nearest(event, picture)));
    picture.addEventListener("pointerleave", () => pointAt(null));
    picture.addEventListener("click", (event) => {
      const place = nearest(event, picture);
      if (place && place.point.id !== undefined && event.target.closest(".point") === null) options.choose?.(place.point.id);
    });
    holder.replaceChildren(picture);
    showHalo(highlighted);
  }

  /** Return the place nearest to the pointer. Points win over clouds. */
  function nearest(event, picture) {
    const box = picture.getBoundingClientRect();
    const px = ((event.clientX - box.left) * width) / box.width, py = ((event.clientY - box.top) * width) / box.width;
    let best = null, least = MAX_DISTANCE ** 2;
    for (const place of places) {
      const distance = (place.px - px) ** 2 + (place.py - py) ** 2 - (place.point.kind ? 60 : 0);
      if (distance < least) [best, least] = [place, distance];
    }
    return best;
  }

  function pointAt(place) {
    if (!place) { tooltip.hide(); highlight(null); return; }
    const box = holder.firstChild.getBoundingClientRect(), zoom = box.width / width;
    tooltip.show(box.left + place.px * zoom, box.top + place.py * zoom, place.point.text ?? options.describe?.(place.point) ?? [place.point.id]);
    if (place.point.id !== undefined) highlight(place.point.id);
  }

  function moveFocus(event, index) {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    const target = step ? index + step : { Home: 0, End: order.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      options.choose?.(order[index].id);
      focusPoint(index);
    } else if (event.key === "Escape") {
      tooltip.hide();
    } else if (order[target]) {
      event.preventDefault();
      focusPoint(target);
    }
  }

  function focusPoint(index) {
    const markers = holder.querySelectorAll(".point");
    markers.forEach((marker, at) => marker.setAttribute("tabindex", at === index ? 0 : -1));
    markers[index]?.focus();
  }

  function showHalo(id) {
    const place = id === null ? null : places.find((each) => each.point.id === id && each.point.kind) ?? places.find((each) => each.point.id === id);
    halo?.setAttribute("visibility", place ? "visible" : "hidden");
    if (place) { halo.setAttribute("cx", place.px); halo.setAttribute("cy", place.py); }
  }

  onHighlight(showHalo);
  new ResizeObserver(() => { if (holder.clientWidth && Math.max(240, holder.clientWidth) !== width) draw(); }).observe(holder);
  draw();
  return draw;
}

/** Return the points of a front of two values: no other one is as good in both. */
function stepsOf(points, isMaximised) {
  const sorted = [...points].sort((a, b) => (isMaximised ? b.x - a.x : a.x - b.x) || b.y - a.y);
  let best = -Infinity;
  return sorted.filter(({ y }) => y > best && ((best = y), true)).map(({ x, y }) => [x, y]);
}

function drawAxes(picture, x, y, options, width, height) {
  const bottom = height - MARGIN.bottom;
  const format = (axis) => axis.format ?? ((value) => formatNumber(value, 4));
  for (const value of ticks(x.low, x.high, Math.max(3, width / 110), x.isLog)) {
    picture.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: MARGIN.top, y2: bottom }),
      svg("text", { class: "tick", x: x(value), y: bottom + 17, "text-anchor": "middle" }, format(options.x)(value)));
  }
  for (const value of ticks(y.low, y.high, height / 60, y.isLog)) {
    picture.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, format(options.y)(value)));
  }
  picture.append(
    svg("text", { class: "axis", x: width / 2, y: height - 8, "text-anchor": "middle" }, options.x.label),
    svg("text", { class: "axis", transform: `translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, options.y.label));
}

function linePath(line, x, y) {
  let d = "", before = null;
  for (const [a, b] of line.points) {
    const [px, py] = [x(a).toFixed(1), y(b).toFixed(1)];
    if (before === null) d = `M${px},${py}`;
    else if (line.step === "after") d += `H${px}V${py}`;
    else if (line.step === "before") d += `V${py}H${px}`;
    else d += `L${px},${py}`;
    before = px;
  }
  return d;
}

function drawMark(picture, mark, x, y, width, height) {
  const scale = mark.axis === "x" ? x : y;
  if (mark.value < scale.low || mark.value > scale.high) return;
  const at = scale(mark.value), bottom = height - MARGIN.bottom;
  picture.append(mark.axis === "x"
    ? svg("line", { class: "limit", x1: at, x2: at, y1: MARGIN.top, y2: bottom })
    : svg("line", { class: "limit", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
}

/** Return labels beside their points, where they cover no other label; one without room is left out. */
function placedLabels(labels, width) {
  const boxes = [];
  return labels.flatMap(({ px, py, text, isRing }) => {
    const length = 7.5 * text.length;
    const places = isRing
      ? [["middle", 0, 25], ["middle", 0, -16], ["start", 15, 4], ["end", -15, 4]]
      : [["start", 9, -7], ["end", -9, -7], ["start", 9, 16], ["end", -9, 16]];
    for (const [anchor, dx, dy] of places) {
      const left = px + dx - { start: 0, middle: length / 2, end: length }[anchor];
      const box = [left, py + dy - 11, left + length, py + dy + 3];
      const isFree = left > 0 && box[2] < width && box[1] > 0
        && !boxes.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
      if (!isFree) continue;
      boxes.push(box);
      return [svg("text", { class: isRing ? "ring-label" : "label", x: px + dx, y: py + dy, "text-anchor": anchor }, text)];
    }
    return [];
  });
}

/** Return the legend of a plot: the clouds, kinds of points, lines and bands that have a name. */
function legendOf({ clouds = [], points = [], lines = [], bands = [], legend = [] }) {
  const key = (...children) => svg("svg", { width: 26, height: 14, viewBox: "0 0 26 14", "aria-hidden": "true" }, ...children);
  const entry = (picture, name) => el("li", {}, picture, name);
  const names = { front: "front (supernet's score)", trained: "trained", published: "published network",
    float32: "its file in float32", int8: "its file in int8",
    cascade: "cascade, mean latency", unshown: "cascade that is not shown to be better" };
  const kinds = [...new Set(points.map((point) => point.kind))].filter((kind) => names[kind]);
  const entries = [
    ...clouds.filter((cloud) => cloud.name).map((cloud) => entry(
      key(svg("path", { d: markerPath(shapeOf(cloud.space), 13, 7, 4.5), fill: colourOf(cloud.space) })), cloud.name)),
    ...kinds.map((kind) => entry(key(svg("path", {
      d: markerPath(KIND_SHAPES[kind] ?? "circle", 13, 7, kind === "trained" ? 3.6 : 4.5),
      class: `point ${kind}`, fill: OPEN_KINDS.includes(kind) ? "var(--background)" : "var(--muted)" })), names[kind])),
    ...lines.filter((line) => line.name && line.points.length).map((line) => entry(
      key(svg("path", { d: "M1,7H25", class: "line", stroke: line.space === undefined || line.space === null ? "var(--text)" : colourOf(line.space), "stroke-dasharray": DASHES[line.style ?? "solid"] })), line.name)),
    ...bands.filter((band) => band.name).map((band) => entry(
      key(svg("path", { d: "M13,1V13", class: "band", stroke: colourOf(band.space) })), band.name)),
    ...legend.map((text) => el("li", {}, text)),
  ];
  return el("ul", { class: "legend" }, ...entries);
}

/** Draw lines of the document (`Line`) over two axes, see `scatterPlot`. */
function linePlot(container, { lines, step, yScale = 1, ...options }) {
  return scatterPlot(container, {
    height: 260,
    ...options,
    lines: lines.map((line) => ({ ...line, step, points: line.x.map((x, i) => [x, yScale * line.y[i]]) })),
    clouds: lines.map((line) => ({
      space: line.space, size: line.x.length > 40 ? 0.01 : 1.6,
      points: line.x.map((x, i) => ({ x, y: yScale * line.y[i], text: [line.name, `${options.x.label}: ${formatNumber(x)}`, `${options.y.label}: ${formatNumber(yScale * line.y[i])}`] })),
    })),
  });
}
