/* The page of a running job loads itself anew. The address keeps the limits. */

const RELOAD_S = 180;

function drawProgress(container) {
  if (report.progress?.state !== "running") return;
  const box = el("input", { type: "checkbox", id: "reload" });
  box.checked = true;
  container.append(el("p", {}, el("label", {}, box, ` load this page anew every ${RELOAD_S / 60} minutes`)));
  setInterval(() => {
    if (box.checked) window.location.reload();
  }, 1000 * RELOAD_S);
}

drawProgress(document.getElementById("progress"));
