/* The plots of the page that compares runs. A run has the colour and marker of its position. */

const { runs, pairs } = report;

/** Draw the fronts of some runs over one pair of axes. */
function drawFronts(container, shown) {
  const points = shown.flatMap((at) => [
    ...runs[at].front.map((member) => ({
      id: member.id, space: at, kind: "member", x: member.latency_us / unit.us, y: 100 * member.accuracy,
      text: [`${member.id} in ${runs[at].label}`, `score ${formatPercent(member.accuracy)}`,
        `${formatLatency(member.latency_us)} ${member.basis}`],
    })),
    ...runs[at].trained.map((model) => ({
      id: model.id, space: at, kind: "trained", x: model.latency_us / unit.us, y: 100 * model.accuracy,
      low: 100 * model.interval[0], high: 100 * model.interval[1],
      text: [`${model.id} in ${runs[at].label}`, model.training,
        `${formatPercent(model.accuracy)} (${formatPercent(model.interval[0])} to ${formatPercent(model.interval[1])})`,
        formatLatency(model.latency_us)],
    })),
  ]);
  if (!points.length) {
    container.replaceChildren(el("p", { class: "missing" }, "There is no network on the front."));
    return;
  }
  const { metric } = runs[shown[0]];
  scatterPlot(container, {
    name: `${metric} over latency, the fronts of ${shown.map((at) => runs[at].label).join(", ")}`,
    x: { label: `latency, ${unit.name}`, log: true },
    y: { label: `${metric}, %` },
    points,
    lines: shown.map((at) => ({
      name: runs[at].label, space: at, style: ["solid", "dashed", "dotted"][at % 3], step: "after",
      points: stepsOf(runs[at].front.map((member) => ({ x: member.latency_us / unit.us, y: 100 * member.accuracy }))),
    })),
  });
}

// Accuracies of different images have no common axis.
const holder = document.getElementById("front-plots");
for (const group of report.groups) drawFronts(holder.appendChild(el("div")), group);

/** Draw the latency of the architectures of two runs in both. */
function drawLatencies(container, { first, second, points }) {
  const inWords = (point, at) => `${formatLatency(point.us[at])} ${point.basis[at]} in ${runs[at ? second : first].label}`;
  const describe = (point) => ({
    id: point.id, x: point.us[0] / unit.us, y: point.us[1] / unit.us,
    text: [point.id, inWords(point, 0), inWords(point, 1)],
  });
  const isOnFront = (point) => point.is_on_front.includes(true);
  const kinds = [
    [first, ([one, other]) => one && !other, `only on the front of ${runs[first].label}`],
    [second, ([one, other]) => other && !one, `only on the front of ${runs[second].label}`],
  ];
  scatterPlot(container, {
    name: `latency in ${runs[second].label} over latency in ${runs[first].label}`,
    x: { label: `latency in ${runs[first].label}, ${unit.name}`, log: true },
    y: { label: `latency in ${runs[second].label}, ${unit.name}`, log: true },
    clouds: [{ name: "on no front", space: null, points: points.filter((point) => !isOnFront(point)).map(describe) },
      ...kinds.map(([space, , name]) => ({ name, space, points: [] }))],
    points: points.filter(isOnFront).map((point) => ({
      ...describe(point), kind: "member",
      space: point.is_on_front[0] && point.is_on_front[1] ? null : point.is_on_front[0] ? first : second,
    })),
    legend: ["edged and grey: on both fronts"],
  });
}

for (const container of document.querySelectorAll(".latency-plot")) {
  drawLatencies(container, pairs[container.dataset.pair]);
}
