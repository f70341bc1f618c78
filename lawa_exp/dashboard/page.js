"use strict";
// The page: what is chosen is in `view`; `render` draws everything from it and from `data`. No library, no network.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const KINDS = { lawa: 255, ema: 45, swa: 150, wma: 310, power_ema: 355, bema: 95 }; // hue of the curves
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const MAPS = 12; // heat maps shown at once
const HEIGHT = 400, LEFT = 64, RIGHT = 16, TOP = 12, BOTTOM = 44; // of the chart, in pixels
const SETTLED = 0.15; // share of a run after which the live curve decides how high the axis goes, as in curves.png

const view = {
  mode: "runs", // or groups: means over seeds
  words: "",
  states: new Set(data.states),
  sort: null, // {column, down}
  picked: new Set(), // items of the mode
  off: new Set(data.averagers.map((a) => a.id).filter((id) => !data.shown.includes(id))),
  metric: "loss",
  colours: "saved", // of the heat maps; or gap
  paint: "weights", // what gives curves their colours: weights, or a setting
  allMaps: false,
};
const METRICS = { // by name: what an axis says, and whether higher is better
  loss: { label: `validation loss (${data.unit})`, digits: 4 },
  accuracy: { label: "validation accuracy (share right)", higher_is_better: true, digits: 4 },
  ...data.metrics,
};
const OWN = Object.keys(data.metrics ?? {}); // those that tasks add
const styles = Object.fromEntries(data.averagers.map((a) => {
  const same = data.averagers.filter((other) => other.kind === a.kind);
  const place = same.indexOf(a);
  return [a.id, { hue: KINDS[a.kind] ?? 200, tone: same.length > 1 ? place / (same.length - 1) : 0.3,
    dash: DASHES[place % DASHES.length] }];
}));

/** An element: its tag, attributes (on...: a listener; text), children. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g", "circle", "rect"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A button that stays pressed; `pressed` is asked for anew with every render. */
function toggle(text, pressed, click, ...before) {
  const button = make("button", { type: "button", "aria-pressed": String(pressed),
    onclick: () => { click(); render(); } });
  button.append(...before, text);
  return button;
}

/** One of several: [value, label] of view[key]. */
function choice(target, key, options) {
  $(target).replaceChildren(...options.map(([value, label]) => toggle(label, view[key] === value, () => {
    view[key] = value;
    if (key === "mode") { view.picked.clear(); view.sort = null; }
  })));
}

const number = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 5 });

/** The items that pass the filter, in the table's order. A word like seed=1 must be a whole cell of that column. */
function visible() {
  const columns = data.columns[view.mode];
  const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
  const passes = (item) => words.every((word) => {
    const [key, value] = word.split("=");
    const column = value === undefined ? -1 : columns.findIndex((name) => name.toLowerCase() === key);
    if (column >= 0) return item.cells[column][1].toLowerCase() === value;
    return item.cells.some(([, text]) => text.toLowerCase().includes(word));
  });
  const found = data[view.mode].filter((item) => (!item.state || view.states.has(item.state)) && passes(item));
  if (!view.sort) return found;
  const { column, down } = view.sort;
  const missing = (value) => value === null || value === "";
  return found.sort((one, two) => {
    const [a, b] = [one.cells[column][0], two.cells[column][0]];
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return down ? -order : order;
  });
}

let picked = []; // those of view.picked that pass the filter

function render() {
  const items = visible();
  picked = items.filter((item) => view.picked.has(item));
  $("count").textContent = `${items.length} of ${data[view.mode].length} shown`;
  $("states").replaceChildren(...(view.mode === "runs" ? data.states : []).map((state) => {
    const n = data.runs.filter((run) => run.state === state).length;
    return toggle(`${n} ${state}`, view.states.has(state), () => flip(view.states, state));
  }));
  if (data.groups.length && data.groups.length < data.runs.length) {
    choice("mode", "mode", [["runs", "each run"], ["groups", "mean over seeds"]]);
  }
  choice("colours", "colours", [["saved", "steps saved"], ["gap", "loss less live"],
    ...OWN.map((name) => [name, `${name} less live`])]);
  const drawable = Object.keys(METRICS).filter((name) =>
    data[view.mode].some((item) => Object.values(item.curves).some((curve) => curve[name])));
  if (drawable.some((name) => name !== "loss")) {
    if (!drawable.includes(view.metric)) view.metric = "loss";
    choice("metric", "metric", drawable.map((name) => [name, name]));
  } else {
    view.metric = "loss";
    $("metric").textContent = "loss";
  }
  const settings = data.settings.filter((key) => data.columns[view.mode].includes(key));
  if (!settings.includes(view.paint)) view.paint = "weights";
  if (settings.length) choice("paint", "paint", ["weights", ...settings].map((key) => [key, `colour: ${key}`]));
  palette = newPalette();
  drawTable(items);
  drawDetails(picked.length ? picked : items.length === 1 ? items : []);
  drawLegend(items);
  drawChart(items);
  drawMaps(picked.length ? picked : items);
}

const flip = (set, value) => set.has(value) ? set.delete(value) : set.add(value);

function drawTable(items) {
  const columns = data.columns[view.mode];
  const used = columns.map((_, i) => items.some((item) => item.cells[i][1] !== ""));
  const numeric = columns.map((_, i) => items.every(({ cells }) => cells[i][0] === null || cells[i][0] === ""
    || typeof cells[i][0] === "number") && columns[i] !== "state");
  const shown = columns.map((_, i) => i).filter((i) => used[i] || i === 0);
  const sorted = (i) => view.sort?.column === i ? (view.sort.down ? "descending" : "ascending") : null;
  const sortBy = (i) => {
    view.sort = { column: i, down: view.sort?.column === i && !view.sort.down };
    render();
  };
  $("table").tHead.replaceChildren(make("tr", {}, ...shown.map((i) => make("th", {
    scope: "col", text: columns[i], class: numeric[i] ? "number" : null, tabindex: 0, "aria-sort": sorted(i),
    onclick: () => sortBy(i), onkeydown: (event) => event.key === "Enter" && sortBy(i),
  }))));
  $("table").tBodies[0].replaceChildren(...items.map((item) => {
    const pick = () => { flip(view.picked, item); render(); };
    return make("tr", {
      "aria-selected": String(view.picked.has(item)), tabindex: 0,
      onclick: (event) => event.target.closest("a") || pick(),
      onkeydown: (event) => event.key === "Enter" && event.target.tagName === "TR" && pick(),
      onmouseenter: () => pointAt(item), onmouseleave: () => pointAt(null),
    }, ...shown.map((i) => cell(item, columns[i], item.cells[i][1], numeric[i])));
  }));
}

function cell(item, column, text, isNumber) {
  const td = make("td", { class: isNumber ? "number" : column === "note" ? "note" : null, title: text.length > 20 ? text : null });
  if (column === "run" && item.link) td.append(make("a", { href: item.link, text }));
  else if (column === "state") td.append(make("span", { class: `state ${text}`, text }));
  else td.append(text);
  if (column === "step" && item.done !== null && item.done < 1) {
    td.append(make("span", { class: "done-bar" }, make("i", { style: `width:${100 * item.done}%` })));
  }
  return td;
}

/** What the averages of the items that are singled out say, and their files. */
function drawDetails(items) {
  $("details").hidden = !items.length;
  $("details").replaceChildren(...items.slice(0, 3).flatMap((item) => {
    const heads = ["weights", "val loss", "to live", "steps saved", "range", "at step",
      ...OWN.flatMap((name) => [`val ${name}`, "to live"])];
    const rows = item.lines.map((line) => [line.weights, ...line.texts]);
    const kept = heads.map((_, i) => i).filter((i) => rows.some((row) => row[i]));
    const lines = make("table", {}, make("tr", {}, ...kept.map((i) => make("th", { text: heads[i] }))),
      ...rows.map((row, n) => make("tr", { class: item.lines[n].best ? "best" : null },
        ...kept.map((i) => make("td", { text: row[i] })))));
    const tests = make("table", {}, make("tr", {}, make("th", { text: "weights" }), make("th", { text: "test loss" }),
        ...OWN.map((name) => make("th", { text: `test ${name}` }))),
      ...item.test.map((row) => make("tr", {}, ...row.map((text) => make("td", { text })))));
    const about = make("div", { class: "columns" });
    if (rows.length) about.append(lines);
    if (item.test.length) about.append(tests);
    if (item.starts.length) {
      about.append(make("div", {}, make("div", { class: "hint", text: `${item.starts.length} start(s)` }),
        ...item.starts.slice(-5).map((text) => make("div", { text }))));
    }
    const files = make("p", { class: "files" }, ...item.files.map(([text, href]) => make("a", { href, text })));
    const heading = make("h2", { text: item.name });
    const note = item.note ? [make("p", { text: item.note })] : [];
    const noise = rows.length && item.noise ? [make("p", { class: "hint", text: item.noise })] : [];
    return [heading, ...note, files, about, ...noise];
  }));
}

function drawLegend(items) {
  const there = data.averagers.filter((a) => items.some((item) => item.curves[a.id]));
  const swatch = (id) => make("svg", { width: 26, height: 8 }, series(id, "M0 4H26"));
  const chips = ["live", ...there.map((a) => a.id)].map((id) =>
    toggle(id, !view.off.has(id), () => flip(view.off, id), swatch(id)));
  if (view.paint !== "weights") {
    chips.push(...[...palette].map(([value, style]) => make("span", { class: "value" },
      make("svg", { width: 26, height: 8 }, make("path", { class: "series", style, d: "M0 4H26" })),
      `${view.paint}=${value}`)));
  }
  const set = (off) => () => { view.off = new Set(off); };
  const ids = there.map((a) => a.id);
  if (there.length > 1) {
    chips.push(make("button", { type: "button", text: "all", onclick: () => { set([])(); render(); } }),
      make("button", { type: "button", text: "only live", onclick: () => { set(ids)(); render(); } }));
  }
  $("legend").replaceChildren(...chips);
}

let palette = new Map(); // a colour for each value of the setting view.paint, from blue to orange in their order

function newPalette() {
  const column = data.columns[view.mode].indexOf(view.paint);
  if (column < 0) return new Map();
  const cells = new Map(data[view.mode].map(({ cells }) => [cells[column][1], cells[column][0]]));
  const sorted = [...cells].sort(([, a], [, b]) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b)));
  return new Map(sorted.map(([text], i) => [text, `--h:${265 - 210 * i / Math.max(sorted.length - 1, 1)};--t:.3`]));
}

/** A path in the colour of its weights, or of an item's setting where that is chosen; dashes tell the weights. */
function series(id, d, item = null) {
  if (item && view.paint !== "weights") {
    const value = item.cells[data.columns[view.mode].indexOf(view.paint)][1];
    const dash = id === "live" ? null : styles[id].dash || DASHES[1];
    return make("path", { class: "series", style: palette.get(value), "stroke-dasharray": dash, d });
  }
  if (id === "live") return make("path", { class: "series live", d });
  const { hue, tone, dash } = styles[id];
  return make("path", { class: "series", style: `--h:${hue};--t:${tone}`, "stroke-dasharray": dash || null, d });
}

/** Round numbers from low to high, about n of them. */
function ticks(low, high, n) {
  const raw = (high - low) / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

let points = []; // of the chart: {x, y (pixels), item, id, step, value}

function drawChart(items) {
  const { metric } = view;
  const lines = items.flatMap((item) => Object.entries(item.curves)
    .filter(([id, curve]) => !view.off.has(id) && curve[metric])
    .map(([id, curve]) => ({ item, id, curve: curve[metric].filter(([step]) => step > 0) }))
    .filter((line) => line.curve.length));
  points = [];
  if (!lines.length) {
    $("chart").replaceChildren(make("p", { class: "empty", text: "Nothing evaluated yet, or all switched off." }));
    return;
  }
  const width = Math.max($("curves").clientWidth - 32, 320);
  const right = Math.max(...lines.map(({ curve }) => curve.at(-1)[0]));
  const left = Math.min(...lines.map(({ curve }) => curve[0][0]));
  const all = lines.flatMap(({ curve }) => curve.map((point) => point[1]));
  const settled = lines.flatMap(({ curve }) => curve.filter(([s]) => s >= SETTLED * curve.at(-1)[0]).map((p) => p[1]));
  let [low, high] = METRICS[metric].higher_is_better ? [least(settled), most(all)] : [least(all), most(settled)];
  const margin = 0.05 * Math.max(high - low, 1e-3);
  [low, high] = [low - margin, high + margin];
  const begin = left < 0.2 * right ? 0 : left, end = right > begin ? right : begin + 1;
  const x = (step) => LEFT + (step - begin) / (end - begin) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM);
  const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img",
    "aria-label": `validation ${metric} against step` });
  for (const step of ticks(begin, end, width / 110)) {
    svg.append(make("line", { class: "grid", x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }),
      make("text", { x: x(step), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle", text: number(step) }));
  }
  for (const value of ticks(low, high, 7)) {
    svg.append(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      make("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end", text: number(value) }));
  }
  const middle = TOP + (HEIGHT - TOP - BOTTOM) / 2;
  svg.append(
    make("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle", text: "step (optimizer updates)" }),
    make("text", { transform: `translate(14 ${middle}) rotate(-90)`, "text-anchor": "middle",
      text: METRICS[metric].label }));
  const clip = make("svg", { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM,
    viewBox: `${LEFT} ${TOP} ${width - LEFT - RIGHT} ${HEIGHT - TOP - BOTTOM}` });
  const group = make("g", { class: lines.length > 24 ? "many" : null });
  for (const { item, id, curve } of lines) {
    const places = curve.map(([step, value]) => ({ x: x(step), y: y(value), item, id, step, value }));
    const [{ x: x0, y: y0 }] = places;
    const alone = `M${x0 - 3} ${y0}H${x0 + 3}M${x0} ${y0 - 3}V${y0 + 3}`; // a cross
    const path = series(id, places.length === 1 ? alone
      : "M" + places.map((p) => `${p.x.toFixed(1)} ${p.y.toFixed(1)}`).join("L"), item);
    path.item = item;
    group.append(path);
    points.push(...places.filter((p) => p.y <= HEIGHT - BOTTOM + 1 && p.y >= TOP - 1));
  }
  clip.append(group);
  svg.append(clip, make("circle", { class: "dot", r: 4, visibility: "hidden" }));
  svg.addEventListener("mousemove", (event) => pointNear(event, svg, width));
  svg.addEventListener("mouseleave", () => { hideTip(); pointAt(null); });
  $("chart").replaceChildren(svg);
  pointAt(null);
}

const least = (values) => values.reduce((a, b) => Math.min(a, b));
const most = (values) => values.reduce((a, b) => Math.max(a, b));

/** Shows the curves of one item, of those that are singled out, or of all. */
function pointAt(item) {
  const group = $("chart").querySelector("g");
  if (!group) return;
  const on = item ? [item] : picked;
  group.classList.toggle("picked", on.length > 0);
  for (const path of group.children) path.classList.toggle("on", on.includes(path.item));
}

function pointNear(event, svg, width) {
  const box = svg.getBoundingClientRect(), scale = width / box.width;
  const [mx, my] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  const among = picked.length ? points.filter((p) => picked.includes(p.item)) : points;
  let near = null, least = 40 ** 2;
  for (const p of among) {
    const distance = (p.x - mx) ** 2 + (p.y - my) ** 2;
    if (distance < least) [near, least] = [p, distance];
  }
  const dot = svg.lastElementChild;
  dot.setAttribute("visibility", near ? "visible" : "hidden");
  if (!near) { hideTip(); return; }
  dot.setAttribute("cx", near.x);
  dot.setAttribute("cy", near.y);
  const live = near.item.curves.live?.[view.metric]?.find(([step]) => step === near.step);
  const gap = live && near.id !== "live" ? near.value - live[1] : null;
  showTip(event, [near.item.name, `${near.id}, step ${number(near.step)}: ${near.value.toFixed(4)}`,
    ...(gap === null ? [] : [`${gap < 0 ? "" : "+"}${gap.toFixed(4)} to live`])]);
}

function showTip(event, lines) {
  const tip = $("tip");
  tip.replaceChildren(...lines.map((text) => make("div", { text })));
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

const hideTip = () => { $("tip").hidden = true; };

function drawMaps(items) {
  const key = view.colours;
  const maps = items.flatMap((item) => item.maps.filter((map) => map.cells.some((cell) => cell[key]))
    .map((map) => ({ item, map })));
  const shown = view.allMaps ? maps : maps.slice(0, MAPS);
  $("maps-section").hidden = !maps.length;
  const limit = Math.max(...shown.flatMap(({ map }) => map.cells.map((cell) => Math.abs(cell[key]?.value ?? 0))), 1e-6);
  const [from, to] = higherIsBetter(key) ? ["worse", "better"] : ["better", "worse"];
  const mark = (value) => key === "saved" ? `${value > 0 ? "+" : ""}${number(Math.round(value))} steps`
    : `${value > 0 ? "+" : ""}${value.toFixed(3)} ${key === "gap" ? "nats" : key}`;
  const unclear = shown.some(({ map }) => map.cells.some((cell) => cell[key]?.unclear));
  const said = "blue: better than live; red: worse; frame: the best on val" + (unclear ? "; hatched: inconclusive" : "");
  $("scale").replaceChildren(make("span", { text: mark(-limit) }),
    make("i", { style: `--from:var(--${from});--to:var(--${to})` }), make("span", { text: mark(limit) }),
    make("span", { text: said }));
  $("maps").replaceChildren(...shown.map(({ item, map }) => heatMap(item, map, key, limit)));
  if (maps.length > shown.length) {
    $("maps").append(toggle(`show all ${maps.length}`, false, () => { view.allMaps = true; }));
  }
}

function heatMap(item, map, key, limit) {
  const sides = (name) => [...new Set(map.cells.map((cell) => cell[name]))].sort((a, b) => a - b);
  const [ks, spacings] = [sides("k").reverse(), sides("spacing")];
  const caption = make("caption", { text: item.name }, make("span", { text: `${map.name}: ${map.said[key]}` }));
  const rows = ks.map((k) => make("tr", {}, make("th", { text: `k ${k}` }), ...spacings.map((spacing) => {
    const cell = map.cells.find((c) => c.k === k && c.spacing === spacing);
    return cell?.[key] ? heatCell(cell, key, limit) : make("td", { text: "-", style: "--share:0%" });
  })));
  const foot = make("tr", {}, make("th"), ...spacings.map((s) => make("th", { text: number(s) })));
  const unit = make("tr", {}, make("th"), make("th", { colspan: spacings.length, text: "spacing (steps)" }));
  return make("table", { class: "map" }, caption, make("tbody", {}, ...rows, foot, unit));
}

/** Of what colours a heat map. */
const higherIsBetter = (key) => key === "saved" || Boolean(METRICS[key]?.higher_is_better);

function heatCell(cell, key, limit) {
  const { value, text, below, unclear } = cell[key];
  const side = (value > 0) === higherIsBetter(key) ? "better" : "worse";
  const tip = [cell.weights, `steps saved ${cell.saved.text}`,
    ...(cell.gap ? [`val loss less live ${cell.gap.text}`] : []),
    ...OWN.filter((name) => cell[name]).map((name) => `val ${name} less live ${cell[name].text}`)];
  return make("td", {
    class: [unclear && "unclear", cell.best && "best"].filter(Boolean).join(" ") || null,
    style: `--side:var(--${side});--share:${(75 * Math.abs(value) / limit).toFixed(1)}%`,
    onmousemove: (event) => showTip(event, tip), onmouseleave: hideTip,
  }, text, ...(below ? [make("small", { text: below })] : []));
}

$("about").append(`${data.runs.length} run(s), as of ${data.written}`,
  ...(data.command ? [". ", make("code", { text: data.command })] : []));
$("problems").append(...data.problems.map((text) => make("p", { text })));
$("filter").addEventListener("input", (event) => { view.words = event.target.value; render(); });
addEventListener("resize", () => drawChart(visible()));
render();
