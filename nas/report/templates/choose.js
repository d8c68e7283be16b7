/* The first section: the front with the limits, and the pick beside its runner-up. */

const accuracyLabel = `${report.metric}, %`;

/** Return the lines of the tooltip of a network. */
function describe({ id }) {
  const network = byId.get(id);
  if (!network) return [id];
  const member = memberById.get(id);
  const range = member ? rangeText(member) : "";
  return [
    `${id} (${report.spaces[network.space]})`,
    `score ${formatPercent(network.accuracy)}`,
    ...(member?.is_trained ? [`${formatPercent(member.accuracy)} ${member.training}`] : []),
    `${formatLatency(network.latency_us)} ${member?.latency_basis ?? (network.measured_us === null ? "predicted" : report.basis)}`,
    ...(range ? [range] : []),
    `${formatCount(network.params)} parameters, ${formatCount(network.macs)} MACs`,
  ];
}

/** Return the values of the networks on a horizontal axis of the front, in the unit shown. */
function frontAxis(column) {
  if (column === "latency_us") {
    const whole = report.basis === "measured" ? "measured" : "estimated";
    const isTimed = networks.some((network) => network.measured_us !== null);
    return {
      label: `${isTimed ? "" : "predicted "}latency, ${unit.name}${isTimed ? ` (front: ${whole}; pale: predicted)` : ""}`,
      value: (network) => network.latency_us / unit.us,
      cloud: (network) => network.predicted_us / unit.us,
    };
  }
  const axis = report.axes.find((each) => each.column === column);
  const value = (network) => (network[column] ?? NaN) * axis.scale;
  return { label: axis.label, value, cloud: value, isMaximised: axis.is_maximised,
    format: ["macs", "params"].includes(column) ? formatCount : undefined };
}

function drawFront(container, column) {
  const axis = frontAxis(column), front = new Set(report.front);
  const isKnown = (point) => Number.isFinite(point.x);
  const clouds = report.spaces.map((name, space) => ({
    name, space,
    points: networks.filter((network) => network.space === space && !front.has(network.id))
      .map((network) => ({ id: network.id, x: axis.cloud(network), y: 100 * network.accuracy })).filter(isKnown),
  }));
  const scores = members.map((member) => ({
    id: member.id, space: member.space, kind: "front", x: axis.value(member), y: 100 * byId.get(member.id).accuracy,
    text: describe(member), ...(column === "latency_us" ? { ends: member.latency_range_us.map((us) => us / unit.us) } : {}),
  })).filter(isKnown);
  const trained = report.trained.map((model) => {
    const own = byId.get(model.id);
    const x = own ? axis.value(own) : column === "latency_us" ? model.latency_us / unit.us : NaN;
    return {
      id: model.id, space: own?.space ?? report.spaces.indexOf(model.space), x: model.latency_us === null ? NaN : x, y: 100 * model.accuracy,
      kind: model.is_published ? "published" : "trained", training: model.training,
      low: 100 * model.interval[0], high: 100 * model.interval[1], label: model.id,
      text: [model.id, `${formatPercent(model.accuracy)} (${formatPercent(model.interval[0])} to ${formatPercent(model.interval[1])})`,
        model.training, model.latency_us === null ? "not timed" : formatLatency(model.latency_us)],
    };
  }).filter(isKnown);
  const files = column !== "latency_us" ? [] : report.pairs.flatMap(({ id, formats, latency_us, accuracy }) => formats.map((format, i) => ({
    id, kind: i ? "int8" : "float32", space: byId.get(id)?.space, x: latency_us[i] / unit.us, y: 100 * accuracy[i],
    text: [`${id}, file in ${format}`, formatPercent(accuracy[i]), formatLatency(latency_us[i])],
  })));
  const cascades = column !== "latency_us" ? [] : (report.cascades?.curve ?? []).map((own) => ({
    id: own.networks[0].endsWith("@exit") ? own.networks[0] : own.networks.join("-"), kind: own.is_better ? "cascade" : "unshown", space: null, x: own.mean_us / unit.us, y: 100 * own.accuracy,
    low: 100 * own.accuracy_low, high: 100 * own.accuracy_high,
    text: [`cascade ${own.networks.join(", ")}`, `${formatPercent(own.accuracy)} (${formatPercent(own.accuracy_low)} to ${formatPercent(own.accuracy_high)})`,
      `${formatLatency(own.mean_us)} on average, ${formatLatency(own.worst_us)} at worst`,
      `answered: ${own.answered.map((share) => formatPercent(share)).join(", ")}`],
  }));
  const trainings = [...new Set(trained.filter((each) => each.kind === "trained").map((each) => each.training))];
  const step = axis.isMaximised ? "before" : "after";
  const bands = report.spaces.map((name, space) => ({
    name: "", space,
    points: members.filter((member) => member.space === space && member.standalone && Number.isFinite(axis.value(member)))
      .map((member) => [axis.value(member), 100 * member.standalone[0], 100 * member.standalone[1], member.id]),
  })).filter((band) => band.points.length);
  const isLatency = column === "latency_us", xs = [...scores, ...trained].map(({ x }) => x);
  if (![...clouds.flatMap((cloud) => cloud.points), ...scores, ...trained].length) {
    container.replaceChildren(el("p", { class: "missing" }, "No architecture was scored yet."));
    return () => {};
  }
  return scatterPlot(container, {
    name: `${report.metric} over ${axis.label}`,
    x: { label: axis.label, log: "auto", format: axis.format },
    y: { label: accuracyLabel },
    clouds, bands,
    points: [...scores, ...trained, ...files, ...cascades],
    lines: [
      { name: "front of the scores", step, style: "dotted", points: stepsOf(scores, axis.isMaximised) },
      ...trainings.map((training) => ({
        name: `front, ${training}`, step,
        points: stepsOf(trained.filter((each) => each.kind === "trained" && each.training === training), axis.isMaximised),
      })),
      { name: "cascades", style: "dashed", points: cascades.map(({ x, y }) => [x, y]).sort(([a], [b]) => a - b) },
      ...report.probes.map(({ network, accuracy }) => ({
        name: `linear probe of ${network}`, style: "dashed", points: xs.length ? [Math.min(...xs), Math.max(...xs)].map((x) => [x, 100 * accuracy]) : [],
      })),
      ...files.filter(({ kind }) => kind === "int8").map((file) => ({
        style: "dotted", space: file.space, points: [file, files[files.indexOf(file) - 1]].map(({ x, y }) => [x, y]),
      })),
    ],
    legend: [
      ...(trained.length || cascades.length ? ["thin bars: 95% intervals"] : []),
      ...(scores.some(({ ends }) => ends && ends[0] < ends[1]) ? ["horizontal bars: what the timings leave of the latency"] : []),
      ...(bands.length ? ["wide pale bars: 95% of such networks, trained standalone"] : []),
    ],
    describe, isVisible: isShown, choose,
    marks: () => [
      ...(isLatency && limits.max_latency_ms !== null ? [{ axis: "x", value: (1000 * limits.max_latency_ms) / unit.us }] : []),
      ...(limits.min_accuracy !== null ? [{ axis: "y", value: 100 * limits.min_accuracy }] : []),
    ],
    picked: () => [
      ...(pick ? [{ id: pick.id, label: "pick" }] : []),
      ...(report.knee && report.knee !== pick?.id ? [{ id: report.knee, label: "knee" }] : []),
    ],
  });
}

/** Return the slider and the number field of a limit. */
function limitControl(name) {
  const { label, value, scale, isSmallest, isWhole } = LIMITS[name];
  const values = members.map(value).filter((each) => each > 0); // Positions are logarithms.
  const low = Math.min(...values), high = Math.max(...values);
  if (!(low < high)) return null;
  // Positions are a logarithmic scale but for accuracies. The loosest position is no limit.
  const at = (position) => (isSmallest ? low + (high - low) * position : low * (high / low) ** position);
  const position = (limit) => (isSmallest ? (limit - low) / (high - low) : Math.log(limit / low) / Math.log(high / low));
  const loosest = isSmallest ? 0 : 1000;
  // A limit that is rounded must still admit the member that it stands for.
  const rounded = (limit) => {
    const shown = limit * scale, digits = 10 ** (Math.floor(Math.log10(shown)) - 3);
    const nearest = (isSmallest ? Math.floor(shown / digits + 1e-6) : Math.ceil(shown / digits - 1e-6)) * digits;
    return parseFloat((nearest / scale).toPrecision(8));
  };
  const set = (limit) => setLimit(name, limit !== null && isWhole ? Math.ceil(limit) : limit);
  const id = `limit-${name}`;
  const slider = el("input", { type: "range", id, min: 0, max: 1000, step: 1,
    oninput: () => set(Number(slider.value) === loosest ? null : rounded(at(slider.value / 1000))) });
  const number = el("input", { type: "number", step: "any", min: 0, "aria-label": `${label}, exactly`, placeholder: "no limit",
    onchange: () => set(number.value > 0 ? parseFloat((number.value / scale).toPrecision(12)) : null) });
  onLimits(show);
  function show() {
    const limit = limits[name];
    slider.value = limit === null ? loosest : Math.round(1000 * Math.min(1, Math.max(0, position(limit))));
    const text = limit === null ? "no limit" : formatNumber(limit * scale, 5);
    slider.setAttribute("aria-valuetext", text);
    if (document.activeElement !== number) number.value = limit === null ? "" : parseFloat((limit * scale).toPrecision(5));
  }
  show();
  return el("div", { class: "limit-control" }, el("label", { for: id }, `${isSmallest ? "at least" : "at most"} ${label}`), slider, number);
}

/** Return the range of a member's latency and the members that it is not told apart from; "" if there are none. */
function rangeText({ latency_range_us, not_told_from }) {
  const [low, high] = latency_range_us.map(formatLatency);
  return not_told_from.length ? `${low} to ${high}: its timings do not tell it from ${not_told_from.join(", ")}` : "";
}

/** Return why the pick is chosen by the limits, in the words of `nas select`. */
function reason() {
  const isSlower = equals.some((member) => member.latency_us < pick.latency_us);
  const sentence = report.reasons[`${pick === equals[0] ? "most accurate" : "fastest"}${isSlower ? "; some are faster" : ""}`];
  const words = { name: pick.id, count: equals.length, best: equals[0].id, trained: isExceeded ? "trained " : "" };
  const more = isExceeded ? report.reasons["more is expected of others"] : "";
  return sentence.replace(/{(name|count|best|trained)}/g, (_, place) => words[place]) + more;
}

/** Return a drawing of a network: a box a block, as high as its share of the multiply-accumulates. */
function drawNetwork(member, other) {
  if (!member.blocks.length) {
    return el("p", { class: "missing" }, `The file of its space cannot be loaded, so its architecture is not drawn. ${member.choices}`);
  }
  const total = member.blocks.reduce((sum, block) => sum + block.macs, 0);
  const most = Math.max(...member.blocks.map((block) => block.macs));
  const others = new Map((other?.blocks ?? []).map((block) => [block.name, block]));
  const stages = [];
  for (const block of member.blocks) {
    const stage = block.name.split(".")[0];
    if (stages.at(-1)?.name !== stage) stages.push({ name: stage, blocks: [] });
    stages.at(-1).blocks.push(block);
  }
  const isSame = (block) => {
    const own = others.get(block.name);
    return own && own.choices === block.choices && own.shape.join() === block.shape.join();
  };
  return el("ol", { class: "network", "aria-label": `architecture of ${member.id}` }, stages.map(({ name, blocks }) => {
    const [channels, , pixels] = blocks.at(-1).shape;
    return el("li", { class: "stage" },
      el("ol", { class: "blocks" }, blocks.map((block) => el("li", { class: `block${other && !isSame(block) ? " differs" : ""}` },
        el("span", { class: "macs", style: `height:${(2 + (46 * block.macs) / most).toFixed(0)}px;background:${colourOf(member.space)}`,
          title: `${formatCount(block.macs)} MACs (${formatPercent(block.macs / total, 0)}), ${formatCount(block.params)} parameters` }),
        el("span", { class: "choices" }, block.choices ? block.choices.split(", ").flatMap((text, i) => (i ? [el("br"), text] : [text])) : block.name)))),
      el("span", { class: "stage-name" }, el("strong", {}, name), ` ${channels} ch, ${pixels} px`));
  }));
}

function copyable(command) {
  const button = el("button", { type: "button", "aria-live": "polite", onclick: async () => {
    try {
      await navigator.clipboard.writeText(command);
      button.textContent = "copied";
    } catch { // The browser does not allow it: the command is selected, ready to be copied by hand.
      window.getSelection().selectAllChildren(text);
      button.textContent = "selected";
    }
  } }, "copy");
  const text = el("code", {}, command);
  return el("p", { class: "command" }, text, navigator.clipboard ? button : null);
}

/** Return a text as a shell reads it as one word. */
const quoted = (text) => (/^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** Show the pick: what is read aloud when it changes in the first child, the rest in the second. */
function drawPick(container) {
  const [words, details] = container.children;
  if (!members.length || pick === null) details.replaceChildren();
  if (!members.length) {
    words.replaceChildren(el("p", { class: "note" }, "The front is empty: there is nothing to choose."));
    return;
  }
  if (pick === null) {
    const reset = el("button", { type: "button", onclick: () => {
      for (const name of Object.keys(limits)) limits[name] = null;
      choose(chosenId);
    } }, "remove all limits");
    words.replaceChildren(el("p", { class: "note" }, "No network of the front meets these limits. ", reset));
    return;
  }
  const both = [pick, ...(runnerUp ? [runnerUp] : [])];
  const isOneSpace = runnerUp?.space === pick.space; // Others have no blocks in common.
  const row = (label, value) => el("tr", {}, el("th", { scope: "row" }, label), both.map((member) => el("td", {}, value(member))));
  const samples = ({ id }) => {
    const timed = report.times?.networks.find((network) => network.id === id)?.latency;
    return timed ? [el("br"), el("small", {}, percentilesText(timed))] : [];
  };
  const range = (member) => (rangeText(member) ? [el("br"), el("small", {}, rangeText(member))] : []);
  const interval = ({ interval: [low, high] }) => `(${formatPercent(low)} to ${formatPercent(high)})`;
  const table = el("table", { id: "pick" },
    el("thead", {}, el("tr", {}, el("td"), both.map((member, index) => el("th", { scope: "col", "data-network": member.id },
      el("span", { class: "role" }, index ? "runner-up" : pick.id === chosenId ? "your pick" : "pick"), el("br"),
      el("code", {}, member.id), ` ${report.spaces[member.space]}${member.dtype ? `, ${member.dtype}` : ""}${member.id === report.knee ? ", knee" : ""}`)))),
    el("tbody", {},
      row(report.metric, (member) => [el("strong", {}, formatPercent(member.accuracy)), ` ${interval(member)}`, el("br"), el("small", {}, member.training)].flat()),
      row("latency", (member) => [el("strong", {}, formatLatency(member.latency_us)), " ", el("small", {}, member.latency_basis), ...range(member), ...samples(member)]),
      row("parameters, MACs", (member) => `${formatCount(member.params)}, ${formatCount(member.macs)}`),
      row("file size", (member) => `${formatBytes(member.file_bytes)}${member.is_file_size_estimated ? " (estimated: not exported yet)" : ""}`),
      row("peak memory", (member) => formatBytes(member.peak_memory_bytes)),
      row("architecture", (member) => [drawNetwork(member, isOneSpace ? both.find((other) => other !== member) : null), member.blocks.length ? el("small", {}, member.choices) : null])));
  const run = quoted(report.folder);
  const automatic = chosenId ? el("button", { type: "button", onclick: () => choose(chosenId) }, "pick by the limits again") : null;
  const beyond = chosenId && pick.id !== chosenId ? `${chosenId}, your pick, does not meet these limits. ` : "";
  const untrained = both.every((member) => member.is_trained) ? "" : " The error of an expected accuracy comes on top of it.";
  const comparison = pick.comparisons[runnerUp?.id] ? `${pick.id} is ${pick.comparisons[runnerUp.id]}. ` : "";
  words.replaceChildren(el("p", { class: "difference" }, beyond, pick.id === chosenId ? "" : `${reason()} `, comparison, automatic));
  details.replaceChildren(
    letScroll(el("div", { class: "scroll" }, table)),
    el("p", {}, el("small", {}, `In brackets: the 95% interval that ${report.judging_images} leave.${untrained} A bar is the block's share of the multiply-accumulates.${isOneSpace ? " Blocks with a dashed edge differ between the two." : ""}`)),
    el("p", {}, pick.files.length
      ? `${pick.id} is trained and exported: ${pick.files.join(", ")}. This command classifies an image:`
      : pick.is_trained ? "This command exports it and checks its files:" : "This command trains it to the end, exports it and checks its files:"),
    copyable(pick.files.length ? `python ${run}/${quoted(pick.files[0].replace(/[^/]*$/, "run.py"))} IMAGE` : `nas export ${run} --pick ${pick.id}`));
}

function drawChoose() {
  const plot = document.getElementById("front-plot");
  const controls = Object.keys(LIMITS).map(limitControl);
  document.getElementById("limits").append(...controls.filter((control) => control !== null));
  let redraw = drawFront(plot, "latency_us");
  const further = report.axes.filter((axis) => report.networks.costs[axis.column]?.some((value) => value !== null));
  if (further.length) {
    const select = el("select", { id: "front-axis", onchange: () => { redraw = drawFront(plot, select.value); } },
      el("option", { value: "latency_us" }, "latency"), further.map((axis) => el("option", { value: axis.column }, axis.label)));
    document.getElementById("limits").append(el("div", { class: "limit-control" }, el("label", { for: "front-axis" }, "horizontal axis"), select));
  }
  const picked = document.getElementById("picked");
  onLimits(() => redraw());
  onBrush(() => redraw());
  onPick(() => drawPick(picked));
}

drawChoose();
