// The page to play with. A plan is a number: bit k is set where block k is removed. Answers are strings, one digit per image.
"use strict";

const NORMAL = 1.959963985; // of 95 %
const MAPS = { identity: "nothing: dropped (identity)", linear: "one matrix (linear)",
  context: "a matrix each for CLS and patches, with the patches' statistics (context)" };
const SHOWN = 12; // pictures of a kind

const bits = (plan) => { let count = 0; for (; plan; plan &= plan - 1) count++; return count; };
const removed = (plan) => [...Array(31).keys()].filter((block) => plan >> block & 1);

function planText(plan) { // "1->3 6->7": neighbours are one span
  const ends = removed(plan).filter((block) => !(plan >> block + 1 & 1));
  const starts = removed(plan).filter((block) => !block || !(plan >> block - 1 & 1));
  return starts.map((first, k) => `${first - 1}->${ends[k]}`).join(" ") || "original";
}

function wilson(correct, images) { // 95 % interval of a proportion (Wilson 1927), percent
  const all = images + NORMAL ** 2, middle = (correct + NORMAL ** 2 / 2) / all;
  const half = NORMAL / all * Math.sqrt(correct * (images - correct) / images + NORMAL ** 2 / 4);
  return [100 * (middle - half), 100 * (middle + half)];
}

function compare(labels, before, after) { // images by what becomes of them
  const found = { right: 0, lost: [], won: [], other: [] };
  for (let k = 0; k < labels.length; k++) {
    found.right += after[k] === labels[k];
    if (before[k] === after[k]) continue;
    (before[k] === labels[k] ? found.lost : after[k] === labels[k] ? found.won : found.other).push(k);
  }
  return found;
}

function lostPoints(lost, won, images, student) { // with Student's interval, paired over images (1908)
  const mean = (lost - won) / images, squares = lost + won - images * mean ** 2;
  const half = student * Math.sqrt(Math.max(squares, 0) / (images - 1) / images);
  return [mean, mean - half, mean + half].map((share) => 100 * share);
}

function measure(run, row) { // all that the page says of one plan
  const [parameters, flops, answers] = row, found = compare(run.labels, run.original[2], answers);
  return { ...found, accuracy: 100 * found.right / run.images, interval: wilson(found.right, run.images),
    points: lostPoints(found.lost.length, found.won.length, run.images, run.student),
    changed: found.lost.length + found.won.length + found.other.length, parameters, flops,
    size: 100 * parameters / run.original[0], compute: 100 * flops / run.original[1] };
}

function nearest(plan, plans, count = 4) { // those that differ in the fewest blocks
  const far = (other) => bits(plan ^ other) + Math.abs(bits(plan) - bits(other)) / 100;
  return [...plans].sort((a, b) => far(a) - far(b) || a - b).slice(0, count);
}

function start() {
  const { runs, paper } = JSON.parse(document.getElementById("numbers").textContent);
  const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
  const state = { run: runs[0], map: "linear", plan: 0 };
  let points = []; // of the cloud: map, plan, place

  const rowOf = (map, plan) => plan ? state.run.maps[map][plan] : state.run.original;
  const number = (value, digits = 1) => (value.toFixed(digits) === "-" + (0).toFixed(digits) ? 0 : value).toFixed(digits);
  const between = ([low, high]) => `[${number(low)}, ${number(high)}]`;
  const words = (list) => list.length < 2 ? list.join() : `${list.slice(0, -1).join(", ")} and ${list.at(-1)}`;

  function make(tag, attributes = {}, ...children) {
    const svg = ["path", "line", "text", "svg", "title"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    element.append(...children);
    return element;
  }

  const options = (select, entries, chosen) => { // [value, text]
    select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
    select.value = chosen;
  };

  function chooseRun(encoder, dataset) {
    const own = runs.filter((run) => run.encoder === encoder);
    state.run = own.find((run) => run.dataset === dataset) ?? own[0];
    if (!(state.map in state.run.maps)) state.map = Object.keys(state.run.maps)[0];
    if (state.plan >> state.run.blocks) state.plan = 0;
    options(at.dataset, own.map((run) => [run.dataset, run.dataset]), state.run.dataset);
    options(at.map, Object.keys(state.run.maps).map((map) => [map, MAPS[map] ?? map]), state.map);
    document.body.style.setProperty("--sheet", `url(data:image/png;base64,${state.run.sheet})`);
    at.blocks.replaceChildren(...Array.from({ length: state.run.blocks }, (_, k) =>
      make("button", { "aria-label": `block ${k}`, tabindex: k ? -1 : 0 }, k)));
    drawCloud();
  }

  function show() {
    const began = performance.now(), row = rowOf(state.map, state.plan);
    [...at.blocks.children].forEach((button, k) => button.setAttribute("aria-pressed", Boolean(state.plan >> k & 1)));
    at.plan.textContent = planText(state.plan);
    at.paper.value = paper.includes(state.plan) ? state.plan : "";
    at.tiles.hidden = at.changes.hidden = !row;
    at.nearest.replaceChildren();
    row ? tell(measure(state.run, row)) : offer();
    mark();
    history.replaceState(null, "", `#${[state.run.encoder, state.run.dataset, state.map, state.plan].join("/")}`);
    document.body.dataset.milliseconds = performance.now() - began;
  }

  function tell(found) {
    const { run, plan } = state, original = measure(run, run.original), gone = removed(plan), [lost, low, high] = found.points;
    const what = `${run.encoder} on ${run.dataset}`, blocks = `block${gone.length > 1 ? "s" : ""} ${words(gone)}`;
    const right = `${number(found.accuracy)} % of ${run.images} test images right`;
    const certain = low > 0 ? "" : high < 0 ? " That is a gain." : " The interval holds zero: these images show no loss.";
    at.sentence.textContent = !plan ? `${what}: the original has ${right}, 95 % interval ${between(found.interval)}.`
      : `${what}, ${blocks} removed, ${state.map}: ${right}, instead of ${number(original.accuracy)} %: ` +
        `${number(lost)} points lost, 95 % interval ${between([low, high])}.${certain}`;
    const tile = (name, value, note, bar) => make("div", { class: "tile" }, make("span", { class: "soft small" }, name),
      make("b", {}, value), make("span", { class: "soft small" }, note), ...(bar ? [make("i", { style: `width:${Math.min(bar, 100)}%` })] : []));
    at.tiles.replaceChildren(
      tile("accuracy", `${number(found.accuracy)} %`, `${between(found.interval)}, original ${number(original.accuracy)} %`, found.accuracy),
      tile("points lost", number(lost), `${between([low, high])}, paired over images`),
      tile("changed answers", `${found.changed} of ${run.images}`, `${found.lost.length} now wrong, ${found.won.length} now right`),
      tile("parameters", `${number(found.parameters / 1e6, 2)} M`, `${number(found.parameters * 4 / 1e6)} MB, ${number(found.size, 0)} % of the original`, found.size),
      tile("compute", `${number(found.compute, 0)} %`, `${number(found.flops / 1e6, 2)} GFLOPs per image, counted`, found.compute));
    at.changes.hidden = !found.changed;
    at.pictures.replaceChildren(...pictures("right before, wrong now", found.lost), ...pictures("wrong before, right now", found.won),
      ...pictures("another wrong answer", found.other));
  }

  function pictures(title, images) {
    const { run } = state, name = (answers, k) => run.classes[parseInt(answers[k], 16)];
    if (!images.length) return [];
    const figures = images.slice(0, SHOWN).map((k) => {
      const side = 4.5, place = `-${k % run.columns * side}rem -${Math.floor(k / run.columns) * side}rem`;
      const style = `background-size:${run.columns * side}rem auto;background-position:${place}`;
      const [, , answers] = rowOf(state.map, state.plan), isTold = [run.original[2][k], answers[k]].includes(run.labels[k]);
      return make("figure", {}, make("span", { class: "picture", role: "img", "aria-label": `a ${name(run.labels, k)}`, style }),
        make("figcaption", {}, `${name(run.original[2], k)} → ${name(answers, k)}${isTold ? "" : ` (is ${name(run.labels, k)})`}`));
    });
    const more = images.length > SHOWN ? `, ${SHOWN} of them` : "";
    return [make("h3", {}, `${title}: ${images.length}${more}`), make("div", { class: "pictures" }, ...figures)];
  }

  function offer() {
    at.sentence.textContent = `Plan ${planText(state.plan)} is not computed: single, double, contiguous plans and the paper's are. The nearest that are:`;
    at.nearest.replaceChildren(...nearest(state.plan, Object.keys(state.run.maps[state.map]).map(Number)).map((plan) => {
      const button = make("button", {}, planText(plan));
      button.onclick = () => { state.plan = plan; show(); at.blocks.querySelector("[tabindex='0']").focus(); };
      return button;
    }));
  }

  const shape = (map, x, y, r = 3.2) => map === "identity" ? `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`
    : map === "linear" ? `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`
    : `M${x} ${y - 1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ${1.4 * r}l${-1.4 * r} ${-1.4 * r}z`;

  function drawCloud() {
    const { run } = state, width = at.cloud.clientWidth || 600, height = at.cloud.clientHeight || 320, byBlocks = at.across.value === "removed";
    const all = [["original", 0, run.original]];
    for (const [map, rows] of Object.entries(run.maps)) for (const [plan, row] of Object.entries(rows)) all.push([map, Number(plan), row]);
    points = all.map(([map, plan, row]) => { const { compute, accuracy } = measure(run, row); return { map, plan, across: byBlocks ? bits(plan) : compute, accuracy }; });
    const most = byBlocks ? run.blocks : 100, top = Math.max(...points.map((point) => point.accuracy));
    const left = 38, bottom = height - 38, x = (value) => left + 8 + (width - left - 24) * value / most, y = (value) => bottom - (bottom - 12) * value / Math.min(100, top + 5);
    const kinds = Object.keys(run.maps), aside = (map) => byBlocks && map !== "original" ? 7 * (kinds.indexOf(map) - (kinds.length - 1) / 2) : 0;
    points.forEach((point) => Object.assign(point, { x: x(point.across) + aside(point.map), y: y(point.accuracy) }));
    const lines = [0, 20, 40, 60, 80].filter((value) => value < top + 5).flatMap((value) => [
      make("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }), make("text", { x: 30, y: y(value) + 4, "text-anchor": "end" }, value)]);
    const ticks = (byBlocks ? [0, 2, 4, 6, 8, 10, 12] : [0, 25, 50, 75, 100]).filter((value) => value <= most);
    const below = ticks.map((value) => make("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, value));
    const names = [make("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, byBlocks ? "blocks removed" : "compute, % of the original's"),
      make("text", { x: 0, y: 10 }, "%")];
    const marks = points.map((point) => make("path", { class: point.map in MAPS ? point.map : "other", d: shape(point.map, point.x, point.y, point.plan ? 3.2 : 5) }));
    points.forEach((point, k) => { point.path = marks[k]; });
    at.cloud.setAttribute("viewBox", `0 0 ${width} ${height}`);
    at.cloud.setAttribute("aria-label", `Accuracy of all ${points.length - 1} computed plans and maps against ${byBlocks ? "blocks removed" : "compute"}`);
    at.cloud.replaceChildren(...lines, ...below, ...names, ...marks, make("path", { class: "here", id: "here" }));
    at.legend.replaceChildren(...kinds.flatMap((map) => [make("svg", { viewBox: "0 0 16 16", "aria-hidden": true },
      make("path", { class: map in MAPS ? map : "other", d: shape(map, 8, 8, 4) })), ` ${map === "identity" ? "dropped" : map}   `]),
      "accuracy in percent; the ring is the current plan, and a point that is clicked becomes it.");
  }

  function mark() {
    const here = points.find((point) => point.plan === state.plan && (!point.plan || point.map === state.map));
    points.forEach((point) => point.path.classList.toggle("faint", point.map !== state.map && point.plan > 0));
    document.getElementById("here").setAttribute("d", here ? shape("linear", here.x, here.y, 9) : "");
  }

  function move(event) {
    const buttons = [...at.blocks.children], now = buttons.indexOf(document.activeElement);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    focusOn(buttons.at(next % buttons.length));
  }

  function focusOn(button) { // one stop of the tab key for all blocks
    [...at.blocks.children].forEach((other) => { other.tabIndex = other === button ? 0 : -1; });
    button.focus();
  }

  at.blocks.onkeydown = move;
  at.blocks.onclick = ({ target }) => {
    const block = [...at.blocks.children].indexOf(target);
    if (block < 0) return;
    state.plan ^= 1 << block;
    focusOn(target);
    show();
  };
  at.restore.onclick = () => { state.plan = 0; show(); };
  at.encoder.onchange = () => { chooseRun(at.encoder.value, state.run.dataset); show(); };
  at.dataset.onchange = () => { chooseRun(state.run.encoder, at.dataset.value); show(); };
  at.map.onchange = () => { state.map = at.map.value; show(); };
  at.paper.onchange = () => { state.plan = Number(at.paper.value); show(); };
  at.across.onchange = window.onresize = () => { drawCloud(); mark(); };
  at.cloud.onclick = (event) => {
    const box = at.cloud.getBoundingClientRect(), far = (point) => Math.hypot(point.x - event.clientX + box.left, point.y - event.clientY + box.top);
    const best = points.reduce((a, b) => far(b) < far(a) ? b : a);
    if (far(best) > 20) return;
    Object.assign(state, { plan: best.plan, map: best.plan ? best.map : state.map });
    at.map.value = state.map;
    show();
  };

  const [encoder, dataset, map, plan] = decodeURI(location.hash.slice(1)).split("/");
  if (map in MAPS) Object.assign(state, { map, plan: Number(plan) || 0 });
  const names = [...new Set(runs.map((run) => run.encoder))];
  options(at.encoder, names.map((name) => [name, `${name}, ${number(runs.find((run) => run.encoder === name).original[0] / 1e6, 2)} M parameters`]),
    names.includes(encoder) ? encoder : names[0]);
  options(at.paper, [["", "–"], ...paper.map((one) => [one, planText(one)])], "");
  chooseRun(at.encoder.value, dataset);
  show();
}

if (typeof document === "undefined") module.exports = { bits, planText, wilson, compare, lostPoints, measure, nearest };
else start();
