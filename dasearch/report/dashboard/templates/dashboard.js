"use strict";
const POLL = 2000; // milliseconds between questions to the server
const EASE = 5; // a page that takes t to read again waits 5 t, so that watching does not slow the study
const root = document.documentElement;
const main = document.getElementById("main");
const announcement = document.getElementById("announcement");
const gone = document.getElementById("gone");
const phone = matchMedia("(max-width: 700px)"); // there the toolbar would lie on the axis's title
const NEEDLESS = ["zoom2d", "pan2d", "select2d", "lasso2d", "autoScale2d"]; // dragging zooms, nothing is selected
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let version = main.dataset.version;

const parse = text => new DOMParser().parseFromString(text, "text/html");
const announce = text => { announcement.textContent = text; };

async function ask(address) {
  const response = await fetch(address, { cache: "no-store" });
  if (response.ok) return response;
  const told = await response.text();
  let sentence = `the server answers ${response.status}`;
  try { sentence = JSON.parse(told).error; } catch { /* a page, not JSON */ }
  throw new Error(sentence);
}

// --- theme ---
const theme = () => root.dataset.theme || (prefersDark.matches ? "dark" : "light");
const switcher = document.getElementById("theme");
const THEMES = ["auto", "light", "dark"];
function showTheme() {
  switcher.querySelector("span").textContent = root.dataset.theme || "auto";
  drawVisible();
}
switcher.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(root.dataset.theme || "auto") + 1) % THEMES.length];
  if (next === "auto") {
    delete root.dataset.theme;
    localStorage.removeItem("dasearch-theme");
  } else {
    root.dataset.theme = next;
    localStorage.setItem("dasearch-theme", next);
  }
  showTheme();
});
prefersDark.addEventListener("change", showTheme);

// --- figures: drawn when they come into sight, and again when the study or the theme changed ---
const drawn = new WeakMap();
const visible = new Set();
const sight = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { visible.add(target); draw(target); } else visible.delete(target);
  }
}, { rootMargin: "200px" });

async function draw(place) {
  const wanted = `${version} ${theme()}`;
  if (drawn.get(place) === wanted) return;
  drawn.set(place, wanted);
  const caption = place.closest("figure").querySelector("figcaption strong");
  try {
    const address = new URL(place.dataset.figure, location);
    address.searchParams.set("theme", theme());
    const spec = await (await ask(address)).json();
    if (drawn.get(place) !== wanted) return;
    const layout = { ...spec.layout, autosize: true, uirevision: "kept" };
    if (phone.matches) layout.dragmode = false; // dragging scrolls the page
    const config = {
      responsive: true, displaylogo: false, displayModeBar: phone.matches ? false : "hover", modeBarButtonsToRemove: NEEDLESS,
      showSendToCloud: false, // plotly's default is a button that sends the figure's data to its servers
    };
    await Plotly.react(place, spec.data, layout, config);
    caption.textContent = spec.layout.meta.says;
    const title = place.getAttribute("aria-label").split(". ")[0];
    place.setAttribute("aria-label", `${title}. ${spec.layout.meta.says}`);
  } catch (error) {
    if (drawn.get(place) === wanted) drawn.delete(place);
    if (!place.data) caption.textContent = `This figure cannot be shown: ${error.message}.`;
  }
}
function drawVisible() {
  for (const place of visible) place.isConnected ? draw(place) : visible.delete(place);
}
function watchFigures() {
  for (const place of main.querySelectorAll("[data-figure]")) sight.observe(place);
}

// --- numbers of a figure ---
async function fill(details) {
  const place = details.querySelector("[data-own]");
  try {
    const page = parse(await (await ask(details.dataset.numbers)).text());
    place.replaceChildren(...page.getElementById("numbers").children);
    sortAgain(place);
  } catch (error) {
    place.textContent = `The numbers cannot be read: ${error.message}.`;
  }
}
main.addEventListener("toggle", ({ target }) => {
  if (target.matches("details[data-numbers]") && target.open) fill(target);
}, true);
function fillOpen() {
  for (const details of main.querySelectorAll("details[data-numbers][open]")) fill(details);
}

// --- tables ---
const number = text => {
  const found = /^[<+-]?[\d,]*\.?\d+(e[+-]?\d+)?/i.exec(text);
  return found ? parseFloat(found[0].replace(/[<,]/g, "")) : NaN;
};
function sort(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map(row => [row.cells[column].textContent.trim(), row]);
  const numeric = rows.every(([text]) => text === "" || !Number.isNaN(number(text)));
  const order = ([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what has no value stands last
    return direction * (numeric ? number(a) - number(b) : a.localeCompare(b, undefined, { numeric: true }));
  };
  const sorted = rows.sort(order).map(([, row]) => row);
  if (sorted.some((row, index) => row !== body.rows[index])) body.append(...sorted);
}
main.addEventListener("click", ({ target }) => {
  const button = target.closest("th button");
  if (!button) return;
  const heading = button.closest("th");
  const table = heading.closest("table");
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  sort(table, heading.cellIndex, descending ? -1 : 1);
  announce(`sorted by ${button.textContent}, ${descending ? "descending" : "ascending"}`);
});
function sortAgain(place) {
  for (const heading of place.querySelectorAll("th[aria-sort]")) {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? 1 : -1;
    sort(heading.closest("table"), heading.cellIndex, direction);
  }
}

// --- live: the page as the server would write it now is laid over the page that is there ---
const key = node => (node.nodeType === Node.ELEMENT_NODE && (node.dataset.key || node.id)) || null;
function overlay(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.hasAttribute("data-own")) return; // the reader's or a script's
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const keyed = new Map([...old.children].filter(key).map(child => [key(child), child]));
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const mine = key(wanted) ? keyed.get(key(wanted)) : at && !key(at) ? at : null;
    if (!mine || mine.nodeName !== wanted.nodeName) {
      old.insertBefore(wanted, at);
      continue;
    }
    if (mine === at) at = at.nextSibling; else old.insertBefore(mine, at);
    overlay(mine, wanted);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}
async function refresh() {
  const page = parse(await (await ask(location.href)).text());
  const fresh = page.getElementById("main");
  const focused = document.activeElement;
  const before = document.getElementById("now")?.textContent;
  overlay(main, fresh);
  version = fresh.dataset.version;
  document.title = page.title;
  sortAgain(main);
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  const now = document.getElementById("now")?.textContent;
  if (now && now !== before) announce(now);
  watchFigures();
  drawVisible();
  fillOpen();
}
async function current() {
  const asked = main.dataset.watch.split(" ").map(async address => (await (await ask(address)).json()).version);
  return (await Promise.all(asked)).join(" ");
}
let since = null;
function showGone(error) {
  since ??= new Date();
  const reason = error instanceof TypeError ? "The server does not answer" : `${error.message}`;
  gone.textContent = `${reason}; what you see is from before ${since.toLocaleTimeString()}. Trying again.`;
  gone.hidden = false;
}
async function follow() {
  const began = performance.now();
  if (!document.hidden) {
    try {
      if (await current() !== version) await refresh();
      gone.hidden = true;
      since = null;
    } catch (error) {
      showGone(error);
    }
  }
  setTimeout(follow, Math.max(POLL, EASE * (performance.now() - began)));
}

switcher.hidden = false;
showTheme();
watchFigures();
fillOpen(); // what was opened before this script was there
if (main.dataset.watch) setTimeout(follow, POLL);
