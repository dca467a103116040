// Paints a hole on a picture. props.value = {side, image, hole}: side x side pixels, image a PNG as
// a data URL, hole a string of "0" (known) and "1" (hole) in row-major order.
// props.samples = [{name, value}]; props.patch = pixels along a token's side.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const sizer = element.querySelector(".tools input");
const share = element.querySelector(".share");
const CELL = 8;            // canvas pixels per picture pixel
const MAX_UNDO = 50;
const picture = new Image();
let side = 0, hole = new Uint8Array(0), past = [];
let tool = "brush", cursor = null, last = null, spaceHeld = false;

function read() {
  const value = props.value;
  element.querySelector(".stage").classList.toggle("has-picture", Boolean(value));
  if (!value) { report(); return; }
  if (value.side !== side || value.image !== picture.src) past = [];
  else if (value.hole !== hole.join("")) remember();  // a random hole, or the sample again
  side = value.side;
  hole = Uint8Array.from(value.hole, Number);
  canvas.width = canvas.height = side * CELL;
  picture.onload = draw;
  picture.src = value.image;
  draw();
}

function commit() {
  props.value = {side, image: picture.src, hole: hole.join("")};
  report();
}

function remember() {
  past.push(hole.slice());
  if (past.length > MAX_UNDO) past.shift();
}

function touched() {        // tokens with a hole pixel in their patch, as [row, column]
  const grid = side / props.patch, found = new Set();
  hole.forEach((marked, at) => {
    if (marked) found.add(Math.floor(Math.floor(at / side) / props.patch) * grid
      + Math.floor((at % side) / props.patch));
  });
  return [...found].map(token => [Math.floor(token / grid), token % grid]);
}

function draw() {
  if (!side) return;
  pen.imageSmoothingEnabled = false;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (picture.complete) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  pen.fillStyle = "rgb(200 30 140 / 0.72)";
  hole.forEach((marked, at) => {
    if (marked) pen.fillRect((at % side) * CELL, Math.floor(at / side) * CELL, CELL, CELL);
  });
  pen.strokeStyle = "rgb(255 255 255 / 0.55)";
  pen.lineWidth = 1;
  const width = props.patch * CELL;
  for (const [row, column] of touched())
    pen.strokeRect(column * width + 0.5, row * width + 0.5, width - 1, width - 1);
  if (cursor) drawCursor();
}

function drawCursor() {
  const middle = at => (at + 0.5) * CELL, radius = Math.max(sizer.value * CELL / 2, CELL / 2);
  for (const [style, width] of [["#000", 4], ["#fff", 2]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(middle(cursor.x), middle(cursor.y), radius, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function report() {
  const count = hole.reduce((sum, marked) => sum + marked, 0);
  if (!side) share.textContent = "";
  else if (!count) share.textContent = "No hole yet: paint over what should vanish, or draw a random hole.";
  else share.textContent = `Hole: ${Math.round(100 * count / hole.length)} % of the picture, `
    + `${touched().length} of ${(side / props.patch) ** 2} tokens.`;
}

function stamp(x, y) {
  const radius = sizer.value / 2, mark = tool === "brush" ? 1 : 0;
  for (let row = 0; row < side; row++)
    for (let column = 0; column < side; column++) {
      const near = (row - y) ** 2 + (column - x) ** 2 <= radius ** 2;
      if (near || (row === y && column === x)) hole[row * side + column] = mark;
    }
}

function line(from, to) {
  const steps = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y), 1);
  for (let i = 0; i <= steps; i++)
    stamp(Math.round(from.x + (to.x - from.x) * i / steps),
      Math.round(from.y + (to.y - from.y) * i / steps));
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const within = (at, start, length) =>
    Math.min(side - 1, Math.max(0, Math.floor((at - start) / length * side)));
  return {x: within(event.clientX, box.left, box.width), y: within(event.clientY, box.top, box.height)};
}

canvas.addEventListener("pointerdown", event => {
  if (!side || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  remember();
  last = cursor = place(event);
  stamp(last.x, last.y);
  draw();
});
canvas.addEventListener("pointermove", event => {
  if (!side) return;
  cursor = place(event);
  if (last) { line(last, cursor); last = cursor; }
  draw();
});
canvas.addEventListener("pointerup", () => { if (last) { last = null; commit(); } });
canvas.addEventListener("pointercancel", () => { if (last) { last = null; commit(); } });
canvas.addEventListener("pointerleave", () => { if (!last) { cursor = null; draw(); } });
canvas.addEventListener("focus", () => { if (side && canvas.matches(":focus-visible")) {
  cursor ??= {x: side >> 1, y: side >> 1}; draw(); } });
canvas.addEventListener("blur", () => {
  if (spaceHeld) commit();
  spaceHeld = false; cursor = null; draw();
});

const MOVES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

function move(event) {
  const [x, y] = MOVES[event.key], far = event.shiftKey ? props.patch : 1;
  const fit = at => Math.min(side - 1, Math.max(0, at));
  const to = {x: fit(cursor.x + x * far), y: fit(cursor.y + y * far)};
  if (spaceHeld) line(cursor, to);
  cursor = to;
}

const acts = {
  undo() { if (past.length) { hole = past.pop(); commit(); } },
  clear() { remember(); hole.fill(0); commit(); },
  invert() { remember(); hole = hole.map(marked => 1 - marked); commit(); },
};

function choose(name) {
  tool = name;
  for (const button of element.querySelectorAll("[data-tool]"))
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
}

const keys = {
  e: () => choose(tool === "brush" ? "eraser" : "brush"),
  "+": () => { sizer.value = Number(sizer.value) + 1; },
  "-": () => { sizer.value = Number(sizer.value) - 1; },
  z: acts.undo, c: acts.clear, i: acts.invert,
};

canvas.addEventListener("keydown", event => {
  if (!side || event.altKey || event.metaKey || (event.ctrlKey && event.key !== "z")) return;
  cursor ??= {x: side >> 1, y: side >> 1};
  if (event.key in MOVES) move(event);
  else if (event.key === " ") {
    if (!spaceHeld) { remember(); spaceHeld = true; }
    stamp(cursor.x, cursor.y);
  } else if (event.key.toLowerCase() in keys) keys[event.key.toLowerCase()]();
  else return;
  event.preventDefault();
  draw();
});
canvas.addEventListener("keyup", event => {
  if (event.key === " " && spaceHeld) { spaceHeld = false; commit(); }
});

element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.tool) choose(button.dataset.tool);
  if (side && button.dataset.act) { acts[button.dataset.act](); draw(); }
  if (button.dataset.sample) { props.value = props.samples[button.dataset.sample].value; read(); }
});
sizer.addEventListener("input", draw);

function offer() {
  const list = element.querySelector(".samples");
  list.replaceChildren(...(props.samples ?? []).map((sample, at) => {
    const button = document.createElement("button"), image = new Image();
    button.type = "button";
    button.dataset.sample = at;
    button.title = sample.name;
    image.src = sample.value.image;
    image.alt = sample.name;
    button.append(image);
    return button;
  }));
}

watch("value", () => { read(); report(); });
watch("samples", offer);
offer();
read();
report();
