/* The state of the page of a run: its networks, the limits, and the network that is picked. */

const columns = report.networks;

/** Every architecture that the search scored: { id, space, accuracy, latency_us, ...costs }. */
const networks = columns.id.map((id, index) => ({
  id,
  space: columns.space[index],
  accuracy: columns.accuracy[index],
  predicted_us: columns.predicted_us[index],
  measured_us: columns.measured_us[index],
  latency_us: columns.measured_us[index] ?? columns.predicted_us[index],
  ...Object.fromEntries(Object.entries(columns.costs).map(([name, values]) => [name, values[index]])),
}));
const byId = new Map(networks.map((network) => [network.id, network]));

/** What can be chosen: the members of the front, the fastest first, with their costs. */
const members = report.members.map((member) => ({ ...byId.get(member.id), ...member }));
const memberById = new Map(members.map((member) => [member.id, member]));

/** The limits, by the names that `nas select` has for them. */
const LIMITS = Object.fromEntries(report.limits.map(({ name, column, label, scale, is_maximised, is_whole }) => [name, {
  label, scale, isSmallest: is_maximised, isWhole: is_whole,
  value: column === "latency_ms" ? (network) => network.latency_us / 1000 : (network) => network[column],
}]));
const limits = Object.fromEntries(Object.keys(LIMITS).map((name) => [name, null]));
let chosenId = null; // what was chosen by hand; null for what the limits say
let isExceeded = false; // whether more is expected of a member than of the first of `equals`
let equals = []; // the most accurate member within the limits, and those that the images do not tell from it
let pick = null;
let runnerUp = null;

const limitListeners = [], pickListeners = [];

/** Call a function when a limit has changed. */
function onLimits(listener) {
  limitListeners.push(listener);
}

/** Call a function with the pick, a member or null, now and when it has changed. */
function onPick(listener) {
  pickListeners.push(listener);
  listener(pick);
}

/** Return whether a network meets the limits. What is not known of it violates none. */
function isWithin(network) {
  return Object.entries(LIMITS).every(([name, { value, isSmallest }]) => {
    const own = value(network);
    if (limits[name] === null || own === undefined || own === null || Number.isNaN(own)) return true;
    return isSmallest ? own >= limits[name] : own <= limits[name];
  });
}

const isIdWithin = (id) => isWithin(memberById.get(id) ?? byId.get(id) ?? {});

const brushedOut = new Map(), brushListeners = [];

/** Show networks of a space pale in all plots: those outside of the ranges of its axes. */
function brushOut(space, ids) {
  if (!ids.size && !brushedOut.has(space)) return;
  brushedOut.set(space, ids);
  for (const listener of brushListeners) listener();
}

/** Call a function when other networks are brushed out. */
function onBrush(listener) {
  brushListeners.push(listener);
}

/** Return whether plots show a network in full: it meets the limits and is not brushed out. */
const isShown = (id) => isIdWithin(id) && ![...brushedOut.values()].some((ids) => ids.has(id));

/** Choose as `nas select` does: the fastest member that the images do not tell from the best one within the limits. */
function updatePick() {
  const within = members.filter(isWithin);
  within.sort((a, b) => b.accuracy - a.accuracy || a.latency_us - b.latency_us);
  const own = within.find((member) => member.id === chosenId);
  const [most] = within;
  // A trained member within the interval of an accuracy that is only expected is better than that.
  const best = (most?.is_expected && within.find((member) => !member.is_expected && member.accuracy >= most.interval[0])) || most;
  equals = best ? [best, ...within.filter(({ id }) => best.equals.includes(id))] : [];
  isExceeded = best !== most;
  const [fastest] = [...equals].sort((a, b) => a.is_expected - b.is_expected || a.latency_us - b.latency_us);
  pick = own ?? fastest ?? null;
  runnerUp = within.find((member) => member !== pick) ?? null;
  for (const listener of limitListeners) listener();
  for (const listener of pickListeners) listener(pick);
}

function setLimit(name, value) {
  limits[name] = value;
  updatePick();
  writeAddress();
}

/** Pick a member of the front by hand; null for what the limits say. */
function choose(id) {
  if (id !== null && !memberById.has(id)) return;
  chosenId = id === chosenId ? null : id;
  updatePick();
  writeAddress();
}

/** Keep limits and pick in the address, so that a view can be sent: `#max_latency_ms=2`. */
function writeAddress() {
  const entries = Object.entries(limits).filter(([, value]) => value !== null);
  if (chosenId !== null) entries.push(["pick", chosenId]);
  const text = new URLSearchParams(entries).toString();
  history.replaceState(null, "", text ? `#${text}` : window.location.pathname);
}

function readAddress() {
  const values = new URLSearchParams(window.location.hash.slice(1));
  for (const name of Object.keys(limits)) {
    const value = parseFloat(values.get(name));
    limits[name] = value > 0 ? value : null;
  }
  chosenId = memberById.has(values.get("pick")) ? values.get("pick") : null;
  updatePick();
}

window.addEventListener("hashchange", readAddress);
readAddress();

// Rows of networks: those beyond the limits are pale, and a press on an ID picks the network.
onPick(() => {
  for (const row of document.querySelectorAll("tr[data-network]")) {
    row.classList.toggle("beyond", !isIdWithin(row.dataset.network));
    row.classList.toggle("picked", row.dataset.network === pick?.id);
    row.querySelector("button.pick")?.setAttribute("aria-pressed", row.dataset.network === pick?.id);
  }
});
for (const id of document.querySelectorAll("tr[data-network] td:first-child code")) {
  if (!memberById.has(id.textContent)) continue;
  const button = el("button", { type: "button", class: "pick", "aria-label": `pick ${id.textContent}`,
    onclick: () => choose(button.textContent) }, id.textContent);
  id.replaceChildren(button);
}
