// The page to play with. A plan is a number: bit k is set where block k is removed. Answers are strings: one digit, the
// class in hexadecimal, per test image. Pure functions come first; start() puts them on the page.
"use strict";

const NORMAL = 1.959963985; // half the width of a 95 % interval, in standard errors
const MAPS = {
  identity: "nothing: dropped (identity)",
  linear: "one matrix (linear)",
  context: "a matrix for CLS, one for patches (context)",
};
const SHOWN = 12; // pictures of each kind
const FIRST = 0b111000; // the plan 2->5

const bits = (plan) => removed(plan).length;
const removed = (plan) => [...Array(31).keys()].filter((block) => plan >> block & 1);

function planText(plan) { // "1->3 6->7": removed neighbours are one span
  const first = removed(plan).filter((block) => !block || !(plan >> (block - 1) & 1));
  const last = removed(plan).filter((block) => !(plan >> (block + 1) & 1));
  return first.map((block, k) => `${block - 1}->${last[k]}`).join(" ") || "original";
}

function wilson(correct, images) { // 95 % interval of a proportion (Wilson 1927), in percent
  const square = NORMAL ** 2, middle = correct + square / 2;
  const half = NORMAL * Math.sqrt(correct * (images - correct) / images + square / 4);
  return [middle - half, middle + half].map((end) => 100 * end / (images + square));
}

function compare(labels, before, after) { // the images whose answers change, and the number that is right
  const found = { right: 0, lost: [], won: [], other: [] };
  for (let k = 0; k < labels.length; k++) {
    if (after[k] === labels[k]) found.right++;
    if (before[k] === after[k]) continue;
    const kind = before[k] === labels[k] ? "lost" : after[k] === labels[k] ? "won" : "other";
    found[kind].push(k);
  }
  return found;
}

function lostPoints(lost, won, images, student) { // mean and Student's 95 % interval (1908), paired over images
  const mean = (lost - won) / images, squares = lost + won - images * mean ** 2;
  const half = student * Math.sqrt(Math.max(squares, 0) / (images - 1) / images);
  return [mean, mean - half, mean + half].map((share) => 100 * share);
}

function measure(run, [parameters, flops, answers]) { // all that the page says of one plan
  const found = compare(run.labels, run.original[2], answers), { right, lost, won, other } = found;
  return {
    ...found, parameters, flops,
    accuracy: 100 * right / run.images,
    interval: wilson(right, run.images),
    points: lostPoints(lost.length, won.length, run.images, run.student),
    changed: lost.length + won.length + other.length,
    size: 100 * parameters / run.original[0],
    compute: 100 * flops / run.original[1],
  };
}

function nearest(plan, plans, count = 4) { // those that differ in the fewest blocks, then in their number
  const distance = (other) => bits(plan ^ other) + Math.abs(bits(plan) - bits(other)) / 100;
  return [...plans].sort((a, b) => distance(a) - distance(b) || a - b).slice(0, count);
}

function fixed(value, digits = 1) { // no -0.0
  return (Math.abs(value) < 0.5 / 10 ** digits ? 0 : value).toFixed(digits);
}

function shape(map, x, y, r) { // a cross, a circle or a diamond: colour is not all that tells maps apart
  if (map === "identity") return `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`;
  if (map === "linear") return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
  return `M${x} ${y - 1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ${1.4 * r}l${-1.4 * r} ${-1.4 * r}z`;
}

function make(tag, attributes = {}, ...children) {
  const isDrawn = ["path", "line", "text", "svg"].includes(tag);
  const element = isDrawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function setOptions(select, entries, chosen) { // entries: [value, text]
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  select.value = chosen;
}

function start() {
  const { runs, paper } = JSON.parse(document.getElementById("numbers").textContent);
  const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
  const state = { run: runs[0], map: "linear", plan: FIRST };
  let points = []; // of the cloud: map, plan, accuracy, place, and the path that is drawn

  const between = ([low, high]) => `[${fixed(low)}, ${fixed(high)}]`;
  const words = (list) => [list.slice(0, -1).join(", "), list.at(-1)].filter(String).join(" and ");
  const row = () => state.plan ? state.run.maps[state.map][state.plan] : state.run.original;

  function chooseRun(encoder, dataset) {
    const own = runs.filter((run) => run.encoder === encoder);
    const run = state.run = own.find((one) => one.dataset === dataset) ?? own[0];
    if (!(state.map in run.maps)) state.map = Object.keys(run.maps)[0];
    if (state.plan >> run.blocks) state.plan = 0;
    setOptions(at.dataset, own.map((one) => [one.dataset, one.dataset]), run.dataset);
    setOptions(at.map, Object.keys(run.maps).map((map) => [map, MAPS[map] ?? map]), state.map);
    document.body.style.setProperty("--sheet", `url(data:image/png;base64,${run.sheet})`);
    const blocks = Array.from({ length: run.blocks }, (_, k) =>
      make("button", { "aria-label": `block ${k}`, tabindex: k ? -1 : 0 }, k));
    at.blocks.replaceChildren(...blocks);
    drawCloud();
  }

  function show() {
    const began = performance.now(), answer = row();
    [...at.blocks.children].forEach((button, k) => button.setAttribute("aria-pressed", (state.plan >> k & 1) === 1));
    at.plan.textContent = planText(state.plan);
    at.paper.value = paper.includes(state.plan) ? state.plan : "";
    at.tiles.hidden = at.changes.hidden = !answer;
    at.nearest.replaceChildren();
    if (answer) tell(measure(state.run, answer));
    else offerNearest();
    markPlan();
    history.replaceState(null, "", `#${[state.run.encoder, state.run.dataset, state.map, state.plan].join("/")}`);
    document.body.dataset.milliseconds = performance.now() - began;
  }

  function tell(found) {
    const { run } = state, original = measure(run, run.original);
    at.sentence.textContent = sentence(found, original);
    at.tiles.replaceChildren(
      tile("accuracy", `${fixed(found.accuracy)} %`,
        `${between(found.interval)}, original ${fixed(original.accuracy)} %`, found.accuracy),
      tile("points lost", fixed(found.points[0]), `${between(found.points.slice(1))}, paired over images`),
      tile("changed answers", found.changed,
        `of ${run.images}: ${found.lost.length} now wrong, ${found.won.length} now right`),
      tile("parameters", `${fixed(found.parameters / 1e6, 2)} M`,
        `${fixed(found.parameters * 4 / 1e6)} MB, ${fixed(found.size, 0)} % of the original`, found.size),
      tile("compute", `${fixed(found.compute, 0)} %`, `${fixed(found.flops / 1e6, 2)} GFLOPs per image`, found.compute),
    );
    at.changes.hidden = !found.changed;
    at.pictures.replaceChildren(
      ...pictures("right before, wrong now", found.lost),
      ...pictures("wrong before, right now", found.won),
      ...pictures("another wrong answer", found.other),
    );
  }

  function sentence(found, original) {
    const { run, plan, map } = state, [lost, low, high] = found.points, where = `${run.encoder} on ${run.dataset}`;
    const right = `${fixed(found.accuracy)} % of ${run.images} test images right`;
    if (!plan) return `${where}, the original: ${right}, 95 % interval ${between(found.interval)}.`;
    const gone = `without block${bits(plan) > 1 ? "s" : ""} ${words(removed(plan))}`;
    const spans = planText(plan).split(" ").length, maps = `${spans} ${map} map${spans > 1 ? "s" : ""}`;
    const place = bits(plan) > 1 ? "their place" : "its place";
    const instead = `${map === "identity" ? "and nothing" : `with ${maps}`} in ${place}`;
    const unclear = low <= 0 && high >= 0 ? " The interval holds zero: these images do not tell a loss." : "";
    return `${where} ${gone}, ${instead}: ${right}, instead of ${fixed(original.accuracy)} %. ` +
      `${fixed(lost)} points are lost, 95 % interval ${between([low, high])}.${unclear}`;
  }

  function tile(name, value, note, percent) {
    const bar = percent === undefined ? [] : [make("i", { style: `width:${Math.min(percent, 100)}%` })];
    const [title, below] = [name, note].map((text) => make("span", { class: "soft small" }, text));
    return make("div", { class: "tile" }, title, make("b", {}, value), below, ...bar);
  }

  function pictures(title, images) {
    if (!images.length) return [];
    const some = images.length > SHOWN ? `, ${SHOWN} of them` : "";
    const shown = images.slice(0, SHOWN).map(picture);
    return [make("h3", {}, `${title}: ${images.length}${some}`), make("div", { class: "pictures" }, ...shown)];
  }

  function picture(k) { // a tile of the sheet, which holds all test images
    const { labels, original, classes, columns } = state.run, side = 4.5; // rem
    const [truth, before, after] = [labels, original[2], row()[2]].map((answers) => classes[parseInt(answers[k], 16)]);
    const place = `${-(k % columns) * side}rem ${-Math.floor(k / columns) * side}rem`;
    const style = `background-size: ${columns * side}rem auto; background-position: ${place}`;
    const caption = `${before} → ${after}${[before, after].includes(truth) ? "" : ` (is ${truth})`}`;
    const image = make("span", { class: "picture", role: "img", "aria-label": `test image ${k}: ${truth}`, style });
    return make("figure", {}, image, make("figcaption", {}, caption));
  }

  function offerNearest() {
    at.sentence.textContent = `${planText(state.plan)} was not computed: single, double, contiguous plans and the ` +
      "paper's are. The nearest that were:";
    const plans = nearest(state.plan, Object.keys(state.run.maps[state.map]).map(Number));
    at.nearest.replaceChildren(...plans.map((plan) => {
      const button = make("button", {}, planText(plan));
      button.onclick = () => { state.plan = plan; show(); at.blocks.querySelector("[tabindex='0']").focus(); };
      return button;
    }));
  }

  function drawCloud() { // accuracy of every computed plan with every map
    const { run } = state, byBlocks = at.across.value === "removed", kinds = Object.keys(run.maps);
    const width = at.cloud.clientWidth, height = at.cloud.clientHeight, left = 46, bottom = height - 38;
    const rows = kinds.flatMap((map) => Object.entries(run.maps[map]).map(([plan, one]) => [map, Number(plan), one]));
    points = [...rows, ["original", 0, run.original]].map(([map, plan, one]) => ({ map, plan, ...measure(run, one) }));
    const most = byBlocks ? run.blocks : 100, top = Math.min(100, 5 + Math.max(...points.map((one) => one.accuracy)));
    const x = (value) => left + (width - left - 20) * value / most, y = (value) => bottom - (bottom - 12) * value / top;
    for (const point of points) {
      const aside = byBlocks && point.plan ? 7 * (kinds.indexOf(point.map) - 1) : 0; // maps stand side by side
      Object.assign(point, { x: x(byBlocks ? bits(point.plan) : point.compute) + aside, y: y(point.accuracy) });
      const name = point.map in MAPS ? point.map : "other";
      point.path = make("path", { class: name, d: shape(name, point.x, point.y, point.plan ? 3.2 : 5) });
    }
    const text = (value, x, y, anchor) => make("text", { x, y, "text-anchor": anchor }, value);
    const levels = [0, 20, 40, 60, 80, 100].filter((value) => value <= top);
    const ticks = byBlocks ? [...Array(run.blocks + 1).keys()].filter((count) => !(count % 2)) : [0, 25, 50, 75, 100];
    const across = byBlocks ? "blocks removed" : "compute, % of the original's";
    at.cloud.replaceChildren(
      ...levels.map((value) => make("line", { class: "axis", x1: left - 8, x2: width, y1: y(value), y2: y(value) })),
      ...levels.map((value) => text(value, left - 16, y(value) + 4, "end")),
      ...ticks.map((value) => text(value, x(value), bottom + 16, "middle")),
      text(across, width - 4, height - 4, "end"),
      ...points.map((point) => point.path),
      make("path", { class: "here", id: "here" }),
    );
    at.cloud.setAttribute("viewBox", `0 0 ${width} ${height}`);
    at.cloud.setAttribute("aria-label", `Accuracy of ${rows.length} plans and maps, by ${across}`);
    at.legend.replaceChildren("Accuracy in percent: ", ...kinds.flatMap((map) => [
      make("svg", { viewBox: "0 0 16 16", "aria-hidden": true }, make("path", { class: map, d: shape(map, 8, 8, 4) })),
      ` ${map === "identity" ? "dropped" : map}, `,
    ]), "grey: the original. The ring is the current plan; click a point to choose it.");
  }

  function markPlan() {
    const here = points.find((point) => point.plan === state.plan && (!point.plan || point.map === state.map));
    for (const point of points) point.path.classList.toggle("faint", point.map !== state.map && point.plan > 0);
    document.getElementById("here").setAttribute("d", here ? shape("linear", here.x, here.y, 9) : "");
  }

  function choosePoint(event) {
    const box = at.cloud.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const distance = (point) => Math.hypot(point.x - x, point.y - y);
    const best = points.reduce((a, b) => distance(b) < distance(a) ? b : a);
    if (distance(best) > 20) return;
    Object.assign(state, { plan: best.plan, map: best.plan ? best.map : state.map });
    at.map.value = state.map;
    show();
  }

  function focusOn(button) { // all blocks are one stop of the tab key
    for (const other of at.blocks.children) other.tabIndex = other === button ? 0 : -1;
    button.focus();
  }

  at.blocks.onkeydown = (event) => {
    const buttons = [...at.blocks.children], now = buttons.indexOf(document.activeElement);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    focusOn(buttons.at(next % buttons.length));
  };
  at.blocks.onclick = ({ target }) => {
    const block = [...at.blocks.children].indexOf(target);
    if (block < 0) return; // between two buttons
    state.plan ^= 1 << block;
    focusOn(target);
    show();
  };
  at.restore.onclick = () => { state.plan = 0; show(); };
  at.encoder.onchange = () => { chooseRun(at.encoder.value, state.run.dataset); show(); };
  at.dataset.onchange = () => { chooseRun(at.encoder.value, at.dataset.value); show(); };
  at.map.onchange = () => { state.map = at.map.value; show(); };
  at.paper.onchange = () => { state.plan = Number(at.paper.value); show(); };
  at.across.onchange = window.onresize = () => { drawCloud(); markPlan(); };
  at.cloud.onclick = choosePoint;

  const [encoder, dataset, map, plan] = decodeURI(location.hash.slice(1)).split("/"); // an address can be shared
  if (plan !== undefined) Object.assign(state, { map, plan: Number(plan) || 0 });
  const encoders = new Map(runs.map((run) => [run.encoder, `${run.encoder}, ${fixed(run.original[0] / 1e6, 2)} M`]));
  setOptions(at.encoder, [...encoders], encoders.has(encoder) ? encoder : runs[0].encoder);
  setOptions(at.paper, [["", "–"], ...paper.map((one) => [one, planText(one)])], "");
  chooseRun(at.encoder.value, dataset);
  show();
}

if (typeof document === "undefined") module.exports = { planText, measure, nearest };
else start();
