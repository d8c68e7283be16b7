/* Where the time of a network goes: a bar for each kernel, by stage. */

const PARTS = [
  { name: "kernel", css: "part-kernel", value: (launch) => launch.warm_us },
  { name: "waiting for weights", css: "part-cold", value: (launch) => launch.cold_us },
  { name: "launch", css: "part-launch", value: (launch) => launch.launch_us },
];

/** Return the launches of a network by stage: [{ name, launches, us }]. */
function stagesOf(section, table) {
  let at = 0;
  return table.stages.map(([name, count]) => {
    const launches = Array.from({ length: count }, () => {
      const launch = { kernel: section.kernels[table.kernels[at]], cold_us: table.cold_us[at], launch_us: table.launch_us[at] };
      at += 1;
      launch.warm_us = launch.kernel.warm_us;
      launch.us = launch.warm_us + launch.cold_us + launch.launch_us;
      return launch;
    });
    return { name, launches, us: launches.reduce((sum, launch) => sum + launch.us, 0) };
  });
}

/** Return what makes the latency of a kernel less sure, or nothing. */
function flagsOf(kernel) {
  return [kernel.uncertain, kernel.basis === "measured" ? "" : kernel.basis, kernel.note].filter(Boolean).join(", ");
}

/** Return the bar of a launch or a stage: its parts, as wide as their share of `most_us`. */
function timeBar(parts, most_us) {
  return el("span", { class: "time-bar", "aria-hidden": "true" }, parts.filter(({ us }) => us > 0).map(({ us, css }) =>
    el("span", { class: css, style: `width:${((100 * us) / most_us).toFixed(2)}%` })));
}

const partsOf = (launches) => PARTS.map(({ css, value }) => ({ css, us: launches.reduce((sum, each) => sum + value(each), 0) }));

/** Return the percentiles of some timings in words. */
function percentilesText({ samples, median_us, p95_us, p99_us, slowest_us }) {
  const parts = [`median ${formatLatency(median_us)}`];
  if (p95_us !== null) parts.push(`95% below ${formatLatency(p95_us)}`);
  if (p99_us !== null) parts.push(`99% below ${formatLatency(p99_us)}`);
  return `${parts.join(", ")}, slowest ${formatLatency(slowest_us)}, of ${samples} samples`;
}

function drawTimes(container, section) {
  const timesById = new Map(section.networks.map((network) => [network.id, network]));
  const select = el("select", { id: "times-network", onchange: draw },
    el("option", { value: "" }, "the pick"), section.networks.map(({ id }) => el("option", { value: id }, id)));
  const types = el("span", { role: "group", "aria-label": "type of weights and activations" });
  const body = el("div", {}), pointed = el("div", { class: "pointed" });
  let type = null; // the position of the table that is shown: 0 is the network's own type

  container.replaceChildren(
    el("p", { class: "times-controls" }, el("label", { for: "times-network" }, "network "), select, types),
    el("ul", { class: "legend" }, PARTS.map(({ name, css }) => el("li", {}, el("span", { class: `swatch ${css}` }), name))),
    body);

  const shown = () => timesById.get(select.value || pick?.id);

  function draw() {
    const network = shown();
    select.options[0].textContent = pick ? `the pick (${pick.id})` : "the pick";
    types.replaceChildren();
    if (!network) {
      body.replaceChildren(el("p", { class: "missing" }, "No network is picked."));
    } else if (!network.tables.length) {
      body.replaceChildren(el("p", { class: "note" }, `The kernels of ${network.id} are not known. ${network.problem}`));
    } else {
      drawNetworkTimes(network);
    }
  }

  function drawNetworkTimes(network) {
    type = Math.min(type ?? 0, network.tables.length - 1);
    if (network.tables.length > 1) {
      types.append(...network.tables.map((table, index) => el("button", { type: "button", "aria-pressed": String(index === type),
        onclick: () => { type = index; draw(); types.children[index].focus(); } }, table.dtype)));
    }
    const table = network.tables[type], stages = stagesOf(section, table);
    const all = network.tables.map((each) => stagesOf(section, each));
    const most_us = Math.max(...all.flat(2).flatMap((stage) => stage.launches.map((launch) => launch.us)));
    const { dtype, predicted_us } = table;
    const extra = [`start ${formatKernelLatency(table.start_us)}`, ...(table.correction_us ? [`correction ${formatKernelLatency(table.correction_us)}`] : [])];
    const timed = type === 0 && network.latency ? ` Timed as a whole network: ${percentilesText(network.latency)}.` : "";
    body.replaceChildren(
      el("p", {}, el("strong", {}, `${network.id}${network.tables.length > 1 ? ` in ${dtype}` : ""}: predicted ${formatLatency(predicted_us)}`),
        `, of which ${extra.join(" and ")} belong to no kernel.${timed}`),
      filesText(network.files),
      stripOf(network.id, stages), pointed,
      ...(all.length > 1 ? [comparisonOfTypes(network, all)] : []),
      kernelList(stages, most_us, predicted_us), kernelTable(stages, predicted_us));
    showPointed(highlighted);
  }

  function filesText(files) {
    const texts = Object.entries(files).map(([format, own]) => `${format}: ${percentilesText(own)}`);
    return texts.length ? el("p", {}, el("small", {}, `Its exported files. ${texts.join("; ")}.`)) : "";
  }

  /** Return one bar for a whole network, with a segment for each stage. */
  function stripOf(id, stages) {
    const total_us = stages.reduce((sum, stage) => sum + stage.us, 0);
    const text = stages.map((stage) => `${stage.name} ${formatKernelLatency(stage.us)} (${formatPercent(stage.us / total_us, 0)})`);
    return el("div", { class: "strip", role: "img", "aria-label": `${id}: ${text.join(", ")}` }, stages.map((stage, index) => {
      const share = stage.us / total_us;
      return el("span", { class: `strip-stage${index % 2 ? " odd" : ""}`, style: `width:${(100 * share).toFixed(2)}%`,
        onpointermove: (event) => tooltip.show(event.clientX, event.clientY, [stage.name, text[index], `${stage.launches.length} kernels`]),
        onpointerleave: () => tooltip.hide() }, share > 0.07 ? stage.name : "");
    }));
  }

  /** Show the stages of the network that is pointed at, in a place that is kept free for it. */
  function showPointed(id) {
    const network = timesById.get(id);
    const isOther = network?.tables.length && id !== shown()?.id;
    pointed.replaceChildren(...(isOther
      ? [el("small", {}, `${id}, pointed at: ${formatLatency(network.tables[0].predicted_us)}`), stripOf(id, stagesOf(section, network.tables[0]))]
      : [el("small", {}, "Point at another network to see its stages here.")]));
  }

  /** Return the bars of each stage in both types, and the operations that differ most. */
  function comparisonOfTypes(network, all) {
    const [first, second] = network.tables;
    const names = [...new Set(all.flat().map((stage) => stage.name))];
    const sums = all.map((stages) => names.map((name) => stages.filter((stage) => stage.name === name).flatMap((stage) => stage.launches)));
    const us = (launches) => launches.reduce((sum, launch) => sum + launch.us, 0);
    const most_us = Math.max(...sums.flat().map(us));
    const rows = names.flatMap((name, at) => network.tables.map((table, which) => el("tr", {},
      which ? null : el("th", { scope: "row", rowspan: 2 }, name), el("td", {}, table.dtype),
      el("td", { class: "bar-cell" }, timeBar(partsOf(sums[which][at]), most_us)), el("td", { class: "number" }, formatKernelLatency(us(sums[which][at]))))));
    const differences = network.differences.map(({ label, stage, times_us: [a, b] }) => el("li", {},
      `${label} (${stage}): ${formatKernelLatency(a)} in ${first.dtype}, ${formatKernelLatency(b)} in ${second.dtype}, ${b > a ? `${formatNumber(b / a, 2)} times as long` : `${formatNumber(a / b, 2)} times as fast`}`));
    return el("div", { class: "columns" },
      el("table", { class: "types" }, el("caption", {}, `${first.dtype} and ${second.dtype} by stage`), el("tbody", {}, rows)),
      el("div", {}, el("p", {}, `The operations that differ most, with their launches:`), el("ol", {}, differences),
        el("p", {}, el("small", {}, `Kernels that only one of the two has, such as conversions: ${formatKernelLatency(network.unmatched_us[0])} in ${first.dtype}, ${formatKernelLatency(network.unmatched_us[1])} in ${second.dtype}.`))));
  }

  /** Return the bars of all kernels. One of them is in the order of the Tab key; arrows move on. */
  function kernelList(stages, most_us, predicted_us) {
    const row = (launch) => {
      const lines = linesOf(launch), { kernel } = launch;
      const flags = [kernel.uncertain, kernel.basis === "measured" ? "" : "estimated"].filter(Boolean).join(", ");
      return el("li", { class: "kernel", tabindex: -1, "aria-label": lines.join(", "),
        onpointermove: (event) => tooltip.show(event.clientX, event.clientY, lines), onpointerleave: () => tooltip.hide(),
        onfocus: ({ target }) => showBelow(target, lines), onblur: () => tooltip.hide() },
      el("span", { class: "kernel-label" }, kernel.label, flags ? el("em", {}, ` ${flags}`) : null),
      timeBar(partsOf([launch]), most_us), el("span", { class: "kernel-time" }, formatKernelLatency(launch.us)));
    };
    const list = el("ol", { class: "kernels", "aria-label": "kernels in the order of their launches" }, stages.map((stage) =>
      el("li", { class: "kernel-stage" },
        el("span", { class: "kernel-head" }, el("strong", {}, stage.name), ` ${formatKernelLatency(stage.us)}, ${formatPercent(stage.us / predicted_us, 0)}`),
        el("ol", {}, stage.launches.map(row)))));
    const rows = [...list.querySelectorAll(".kernel")];
    rows[0]?.setAttribute("tabindex", 0);
    list.addEventListener("keydown", (event) => {
      if (event.key === "Escape") tooltip.hide();
      const at = rows.indexOf(event.target);
      const target = rows[{ ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key]];
      if (!target) return;
      event.preventDefault();
      for (const row of rows) row.setAttribute("tabindex", row === target ? 0 : -1);
      target.focus();
    });
    return list;
  }

  function showBelow(row, lines) {
    const box = row.getBoundingClientRect();
    tooltip.show(box.left + 0.3 * box.width, box.bottom, lines);
  }

  function linesOf({ kernel, us, warm_us, cold_us, launch_us }) {
    const cold = kernel.cold_us === null ? [] : [
      `with its weights in no cache ${formatKernelLatency(kernel.cold_us)}, by their size`];
    const flags = flagsOf(kernel);
    return [kernel.label, `${formatKernelLatency(us)} together`, `kernel ${formatKernelLatency(warm_us)}`, ...(cold_us ? [`waiting for weights ${formatKernelLatency(cold_us)}`] : []),
      `launch ${formatKernelLatency(launch_us)}`, ...cold, ...(flags ? [flags] : []), kernel.text];
  }

  function kernelTable(stages, predicted_us) {
    const heads = ["stage", "kernel", "kernel time", "weights in no cache", "waiting for weights", "launch", "together", "share", "in the latency table"];
    const rows = stages.flatMap((stage) => stage.launches.map(({ kernel, us, warm_us, cold_us, launch_us }) => {
      const numbers = [formatKernelLatency(warm_us), kernel.cold_us === null ? "–" : formatKernelLatency(kernel.cold_us), formatKernelLatency(cold_us), formatKernelLatency(launch_us), formatKernelLatency(us), formatPercent(us / predicted_us)];
      const flags = flagsOf(kernel);
      return el("tr", {}, el("td", {}, stage.name), el("td", {}, kernel.label), numbers.map((text) => el("td", { class: "number" }, text)),
        el("td", {}, el("code", {}, kernel.text), flags ? `, ${flags}` : null));
    }));
    const table = el("table", {},
      el("thead", {}, el("tr", {}, heads.map((head, at) => el("th", { scope: "col", class: at > 1 && at < 8 ? "number" : null }, head)))),
      el("tbody", {}, rows));
    return el("details", {}, el("summary", {}, "The same as a table"),
      letScroll(el("div", { class: "scroll" }, table)));
  }

  onHighlight(showPointed);
  onPick(() => { if (!select.value) draw(); });
}

if (report.times && !report.times.problem) drawTimes(document.getElementById("times-panel"), report.times);
