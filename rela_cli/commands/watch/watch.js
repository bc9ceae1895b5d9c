// Asks for the state every two seconds and draws it. Names and messages are set as text, never as HTML.
"use strict";

const EVERY = 2000;   // milliseconds between two questions
const FIRST = 100;    // runs in the list until "show all"
const $ = (id) => document.getElementById(id);
let showsAll = false, tableOf = "", state = { runs: [], now: 0 };

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function duration(seconds) {
  if (!(seconds > 0)) return "";
  const [size, unit] = seconds >= 3600 ? [3600, "h"] : seconds >= 60 ? [60, "min"] : [1, "s"];
  return `${Number((seconds / size).toPrecision(3))} ${unit}`;
}

const three = (value) => (value === undefined || value === null ? "" : Number(value.toPrecision(3)).toString());
const percent = (value) => (value === undefined || value === null ? "" : `${(100 * value).toFixed(1)} %`);
const best = (run) => Object.entries(run.top1).map(([key, value]) => `${(100 * value).toFixed(1)} ${key}`).join(", ");

// ---------------------------------------------------------------- curves

const SVG = "http://www.w3.org/2000/svg";

function line(points, scale, className) {
  const made = document.createElementNS(SVG, "polyline");
  made.setAttribute("points", points.map(scale).join(" "));
  made.setAttribute("class", className);
  return made;
}

// The loss, in one colour for each phase. The phases have losses of their own, so each has its own scale.
function curve(rows) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  const first = rows[0][0], length = rows[rows.length - 1][0] - first || 1;
  const across = (step) => (100 * (step - first)) / length;
  for (const phase of [1, 2]) {
    const own = rows.filter((row) => (row[2] || 2) === phase && row[1] !== null);
    if (own.length < 2) continue;
    const losses = own.map((row) => row[1]);
    const low = Math.min(...losses), high = Math.max(...losses);
    const scale = ([step, loss]) => `${across(step)},${97 - (94 * (loss - low)) / (high - low || 1)}`;
    svg.append(line(own, scale, phase === 1 ? "matching" : "training"));
  }
  const after = rows.find((row) => row[2] === 2), before = rows.some((row) => row[2] === 1);
  if (after && before) {
    const mark = document.createElementNS(SVG, "line");
    const x = across(after[0]);
    for (const [key, value] of Object.entries({ x1: x, x2: x, y1: 0, y2: 100 })) mark.setAttribute(key, value);
    svg.append(mark);
  }
  return svg;
}

function legend(rows) {
  const made = element("p", undefined, "legend");
  const losses = [[1, "matching", "loss of matching"], [2, "training", "loss of the method"]];
  for (const [phase, className, words] of losses) {
    const own = rows.filter((row) => (row[2] || 2) === phase && row[1] !== null);
    if (own.length) made.append(element("span", `${words} ${three(own[own.length - 1][1])}`, className), " ");
  }
  if (!rows.length) made.textContent = "before training: the images, the prior's features, the targets";
  return made;
}

const curves = {};  // the last rows of each run that is shown: a card that is drawn anew has its curve at once

async function drawCurve(place, run) {
  const put = (rows) => place.replaceChildren(...(rows.length > 1 ? [curve(rows)] : []), legend(rows));
  if (curves[run.name]) put(curves[run.name]);
  const answer = await fetch(`curve.json?run=${encodeURIComponent(run.name)}`);
  if (answer.ok) put((curves[run.name] = await answer.json()));
}

// ---------------------------------------------------------------- the parts of the page

function facts(pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) if (value) list.append(element("dt", name), element("dd", value));
  return list;
}

function soFar(run) {  // the time that it took, and that it will take at this rate
  if (run.status !== "running" || run.began === null) return "";
  const took = state.now - run.began;
  return duration(took) + (run.epoch && run.epochs ? ` of about ${duration((took * run.epochs) / run.epoch)}` : "");
}

function left(run) {
  if (run.status !== "running" || !run.epoch || !run.epochs || run.began === null) return "";
  return duration(((state.now - run.began) * (run.epochs - run.epoch)) / run.epoch);
}

function described(run) {
  return facts([
    ["epoch", run.epochs ? `${run.epoch} of ${run.epochs}` : ""],
    ["so far", soFar(run)],
    ["left, about", left(run)],
    ["kNN", percent(run.knn)],
    ["linear", percent(run.linear)],
    ["rank", three(run.effective_rank)],
    ["rho", three(run.rho)],
    ["left its targets", run.switch_step ? `after ${run.switch_step} steps` : ""],
    ["images/s", three(run.images_per_second)],
    ["waits for data", percent(run.data_wait)],
    ["top-1", best(run)],
    ["beside", Object.entries(run.beside).filter(([, v]) => v).map(([k, v]) => `${k}: ${v}`).join("; ")],
    ["cost", run.cost],
  ]);
}

function card(run) {
  const made = element("div", undefined, "card");
  made.append(element("h3", run.name));
  if (run.epochs) {
    const bar = element("progress");
    bar.max = run.epochs;
    bar.value = run.epoch;
    bar.setAttribute("aria-label", `epoch ${run.epoch} of ${run.epochs}`);
    made.append(bar);
  }
  const place = element("div");
  made.append(place, described(run));
  drawCurve(place, run);
  return made;
}

function row(run) {
  const made = element("tr"), name = element("td"), open = element("button", run.name);
  open.addEventListener("click", () => show(run));
  name.append(open);
  const of = run.epochs ? `${run.epoch}/${run.epochs}` : "";
  const made_at = run.created.slice(0, 16).replace("T", " ");
  made.append(name, element("td", run.status, run.status), element("td", of), element("td", best(run)));
  const cost = element("td", run.cost.split(" (")[0]);  // what each stage took is in the dialog, and here at the pointer
  cost.title = run.cost;
  made.append(cost, element("td", made_at));
  return made;
}

function show(run) {
  const place = element("div");
  $("detail").replaceChildren(element("h3", run.name), place, described(run), element("pre", run.command));
  if (run.reason) $("detail").append(element("pre", run.reason));
  $("detail").append(element("p", run.folder, "note"));
  drawCurve(place, run);
  $("one").showModal();
}

function drawRuns() {
  const word = $("filter").value.toLowerCase();
  const fitting = state.runs.filter((run) => run.name.toLowerCase().includes(word));
  const shown = showsAll ? fitting : fitting.slice(0, FIRST);
  $("runs").replaceChildren(...shown.map(row));
  $("all").hidden = shown.length === fitting.length;
  $("hidden").textContent = shown.length === fitting.length ? "" : `${fitting.length - shown.length} more runs`;
}

function drawFailures() {
  const failed = state.runs.filter((run) => run.reason && run.status !== "finished");
  $("failures").hidden = !failed.length;
  $("reasons").replaceChildren(...failed.slice(0, 20).map((run) => {
    const made = element("details"), lines = [run.reason, "", `again: ${run.command}`];
    made.append(element("summary", `${run.name}: ${run.reason.split("\n")[0]}`), element("pre", lines.join("\n")));
    return made;
  }));
}

function draw() {
  const running = state.runs.filter((run) => run.status === "running");
  const counts = {};
  for (const run of state.runs) counts[run.status] = (counts[run.status] || 0) + 1;
  const words = Object.entries(counts).map(([status, count]) => `${count} ${status}`);
  $("counts").textContent = `${words.join(", ") || "no runs yet"} in ${state.outputs}`;
  document.title = running.length ? `${running.length} running - rela watch` : "rela watch";
  $("cards").replaceChildren(...(running.length ? running.slice(0, 24).map(card) : [element("p", "nothing", "note")]));
  drawFailures();
  drawRuns();
}

async function drawTable() {
  const of = state.runs.filter((run) => run.status === "finished").map((run) => run.name + best(run)).join("\n");
  if (of === tableOf) return;
  tableOf = of;
  const answer = await fetch("table.html");
  if (answer.ok) $("table").innerHTML = await answer.text();  // made by rela, with every name escaped
}

async function ask() {
  try {
    const answer = await fetch("state.json");
    if (!answer.ok) throw new Error(answer.status);
    const text = await answer.text(), found = JSON.parse(text);
    const changed = JSON.stringify({ ...found, now: 0 }) !== JSON.stringify({ ...state, now: 0 });
    state = found;
    $("stale").hidden = true;
    if (changed || state.runs.some((run) => run.status === "running")) draw();
    await drawTable();
  } catch (error) {
    $("stale").hidden = false;
  }
  setTimeout(ask, EVERY);
}

$("filter").addEventListener("input", drawRuns);
$("all").addEventListener("click", () => { showsAll = true; drawRuns(); });
ask();
