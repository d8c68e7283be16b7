/* The plots of the details: predictions, the ranking, trainings and the search. */

const holderOf = (id) => document.getElementById(id);

function drawAgreement(container) {
  const both = networks.filter((network) => network.measured_us !== null && network.predicted_us !== null);
  if (!both.length) return;
  const redraw = scatterPlot(container, {
    name: "predicted over measured latency", diagonal: true, height: 340, describe, isVisible: isShown,
    x: { label: `${report.basis === "measured" ? "measured" : "estimated"}, ${unit.name} (whole network)` },
    y: { label: `predicted, ${unit.name}` },
    clouds: report.spaces.map((name, space) => ({
      name, space, size: 4,
      points: both.filter((network) => network.space === space)
        .map((network) => ({ id: network.id, x: network.measured_us / unit.us, y: network.predicted_us / unit.us })),
    })),
  });
  onLimits(redraw);
  onBrush(redraw);
}

function drawRanking(container) {
  if (!report.ranked.length) return;
  scatterPlot(container, {
    name: "accuracy of standalone training over the supernet's", diagonal: true, height: 340,
    x: { label: "supernet, %" }, y: { label: "standalone training, %" },
    clouds: report.spaces.map((name, space) => ({
      name, space, size: 4,
      points: report.ranked.filter((network) => network.space === space).map((network) => ({
        x: 100 * network.supernet_accuracy, y: 100 * network.standalone_accuracy,
        text: [name, `supernet ${formatPercent(network.supernet_accuracy)}`, `standalone ${formatPercent(network.standalone_accuracy)}`],
      })),
    })),
  });
}

function drawDetails() {
  const plots = {
    "agreement-plot": drawAgreement,
    "ranking-plot": drawRanking,
    "loss-plot": (own) => report.training_loss.length && linePlot(own, {
      name: "loss of the supernets", lines: report.training_loss, x: { label: "training, %" }, y: { label: "loss of the largest network" } }),
    "training-plot": (own) => report.training_accuracy.length && linePlot(own, {
      name: "accuracy of the supernets", lines: report.training_accuracy, yScale: 100,
      x: { label: "training, %" }, y: { label: "accuracy on training batches, %" } }),
    "hypervolume-plot": (own) => report.hypervolume.length && linePlot(own, {
      name: "hypervolume of the front over the search", lines: report.hypervolume, step: "after",
      x: { label: "architectures scored", min: 0 }, y: { label: "hypervolume of the front" } }),
    "coverage-plot": (own) => report.coverage.length && linePlot(own, {
      name: "accuracy on the images that are answered", lines: report.coverage, yScale: 100,
      x: { label: "hold-out images answered, %" }, y: { label: "of these right, %" } }),
  };
  for (const [id, draw] of Object.entries(plots)) {
    if (holderOf(id)) draw(holderOf(id));
  }
}

drawDetails();
