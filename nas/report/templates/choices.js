/* What good networks share: parallel coordinates of the choices, with a range on every axis. */

const AXES_AT_FIRST = 8; // choices that have an axis at first, the most important ones
const AXIS_WIDTH = 76; // least distance of two axes in pixels
const PARALLEL = { top: 44, bottom: 22, side: 42, height: 360 };
const LINES_A_STROKE = 50; // lines in one stroke do not darken each other
const MAX_LINES = 2500; // lines that are drawn off the front: more take long and look the same
const BEST = 10;

/** Return the value of a network in a group of choices: its option, or the mean of its blocks. */
function optionOf(positions, isCategorical) {
  if (!isCategorical || positions.length < 2) return positions.reduce((a, b) => a + b, 0) / positions.length;
  const count = (position) => positions.filter((each) => each === position).length;
  return positions.reduce((a, b) => (count(b) > count(a) ? b : a));
}

/**
 * Return the axis of a group of choices, on which options have equal distances.
 *
 * An axis has a `name`, whether it `isChoice`, the height `at` of each network from 0 to 1, `marks` [height, text],
 * the `step` of the keyboard, whether ranges end at options (`isDiscrete`), and the `text` of a
 * height. Networks that lack all choices of a group are below its first option.
 */
function choiceAxis(group, own) {
  const choices = own.choices.filter((choice) => group.choices.includes(choice.name));
  const options = [...new Set(choices.flatMap((choice) => choice.options))];
  const isCategorical = typeof options[0] === "string";
  const places = choices.map((choice) => choice.options.map((option) => options.indexOf(option)));
  const values = own.networks.map((_, index) => {
    const positions = choices.map((choice, i) => places[i][choice.chosen[index]]).filter((place) => place !== undefined);
    return positions.length ? optionOf(positions, isCategorical) : -1;
  });
  const texts = options.map(String);
  const lowest = values.includes(-1) ? -1 : 0;
  if (lowest < 0) texts.unshift("none");
  const last = Math.max(1, texts.length - 1);
  const isDiscrete = choices.length === 1 || isCategorical;
  return {
    name: group.name, isChoice: true, isDiscrete,
    at: values.map((value) => (value - lowest) / last),
    marks: texts.map((text, index) => [index / last, text]),
    step: isDiscrete ? 1 / last : 0.25 / last,
    text: (height) => {
      const below = texts[Math.floor(height * last + 1e-6)], above = texts[Math.ceil(height * last - 1e-6)];
      return below === above ? below : `between ${below} and ${above}`;
    },
  };
}

/** Return the axis of a measured or predicted value. */
function valueAxis(name, values, format, log) {
  const ends = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const scale = scaleOf(ends, 0, 1, { log });
  const valueAt = (height) => (scale.isLog ? scale.low * (scale.high / scale.low) ** height : scale.low + (scale.high - scale.low) * height);
  return {
    name, isChoice: false, isDiscrete: false, step: 0.02, at: values.map(scale),
    marks: ticks(scale.low, scale.high, 6, scale.isLog).map((value) => [scale(value), formatNumber(value, 3)]),
    text: (height) => format(valueAt(height)),
  };
}

/** Draw the parallel coordinates of a space, the control of their axes, and the best networks. */
function drawParallel(container, own) {
  const shown = own.networks.map((id) => byId.get(id));
  const front = new Set(own.front);
  const indexOf = new Map(own.networks.map((id, index) => [id, index]));
  const weight = (group) => Math.max(group.accuracy?.share ?? 0, group.latency_us?.share ?? 0);
  const groups = [...own.groups].sort((a, b) => weight(b) - weight(a));
  const colour = report.spaces.indexOf(own.space);
  const last = [
    valueAxis(`latency, ${unit.name}`, shown.map((network) => (network.predicted_us ?? network.latency_us) / unit.us),
      (value) => `${formatNumber(value, 3)} ${unit.name}`, "auto"),
    valueAxis("accuracy, %", shown.map((network) => 100 * network.accuracy), (value) => `${formatNumber(value, 3)}%`),
  ];
  const made = new Map();
  const axisOf = (group) => made.get(group) ?? made.set(group, choiceAxis(group, own)).get(group);
  const chosen = new Set(groups.slice(0, AXES_AT_FIRST));
  // Lines with one option lie side by side, in the order of their accuracies.
  const byAccuracy = shown.map((_, index) => index).sort((a, b) => shown[a].accuracy - shown[b].accuracy);
  const rank = [];
  byAccuracy.forEach((index, place) => { rank[index] = place / Math.max(1, shown.length - 1) - 0.5; });
  const ranges = new Map(); // from the name of an axis to [lowest, highest] height
  let axes = [], parts = [], passes = [], width = 0, frame = 0;

  const canvas = el("canvas", { "aria-hidden": "true" });
  const picture = svg("svg", { role: "group", "aria-label": `choices of ${own.space}: ranges of the axes` });
  const holder = el("div", { class: "plot parallel" }, canvas, picture);
  const status = el("p", { role: "status" });
  const best = letScroll(el("div", { class: "scroll" }));
  const reset = el("button", { type: "button", onclick: () => { ranges.clear(); refresh(); } }, "remove all ranges");
  const boxes = groups.map((group) => el("label", {}, el("input", { type: "checkbox", checked: chosen.has(group), onchange: ({ target }) => {
    if (target.checked) chosen.add(group);
    else { chosen.delete(group); ranges.delete(group.name); }
    layout();
  } }), ` ${group.name}`));
  container.replaceChildren(
    el("div", { class: "scroll" }, holder),
    el("p", {}, el("small", {}, "A line is a network; the thick lines are on the front of this space. Drag along an axis, or move its two handles, to see only networks within a range; a press on the axis removes the range. For a stage with several blocks, the height is the mean of its blocks.",
      shown.length > MAX_LINES ? ` At most ${formatNumber(MAX_LINES)} lines off the front are drawn.` : "")),
    el("details", {}, el("summary", {}, `axes: ${groups.length} choices, the most important first`), el("fieldset", { class: "axes" }, el("legend", {}, "choices with an axis"), boxes)),
    el("div", { class: "filtered" }, status, reset), best);

  const y = (height) => PARALLEL.top + (1 - height) * (PARALLEL.height - PARALLEL.top - PARALLEL.bottom);
  const x = (position) => PARALLEL.side + (position * (width - 2 * PARALLEL.side)) / Math.max(1, axes.length - 1);
  const heightAt = (event) => {
    const box = picture.getBoundingClientRect();
    const height = 1 - (event.clientY - box.top - PARALLEL.top) / (PARALLEL.height - PARALLEL.top - PARALLEL.bottom);
    return Math.min(1, Math.max(0, height));
  };
  const snapped = (axis, height) => (axis.isDiscrete ? Math.round(height / axis.step) * axis.step : height);

  /** Return where the line of a network meets an axis, in pixels. */
  function meets(axis, index) {
    const spread = axis.isChoice ? Math.min(0.3 * axis.step, 0.08) : 0;
    return y(axis.at[index] + spread * rank[index]);
  }

  function setRange(axis, low, high) {
    if (low <= 0 && high >= 1) ranges.delete(axis.name);
    else ranges.set(axis.name, [low, high]);
    refresh();
  }

  function layout() {
    axes = [...groups.filter((group) => chosen.has(group)).map(axisOf), ...last];
    width = Math.max(holder.parentElement.clientWidth, AXIS_WIDTH * (axes.length - 1) + 2 * PARALLEL.side);
    const zoom = window.devicePixelRatio || 1;
    holder.style.width = `${width}px`;
    holder.style.height = `${PARALLEL.height}px`;
    [canvas.width, canvas.height] = [Math.round(width * zoom), Math.round(PARALLEL.height * zoom)];
    picture.setAttribute("viewBox", `0 0 ${width} ${PARALLEL.height}`);
    parts = axes.map(drawAxis);
    picture.replaceChildren(...parts.map((part) => part.group), svg("path", { class: "lit-line", d: "" }));
    refresh();
  }

  function drawAxis(axis, position) {
    const [first, second] = axis.name.split(/\.|(?<=,) /);
    const middle = x(position);
    const group = svg("g", { transform: `translate(${middle.toFixed(1)} 0)` },
      svg("text", { class: "axis", y: 12, "text-anchor": "middle" }, first),
      svg("text", { class: "axis", y: 26, "text-anchor": "middle" }, second ?? ""),
      svg("line", { class: "axis-line", y1: y(0), y2: y(1) }));
    const range = svg("rect", { class: "range", x: -7, width: 14 });
    const zone = svg("rect", { class: "zone", x: -16, width: 32, y: y(1), height: y(0) - y(1) });
    const handles = ["at least", "at most"].map((name, side) => svg("g", {
      class: "handle", role: "slider", tabindex: 0, "aria-label": `${axis.name}, ${name}`, "aria-orientation": "vertical",
      "aria-valuemin": 0, "aria-valuemax": 100,
      onkeydown: (event) => moveHandle(event, axis, side),
    }, svg("rect", { class: "target", x: -14, y: side ? -16 : -4, width: 28, height: 20 }), svg("path", { d: side ? "M-9,0L9,0L0,-8Z" : "M-9,0L9,0L0,8Z" })));
    drag(zone, axis, null);
    handles.forEach((handle, side) => drag(handle, axis, side));
    group.append(range, zone, ...axis.marks.map(([height, text]) =>
      svg("text", { class: "mark", x: 9, y: y(height) + 4 }, text)), ...handles);
    return { group, range, handles };
  }

  /** Let a drag along an axis set its range, or one end of it. */
  function drag(target, axis, side) {
    let start = null, from = 0;
    // The page must not scroll meanwhile. Chromium ignores touch-action within a picture.
    target.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
    target.addEventListener("pointerdown", (event) => {
      target.setPointerCapture(event.pointerId);
      [start, from] = [heightAt(event), event.clientY];
    });
    target.addEventListener("pointermove", (event) => {
      if (start === null) return;
      event.stopPropagation();
      const height = heightAt(event), [low, high] = ranges.get(axis.name) ?? [0, 1];
      if (side === null) setRange(axis, ...[snapped(axis, start), snapped(axis, height)].sort((a, b) => a - b));
      else if (side) setRange(axis, low, Math.max(low, snapped(axis, height)));
      else setRange(axis, Math.min(high, snapped(axis, height)), high);
    });
    target.addEventListener("pointerup", (event) => {
      if (side === null && Math.abs(event.clientY - from) < 4) setRange(axis, 0, 1);
      start = null;
    });
    target.addEventListener("pointercancel", () => { start = null; });
  }

  function moveHandle(event, axis, side) {
    const range = [...(ranges.get(axis.name) ?? [0, 1])];
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 }[event.key];
    if (event.key === "Escape") range.splice(0, 2, 0, 1);
    else if (event.key === "Home") range[side] = side ? range[0] : 0;
    else if (event.key === "End") range[side] = side ? 1 : range[1];
    else if (steps) range[side] = Math.min(side ? 1 : range[1], Math.max(side ? range[0] : 0, range[side] + steps * axis.step));
    else return;
    event.preventDefault();
    setRange(axis, ...range);
  }

  function refresh() {
    const bounds = axes.filter((axis) => ranges.has(axis.name)).map((axis) => {
      const [low, high] = ranges.get(axis.name), slack = axis.isDiscrete ? axis.step / 4 : 1e-9;
      return { at: axis.at, low: low - slack, high: high + slack };
    });
    const isInRanges = (index) => bounds.every(({ at, low, high }) => at[index] >= low && at[index] <= high);
    passes = shown.map((network, index) => isIdWithin(network.id) && isInRanges(index));
    brushOut(own.space, new Set(own.networks.filter((_, index) => !isInRanges(index))));
    axes.forEach((axis, position) => {
      const [low, high] = ranges.get(axis.name) ?? [0, 1], { range, handles } = parts[position];
      range.setAttribute("y", y(high));
      range.setAttribute("height", y(low) - y(high));
      range.setAttribute("visibility", ranges.has(axis.name) ? "visible" : "hidden");
      handles.forEach((handle, side) => {
        const height = side ? high : low;
        handle.setAttribute("transform", `translate(0 ${y(height).toFixed(1)})`);
        handle.setAttribute("aria-valuenow", Math.round(100 * height));
        handle.setAttribute("aria-valuetext", axis.text(height));
      });
    });
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(drawLines);
    listBest();
    showLine(highlighted);
  }

  function drawLines() {
    const style = getComputedStyle(holder), zoom = canvas.width / width;
    const pen = canvas.getContext("2d");
    pen.setTransform(zoom, 0, 0, zoom, 0, 0);
    pen.clearRect(0, 0, width, PARALLEL.height);
    const at = axes.map((_, position) => x(position));
    const stroke = (indices, colourName, alpha, thickness, perStroke) => {
      Object.assign(pen, { strokeStyle: style.getPropertyValue(colourName), globalAlpha: alpha, lineWidth: thickness });
      for (let start = 0; start < indices.length; start += perStroke) {
        pen.beginPath();
        for (const index of indices.slice(start, start + perStroke)) {
          axes.forEach((axis, i) => (i ? pen.lineTo(at[i], meets(axis, index)) : pen.moveTo(at[i], meets(axis, index))));
        }
        pen.stroke();
      }
    };
    const others = byAccuracy.filter((index) => !front.has(own.networks[index]));
    const sampled = (indices) => indices.filter((_, place) => place % Math.ceil(indices.length / MAX_LINES) === 0);
    const within = sampled(others.filter((index) => passes[index]));
    const members = own.front.map((id) => indexOf.get(id));
    stroke(sampled(others.filter((index) => !passes[index])), "--line", 0.5, 0.5, LINES_A_STROKE);
    stroke(members.filter((index) => !passes[index]), "--line", 1, 1.5, 1);
    stroke(within, "--muted", Math.min(0.8, Math.max(0.12, 30 / within.length)), 1, LINES_A_STROKE);
    stroke(members.filter((index) => passes[index]), `--space-${colour % 6}`, 0.95, 2.5, 1);
  }

  function listBest() {
    const within = byAccuracy.filter((index) => passes[index]).reverse();
    const onFront = within.filter((index) => front.has(own.networks[index])).length;
    status.textContent = `${within.length} of ${shown.length} networks are within all ranges${report.members.length ? " and limits" : ""}, ${onFront} of them on the front.`;
    reset.disabled = !ranges.size;
    best.replaceChildren(el("table", { class: "best" }, el("caption", {}, `The best ${Math.min(BEST, within.length)} of them by their scores`),
      el("thead", {}, el("tr", {}, ["id", "accuracy", "predicted latency", "front"].map((text, column) => el("th", { scope: "col", class: column === 1 || column === 2 ? "number" : null }, text)))),
      el("tbody", {}, within.slice(0, BEST).map((index) => {
        const network = shown[index], { id } = network;
        const button = el("button", { type: "button", class: "pick", "aria-label": memberById.has(id) ? `pick ${id}` : `show ${id} in the plots`,
          onclick: () => (memberById.has(id) ? choose(id) : highlight(id)) }, id);
        return el("tr", { "data-network": id }, el("td", {}, button), el("td", { class: "number" }, formatPercent(network.accuracy)),
          el("td", { class: "number" }, formatLatency(network.predicted_us ?? network.latency_us)), el("td", {}, front.has(id) ? "on the front" : ""));
      }))));
  }

  function showLine(id) {
    const index = id === null ? undefined : indexOf.get(id), line = picture.querySelector(".lit-line");
    line?.setAttribute("d", index === undefined ? "" : axes.map((axis, i) => `${i ? "L" : "M"}${x(i).toFixed(1)},${meets(axis, index).toFixed(1)}`).join(""));
  }

  /** Point at the network whose line is nearest to the pointer; lines of the front win. */
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    const left = Math.min(axes.length - 2, Math.max(0, Math.floor(((px - PARALLEL.side) * (axes.length - 1)) / (width - 2 * PARALLEL.side))));
    const share = (px - x(left)) / (x(left + 1) - x(left));
    let nearest = null, least = 12;
    passes.forEach((isWithinAll, index) => {
      if (!isWithinAll) return;
      const a = meets(axes[left], index), b = meets(axes[left + 1], index);
      const distance = Math.abs(a + share * (b - a) - py) - (front.has(own.networks[index]) ? 4 : 0);
      if (distance < least) [nearest, least] = [index, distance];
    });
    highlight(nearest === null ? null : own.networks[nearest]);
    if (nearest === null) tooltip.hide();
    else tooltip.show(event.clientX, event.clientY, describe({ id: own.networks[nearest] }));
  });
  picture.addEventListener("pointerleave", () => { tooltip.hide(); highlight(null); });
  onHighlight(showLine);
  onLimits(refresh);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  new ResizeObserver(() => {
    const room = holder.parentElement.clientWidth;
    if (room && Math.max(room, AXIS_WIDTH * (axes.length - 1) + 2 * PARALLEL.side) !== width) layout();
  }).observe(holder.parentElement);
  layout();
}

function drawChoices(section) {
  const parts = [...document.querySelectorAll("[data-choices]")];
  const drawn = new Set();
  const show = (index) => {
    parts.forEach((part, other) => { part.hidden = other !== index; });
    if (drawn.has(index)) return;
    drawn.add(index);
    drawParallel(parts[index].querySelector(".choices-plot"), section.spaces[index]);
  };
  if (parts.length > 1) {
    const select = el("select", { id: "choices-space", onchange: () => show(select.selectedIndex) },
      section.spaces.map(({ space, networks: own }) => el("option", {}, `${space} (${own.length} networks)`)));
    parts[0].before(el("p", {}, el("label", { for: "choices-space" }, "space "), select));
  }
  const most = Math.max(...section.spaces.map((each) => each.networks.length));
  const first = section.spaces.findIndex((each) => each.networks.length === most);
  const select = document.getElementById("choices-space");
  if (select) select.selectedIndex = first;
  show(first);
}

if (report.choices) drawChoices(report.choices);
