// Shows decodings step by step. props.value = {run, samples, records}: updates of records from
// utils/app/records.py, merged here. Step 0 is the masked picture.
const stepper = element.querySelector(".stepper"), slider = stepper.querySelector("input");
const said = stepper.querySelector("output"), choices = element.querySelector(".choices");
const place = element.querySelector(".records");
const HTML = "http://www.w3.org/1999/xhtml", SVG = "http://www.w3.org/2000/svg";
const PLAY_MS = 500;
const TOKEN_COLOURS = {k: "#f5f5f4", f: "#38bdf8", h: "#1c1917"};
const NO_CONFIDENCE = "#b8b5b2";  // of known tokens
const NAMES = {image: "Picture", tokens: "Token mask", confidence: "Confidence"};
// viridis, from 0 to 1
const HEAT = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
  [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
let run = null, records = [], samples = 1, isDue = false;
let sample = 1, following = true, timer = null, cards = [];

function makeIn(namespace, tag, attributes = {}, ...children) {
  const node = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const make = (...parts) => makeIn(HTML, ...parts), makeSvg = (...parts) => makeIn(SVG, ...parts);

function heat(percent) {
  const at = Math.min(percent / 100, 0.9999) * (HEAT.length - 1), low = Math.floor(at);
  return `rgb(${HEAT[low].map((c, i) => Math.round(c + (at - low) * (HEAT[low + 1][i] - c))).join(" ")})`;
}

function paintCells(canvas, colours) {
  const grid = Math.round(Math.sqrt(colours.length)), pen = canvas.getContext("2d");
  canvas.width = canvas.height = grid;
  colours.forEach((colour, at) => {
    pen.fillStyle = colour;
    pen.fillRect(at % grid, Math.floor(at / grid), 1, 1);
  });
}

function panel(kind, node, ...legends) {
  return make("figure", {class: kind}, node, make("figcaption", {}, NAMES[kind], ...legends));
}

function legend(...entries) {
  const list = make("span", {class: "legend"});
  for (const [colour, text] of entries) {
    const dot = make("i");
    dot.style.background = colour;
    list.append(dot, text);
  }
  return list;
}

function scale() {
  const bar = make("i", {class: "scale"});
  bar.style.background = `linear-gradient(90deg, ${[0, 25, 50, 75, 100].map(heat).join(", ")})`;
  return make("span", {class: "legend"}, "0 ", bar, " 1");
}

// The schedule: gamma as a line, the share actually hidden after each step as dots.
const BOX = {left: 34, top: 10, width: 240, height: 110};
const toX = progress => BOX.left + progress * BOX.width;
const toY = share => BOX.top + (1 - share) * BOX.height;

function text(x, y, words, anchor = "middle") {
  return makeSvg("text", {x, y, "text-anchor": anchor}, words);
}

function chart(record) {
  const svg = makeSvg("svg", {viewBox: "0 0 284 152", role: "img",
    "aria-label": `Share of hidden tokens by step, ${record.schedule} schedule`});
  const points = record.curve.map((share, i) => `${toX(i / (record.curve.length - 1))},${toY(share)}`);
  svg.append(
    makeSvg("rect", {class: "frame", x: BOX.left, y: BOX.top, width: BOX.width, height: BOX.height}),
    makeSvg("polyline", {class: "curve", points: points.join(" ")}),
    makeSvg("line", {class: "marker", y1: BOX.top, y2: BOX.top + BOX.height}),
    makeSvg("g", {class: "dots"}), makeSvg("circle", {class: "here", r: 6}),
    text(BOX.left - 5, BOX.top + 9, "1", "end"), text(BOX.left - 5, BOX.top + BOX.height, "0", "end"),
    text(BOX.left, 135, "0"), text(BOX.left + BOX.width, 135, String(record.total)),
    text(BOX.left + BOX.width / 2, 147, "step"));
  const words = `line: schedule ${record.schedule}; dots: share of the hole still hidden`;
  return make("figure", {class: "chart"}, svg, make("figcaption", {}, words));
}

function markChart(svg, record, at) {
  const start = record.steps[0].hidden || 1;
  const spots = record.steps.map((step, i) => [toX(i / record.total), toY(step.hidden / start)]);
  svg.querySelector(".dots").replaceChildren(
    ...spots.map(([cx, cy]) => makeSvg("circle", {cx, cy, r: 3})));
  const [x, y] = spots[at];
  for (const name of ["x1", "x2"]) svg.querySelector(".marker").setAttribute(name, x);
  svg.querySelector(".here").setAttribute("cx", x);
  svg.querySelector(".here").setAttribute("cy", y);
}

function card(record) {
  const image = make("img", {alt: `Picture, setting ${record.name}`});
  const [mask, warm] = ["Token mask", "Confidence of each token"].map(label =>
    make("canvas", {role: "img", "aria-label": `${label}, setting ${record.name}`}));
  const drawing = chart(record);
  const node = make("section", {class: "record", "aria-label": `Setting ${record.name}`},
    make("h3", {}, make("b", {}, `${record.name} `), record.title, make("small", {}, ` · seed ${record.seed}`)),
    make("div", {class: "panels"},
      panel("image", image),
      panel("tokens", mask, legend([TOKEN_COLOURS.k, "known"], [TOKEN_COLOURS.f, "filled"],
        [TOKEN_COLOURS.h, "hidden"])),
      panel("confidence", warm, legend([NO_CONFIDENCE, "known"]), scale()), drawing),
    make("div", {class: "files"}));
  return {node, image, mask, warm, svg: drawing.querySelector("svg"), name: record.name, sample: record.sample};
}

function showFiles(node, record) {
  if (!record.files || node.childElementCount) return;
  const link = (kind, file, words) => make("a",
    {class: "file", href: record.files[kind], download: `repair-${record.name}${record.sample}${file}`}, words);
  const copy = make("button", {type: "button"}, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(record.files.command);
    copy.textContent = "Copied";
  });
  node.append(link("image", ".png", "Image"), link("gif", ".gif", "GIF"),
    link("zip", ".zip", "All files and the command"),
    make("details", {}, make("summary", {}, "Command line that repeats this exactly"),
      make("p", {}, "Unpack the zip in the repository, then run:"),
      make("pre", {tabindex: "0"}, make("code", {}, record.files.command)),
      ...(navigator.clipboard ? [copy] : [])));  // browsers have none over plain http
}

function showStep(card, record, at) {
  const step = record.steps[Math.min(at, record.steps.length - 1)];
  card.image.src = step.image;
  paintCells(card.mask, [...step.tokens].map(mark => TOKEN_COLOURS[mark]));
  paintCells(card.warm, step.confidence ? step.confidence.map(p => p < 0 ? NO_CONFIDENCE : heat(p))
    : [...step.tokens].map(() => NO_CONFIDENCE));
  markChart(card.svg, record, Math.min(at, record.steps.length - 1));
  showFiles(card.node.querySelector(".files"), record);
}

function gather(value) {
  if (value.run !== run) begin(value);
  value.records.forEach(gatherOne);
}

function gatherOne(news) {
  let record = records.find(one => one.name === news.name && one.sample === news.sample);
  if (!record) records.push(record = {steps: []});
  const steps = record.steps;
  news.steps.forEach((step, i) => { steps[news.first + i] = step; });
  for (let i = steps.length - 1; i >= 0; i--) steps[i] ??= steps[i + 1];  // until all have arrived
  Object.assign(record, news, {steps});
}

function shownRecords() {
  return records.filter(record => record.sample === sample);
}

function show() {
  const visible = shownRecords(), at = Number(slider.value);
  const key = visible.map(one => `${run} ${one.name}${one.sample}`).join();
  if (key !== place.dataset.key) {
    cards = visible.map(card);
    place.replaceChildren(...cards.map(one => one.node));
    place.dataset.key = key;
  }
  visible.forEach((record, i) => showStep(cards[i], record, at));
  said.textContent = visible.length ? describe(visible, at) : "";
}

function describe(records, at) {
  const counts = records.map(record => {
    const step = record.steps[Math.min(at, record.steps.length - 1)];
    return `${records.length > 1 ? record.name + ": " : ""}${step.hidden} of ${record.steps[0].hidden} tokens hidden`;
  });
  return `Step ${at} of ${slider.max} · ${counts.join(" · ")}`;
}

function offerSamples() {
  choices.hidden = samples < 2;
  choices.replaceChildren("Sample", ...records.filter(one => one.name === "A").map(record => {
    const image = make("img", {alt: `sample ${record.sample}`, src: record.steps.at(-1).image});
    return make("button", {type: "button", "data-sample": record.sample,
      "aria-pressed": String(record.sample === sample)}, image);
  }));
}

function hear() {
  if (props.value) gather(props.value);
  else [run, records] = [null, []];
  if (!isDue) requestAnimationFrame(update);
  isDue = true;
}

function update() {
  isDue = false;
  element.querySelector(".player .empty").hidden = records.length > 0;
  stepper.hidden = records.length === 0;
  if (records.length) {
    slider.max = Math.max(...records.map(record => record.planned));
    const newest = Math.max(...shownRecords().map(record => record.steps.length - 1));
    if (following && !timer) slider.value = newest;
    offerSamples();
  }
  show();
}

function begin(value) {    // a new run: follow it from its first step
  [run, records, samples] = [value.run, [], value.samples];
  [sample, following] = [1, true];
  stop();
  element.scrollIntoView({block: "nearest"});
}

function stop() {
  clearInterval(timer);
  timer = null;
  stepper.querySelector("[data-go=play]").textContent = "Play";
}

function go(at) {
  slider.value = at;
  following = Number(slider.value) === Number(slider.max);
  show();
}

function play() {
  if (timer) return stop();
  if (Number(slider.value) === Number(slider.max)) go(0);
  stepper.querySelector("[data-go=play]").textContent = "Pause";
  timer = setInterval(() => {
    go(Number(slider.value) + 1);
    if (Number(slider.value) === Number(slider.max)) stop();
  }, PLAY_MS);
}

const moves = {
  first: () => go(0), back: () => go(Number(slider.value) - 1), play,
  on: () => go(Number(slider.value) + 1), last: () => go(Number(slider.max)),
};
stepper.addEventListener("click", event => {
  const name = event.target.closest("button")?.dataset.go;
  if (name && name !== "play") stop();
  if (name) moves[name]();
});
slider.addEventListener("input", () => { stop(); go(Number(slider.value)); });
choices.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  sample = Number(button.dataset.sample);
  offerSamples();
  show();
});

watch("value", hear);
hear();
