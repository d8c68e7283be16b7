/* What all parts of a page share: elements, formats, the tooltip, and the network that is pointed
   at. Texts of the document are untrusted: they become text nodes, never markup. */

/** The document behind the page, see nas/report/document.py. */
const report = JSON.parse(document.getElementById("report").textContent);

function append(parent, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") parent.addEventListener(name.slice(2), value);
    else parent.setAttribute(name, value === true ? "" : value);
  }
  parent.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return parent;
}

/** Return an HTML element. Attributes that are functions listen: `onclick` to `click`. */
function el(tag, attributes = {}, ...children) {
  return append(document.createElement(tag), attributes, children);
}

/** Return an SVG element, see `el`. */
function svg(tag, attributes = {}, ...children) {
  return append(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** Return a number with so many significant digits, without an exponent or trailing zeros. */
function formatNumber(value, digits = 4) {
  if (value === 0) return "0";
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return value.toLocaleString("en", { maximumFractionDigits: Math.min(places, 20) });
}

function formatPercent(fraction, places = 1) {
  return `${(100 * fraction).toFixed(places)}%`;
}

/** Return a number with an SI prefix: 1234567 as 1.23M. */
function formatCount(value) {
  for (const [factor, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= factor) return `${formatNumber(value / factor, 3)}${prefix}`;
  }
  return formatNumber(value, 3);
}

function formatBytes(count) {
  const isLarge = count >= 1024 ** 2;
  return `${formatNumber(count / 1024 ** (isLarge ? 2 : 1), 3)} ${isLarge ? "MiB" : "KiB"}`;
}

/** Return the latency of a network with its unit, see nas/figures.py. */
function formatLatency(us) {
  return `${formatNumber(us / unit.us)} ${unit.name}`;
}

/** Return the latency of a part of a network with its unit. */
function formatKernelLatency(us) {
  return `${formatNumber(us / kernelUnit.us, 3)} ${kernelUnit.name}`;
}

/** The box beside the pointer. Its lines are also in the label of what it describes. */
const tooltip = {
  box: document.body.appendChild(el("div", { id: "tooltip", "aria-hidden": "true", hidden: true })),
  show(x, y, lines) {
    const [title, ...others] = lines;
    this.box.replaceChildren(
      el("strong", {}, title), ...others.flatMap((line) => [el("br"), line]));
    this.box.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const left = x + 14 + width > window.innerWidth ? x - 14 - width : x + 14;
    this.box.style.left = `${Math.max(4, left)}px`;
    this.box.style.top = `${Math.max(4, Math.min(y + 10, window.innerHeight - height - 4))}px`;
  },
  hide() {
    this.box.hidden = true;
  },
};

const highlightListeners = [];
let highlighted = null;

/** Call a function with the ID of the network that is pointed at, or null, when it changes. */
function onHighlight(listener) {
  highlightListeners.push(listener);
}

/** Light a network up in all plots and tables; null for none. */
function highlight(id) {
  if (id === highlighted) return;
  highlighted = id;
  for (const listener of highlightListeners) listener(id);
}

onHighlight((id) => {
  for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
  if (id === null) return;
  for (const own of document.querySelectorAll(`[data-network="${CSS.escape(id)}"]`)) {
    own.classList.add("lit");
  }
});

for (const event of ["pointerover", "focusin"]) {
  document.addEventListener(event, ({ target }) => {
    if (target.closest(".plot")) return; // A plot looks for the nearest point itself.
    highlight(target.closest("[data-network]")?.dataset.network ?? null);
  });
}

/** List the headings of the page in its element of class `contents`. */
function listContents(nav) {
  for (const heading of document.querySelectorAll("h2")) {
    const target = heading.id ? heading : heading.closest("section[id]");
    if (target) nav.append(el("a", { href: `#${target.id}`, onclick: (event) => {
      event.preventDefault(); // The address keeps the limits.
      target.scrollIntoView();
    } }, heading.textContent));
  }
}

document.querySelectorAll("nav.contents").forEach(listContents);

/** Sort the rows of each table of class `sortable` by the column whose head is pressed. */
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim() || head.classList.contains("unsorted")) return;
    const button = el("button", { type: "button", class: "sort" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        const text = cell?.dataset.value ?? cell?.textContent.trim() ?? "";
        const number = parseFloat(text.replace(/,/g, ""));
        return Number.isNaN(number) ? text : number;
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [key(row), row]);
      // Numbers come before texts, such as "not measured".
      rows.sort(([a], [b]) => {
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);

/** Let the keyboard reach a box while it is smaller than the table in it, so that it can scroll. */
function letScroll(box) {
  const update = () => {
    const isWide = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    for (const [name, value] of Object.entries({ tabindex: 0, role: "group", "aria-label": "table that scrolls" })) {
      if (isWide) box.setAttribute(name, value);
      else box.removeAttribute(name);
    }
  };
  update();
  new ResizeObserver(update).observe(box);
  return box;
}

document.querySelectorAll(".scroll").forEach(letScroll);
