// The map of the disk and throughput over time, on canvases.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

function human(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(bytes >= 10 ? 1 : 2)} ${UNITS[unit]}`;
}

function duration(seconds) {
  seconds = Math.round(seconds);
  const pad = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60) % 60;
  return hours ? `${hours}:${pad(minutes)}:${pad(seconds % 60)}` : `${minutes}:${pad(seconds % 60)}`;
}

const COLOURS = ["card", "line", "soft", "data", "zero", "unallocated", "unknown", "leased", "doubt", "written", "durable",
                 "verified"];

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
}

function mixed(one, other, share) {
  const parts = [1, 3, 5].map((at) => {
    const a = parseInt(one.slice(at, at + 2), 16), b = parseInt(other.slice(at, at + 2), 16);
    return Math.round(a + (b - a) * share);
  });
  return `rgb(${parts.join(",")})`;
}

// A canvas whose pixels are the screen's; its context, in CSS pixels.
function prepared(canvas, height) {
  const width = canvas.clientWidth || canvas.parentElement.clientWidth, scale = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return context;
}

const KINDS = { d: "data", z: "zero", u: "unallocated", ".": "unknown" };
const KIND_WORDS = { d: "data", z: "zeros", u: "unallocated", ".": "not known yet" };
const MARKS = { "?": "doubt", l: "leased", w: "written", p: "written", s: "durable", v: "verified" };
const MARK_WORDS = { "?": "in doubt", l: "leased", w: "written", p: "a part is done", s: "durable", v: "verified", ".": "not done" };

// Zeros, and what is left to a backing file, are paler than data.
function colourOf(palette, kind, mark, level, partly) {
  const ground = palette[KINDS[kind]] || palette.unknown;
  if (!MARKS[mark]) return ground;
  const colour = palette[mark === "p" ? partly : MARKS[mark]];
  if (mark === "?" || mark === "l") return colour;
  const strength = kind === "z" || kind === "u" ? 0.45 : 1;
  return mixed(ground, colour, strength * (mark === "p" ? 0.25 + 0.5 * level / 9 : 1));
}

// The shape of the map on a canvas of that width.
function grid(count, width) {
  const wanted = Math.max(5, Math.min(14, Math.sqrt(width * (width > 700 ? 170 : 260) / count)));
  const columns = Math.min(count, Math.max(1, Math.floor(width / wanted)));
  const cell = columns === count ? Math.min(14, width / columns) : width / columns;
  return { columns, cell, rows: Math.ceil(count / columns) };
}

function drawMap(canvas, job) {
  const map = job.map, partly = job.kind === "copy" ? "written" : "verified";
  const count = map.kinds.length, palette = colours();
  const shape = grid(count, canvas.clientWidth || canvas.parentElement.clientWidth);
  const context = prepared(canvas, Math.ceil(shape.rows * shape.cell));
  const size = shape.cell - (shape.cell > 5 ? 1 : 0.5);
  for (let index = 0; index < count; index += 1) {
    context.fillStyle = colourOf(palette, map.kinds[index], map.marks[index], Number(map.levels[index]), partly);
    context.fillRect((index % shape.columns) * shape.cell, Math.floor(index / shape.columns) * shape.cell, size, size);
  }
}

// Zeros that are known beforehand need not be read.
function markWord(job, kind, mark) {
  if (job.kind === "copy" || mark !== "v") return MARK_WORDS[mark];
  return kind === "d" ? readWord(job) : "not read";
}

// In words, what lies at a point of the map; "" beside it.
function wordsAt(canvas, job, x, y) {
  const map = job.map, shape = grid(map.kinds.length, canvas.clientWidth);
  const column = Math.floor(x / shape.cell), index = column + shape.columns * Math.floor(y / shape.cell);
  if (column >= shape.columns || index < 0 || index >= map.kinds.length) return "";
  const words = `${KIND_WORDS[map.kinds[index]]}, ${markWord(job, map.kinds[index], map.marks[index])}`;
  return `from ${human(index * map.bin)} to ${human((index + 1) * map.bin)}: ${words}`;
}

const LINES = [["read", 1, "leased"], ["written", 2, "written"], ["zeros", 3, "soft"]];

// Bytes per second between each sample and the one before.
function rates(timeline, field) {
  const found = [];
  for (let index = 1; index < timeline.length; index += 1) {
    const seconds = timeline[index][0] - timeline[index - 1][0];
    if (seconds > 0) found.push([timeline[index][0], (timeline[index][field] - timeline[index - 1][field]) / seconds]);
  }
  return found;
}

function roundUp(rate) {
  let step = 1024;
  while (step * 4 < rate) step *= 4;
  return [1, 1.5, 2, 3, 4].map((times) => times * step).find((top) => top >= rate) || step * 4;
}

function drawRates(canvas, timeline, lines) {
  const palette = colours(), height = 170, context = prepared(canvas, height);
  const width = canvas.clientWidth || canvas.parentElement.clientWidth;
  const left = 74, right = 8, top = 10, bottom = 22, last = Math.max(1, timeline[timeline.length - 1][0]);
  const all = lines.map(([, field]) => rates(timeline, field));
  const most = roundUp(Math.max(1, ...all.flat().map(([, rate]) => rate)));
  const x = (at) => left + (width - left - right) * at / last;
  const y = (rate) => height - bottom - (height - top - bottom) * rate / most;
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "middle";
  for (const share of [0, 0.5, 1]) {
    context.strokeStyle = palette.line;
    context.beginPath();
    context.moveTo(left, y(most * share));
    context.lineTo(width - right, y(most * share));
    context.stroke();
    context.fillStyle = palette.soft;
    context.textAlign = "right";
    context.fillText(share ? `${human(most * share)}/s` : "0", left - 8, y(most * share));
  }
  context.textBaseline = "bottom";
  for (const [share, align] of [[0, "left"], [0.5, "center"], [1, "right"]]) {
    context.textAlign = align;
    context.fillText(duration(last * share), x(last * share), height);
  }
  lines.forEach(([, field, colour], number) => {
    context.strokeStyle = palette[colour];
    context.lineWidth = field === 1 ? 4 : 1.75; // what is read lies under what is written: often they are the same
    context.lineJoin = "round";
    context.beginPath();
    all[number].forEach(([at, rate], index) => {
      if (index === 0) context.moveTo(x(timeline[0][0]), y(rate));
      context.lineTo(x(at), y(rate));
    });
    context.stroke();
  });
}
