// A card for each job, kept up to date. Whatever comes from elsewhere is set as text, never as markup.

// What is told, with control characters in names, and those that turn the writing round, as escapes.
function facts(json) {
  const named = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  const escaped = (found) => {
    if (named[found]) return named[found];
    const code = found.codePointAt(0);
    const [sign, width] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return "\\" + sign + code.toString(16).padStart(width, "0");
  };
  const shown = (key, value) => typeof value === "string" ? value.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, escaped) : value;
  return JSON.parse(json, shown);
}

function made(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const COPY_LEGEND = [["data", "data, to do"], ["zero", "zeros"], ["unallocated", "unallocated"], ["leased", "leased"],
                ["doubt", "in doubt"], ["written", "written"], ["durable", "durable"], ["verified", "verified"]];
const COMPARE_LEGEND = [["data", "data, to compare"], ["zero", "zeros in both"], ["leased", "leased"], ["verified", "compared"]];
const READ_LEGEND = [["data", "data, to read"], ["zero", "zeros"], ["unallocated", "unallocated"], ["leased", "leased"], ["verified", "read"]];
const LEGENDS = { copy: COPY_LEGEND, compare: COMPARE_LEGEND, read: READ_LEGEND };
const JOURNAL_LEGEND = [["unknown", "not done"], ["written", "a part is durable"], ["durable", "durable"], ["verified", "verified"]];
const ALARMS = ["failed", "different", "worker lost", "lost", "dropped", "warning", "silent", "killed"];
const cards = new Map();

function legend(entries) {
  const list = made("ul", "legend");
  for (const [colour, text] of entries) {
    const item = made("li"), sample = made("i");
    sample.style.background = `var(--${colour})`;
    item.append(sample, text);
    list.append(item);
  }
  return list;
}

function heading(text) {
  const element = made("h3", "", text), more = made("small");
  element.append(" ", more);
  return [element, more];
}

function newCard() {
  const card = { root: made("section", "job") };
  const top = made("div", "top");
  card.title = made("h2");
  card.state = made("span", "state");
  top.append(card.title, card.state);
  card.why = made("p", "why");
  card.bar = made("div");
  const bar = made("div", "bar");
  bar.append(card.bar);
  card.now = made("p", "now");
  card.numbers = made("dl");
  const [mapHead, mapMore] = heading("Map of the disk");
  card.mapMore = mapMore;
  card.map = made("canvas", "map");
  card.map.setAttribute("role", "img");
  card.under = made("p", "under");
  card.mapPart = made("div");
  card.mapLegend = made("div");
  card.mapPart.append(mapHead, card.map, card.mapLegend, card.under);
  const [rateHead, rateMore] = heading("Throughput");
  card.rateMore = rateMore;
  card.rates = made("canvas", "rates");
  card.rates.setAttribute("role", "img");
  card.rateLegend = made("div");
  card.ratePart = made("div");
  card.ratePart.append(rateHead, card.rates, card.rateLegend);
  const [workHead, workMore] = heading("Workers");
  card.workMore = workMore;
  card.workers = made("tbody");
  const table = made("table"), head = made("thead"), row = made("tr");
  for (const [text, less] of [["worker"], ["state"], ["rate"], ["read", true], ["written", true], ["zeros", true], ["leases"],
                              ["retries"]]) {
    row.append(made("th", less ? "less" : "", text));
  }
  card.columns = row;
  head.append(row);
  table.append(head, card.workers);
  const scroll = made("div", "scroll");
  scroll.append(table);
  card.workPart = made("div");
  card.workPart.append(workHead, scroll);
  const [eventHead, eventMore] = heading("What happened");
  card.eventMore = eventMore;
  card.events = made("ol", "events");
  card.root.append(top, card.why, bar, card.now, card.numbers, card.mapPart, card.ratePart, card.workPart, eventHead,
                   card.events);
  card.map.addEventListener("pointermove", (event) => {
    if (card.job && card.job.map) card.under.textContent = wordsAt(card.map, card.job, event.offsetX, event.offsetY);
  });
  card.map.addEventListener("pointerleave", () => { card.under.textContent = ""; });
  return card;
}

function readWord(job) {
  return job.kind === "compare" ? "compared" : "read";
}

// What a job that writes nothing has no use for.
function onlyCopies(job, ...cells) {
  for (const cell of cells) cell.hidden = job.kind !== "copy";
}

function numbersOf(job) {
  const live = !job.from_journal, copies = job.kind === "copy", retries = job.troubles + job.restarts;
  const numbers = [[copies ? "zeros" : "zeros, not read", human(live ? job.zero : job.done_zero)]];
  if (copies) numbers.unshift(["durable", human(job.durable)]);
  if (live && copies) numbers.unshift(["written", human(job.written)]);
  if (live) {
    numbers.unshift([readWord(job), human(job.read)]);
    numbers.push(["leases", String(job.leases)]);
    if (copies) numbers.push(["in doubt", String(job.in_doubt), job.in_doubt > 0]);
    numbers.push(["retries", String(retries)], ["workers lost", String(job.deaths), job.deaths > 0]);
  }
  if (job.targets > 1 || job.dropped) numbers.push(["targets failed", `${job.dropped} of ${job.targets}`, job.dropped > 0]);
  if (job.lost) numbers.push(["could not be read", human(job.lost), true]);
  if (job.verified) {
    const told = job.verified.replace(/(\d+) of (\d+) bytes/, (_, some, all) => `${human(Number(some))} of ${human(Number(all))}`);
    numbers.push(["verified", told]);
  }
  if (job.digest) numbers.push(["digest", job.digest, false, true]);
  if (job.go_on) numbers.push(["go on with", job.go_on, false, true]);
  return numbers.map(([name, value, alarm, wide]) => {
    const pair = made("div", wide ? "wide" : "");
    pair.append(made("dt", "", name), made("dd", alarm ? "alarm" : "", value));
    return pair;
  });
}

function nowOf(job) {
  const running = ["waiting", "opening", "running"].includes(job.state);
  const told = [job.size || !running ? `${human(job.done)} of ${human(job.size)}` : "size not known yet"];
  if (running && job.rate) told.push(`${human(job.rate)}/s`);
  if (running && job.left !== null) told.push(`${duration(job.left)} left`);
  if (job.state !== "waiting" || job.elapsed) told.push(`${running ? "for" : "in"} ${duration(job.elapsed)}`);
  const share = job.size ? 100 * job.done / job.size : (job.state === "finished" ? 100 : 0);
  const percent = made("b", "percent", `${Math.min(100, Math.floor(share * 10) / 10).toFixed(1)} %`);
  return [percent, ...told.map((text) => made("span", "", text))];
}

function workerRow(job, worker) {
  const off = worker.state === "gone" || worker.state === "lost";
  const row = made("tr", off ? "off" : "");
  const retries = worker.troubles + worker.restarts;
  const leases = worker.in_doubt ? `${worker.leases} (${worker.in_doubt} in doubt)` : String(worker.leases);
  row.append(made("td", "", worker.name), made("td", worker.state === "lost" ? "alarm" : "", worker.state),
             made("td", "", worker.rate ? `${human(worker.rate)}/s` : "–"), made("td", "less", human(worker.read)),
             made("td", "less", human(worker.written)), made("td", "less", human(worker.zero)),
             made("td", worker.in_doubt ? "alarm" : "", leases), made("td", retries ? "alarm" : "", String(retries)));
  onlyCopies(job, row.children[4], row.children[5]);
  return row;
}

function eventLine(one) {
  const line = made("li", ALARMS.includes(one.kind) || one.kind.endsWith("dropped") ? "alarm" : "");
  const when = new Date(one.at * 1000);
  const time = made("time", "", when.toLocaleTimeString([], { hour12: false }));
  time.title = when.toLocaleString();
  line.append(time, made("b", "", one.kind), made("span", "", one.text));
  return line;
}

function drawCharts(card) {
  const job = card.job;
  if (job.map) drawMap(card.map, job);
  if (job.timeline.length > 1) drawRates(card.rates, job.timeline, card.lines);
}

// The job's card, new or there already, shows what is known of it now.
function show(job) {
  let card = cards.get(job.name);
  if (!card) {
    card = newCard();
    cards.set(job.name, card);
    document.getElementById("jobs").append(card.root);
  }
  card.job = job;
  card.root.className = `job ${job.state}${job.differs ? " differs" : ""}`;
  card.root.dataset.done = job.done;
  const stage = job.state === "running" && job.stage && job.stage !== "copy" && job.stage !== "open" ? `: ${job.stage}` : "";
  const equal = job.kind === "compare" && job.state === "finished" ? (job.differs ? ": different" : ": equal") : "";
  card.state.className = `state ${job.state}`;
  card.state.textContent = job.state + stage + equal;
  card.title.replaceChildren(job.source);
  if (job.target) card.title.append(made("span", "arrow", job.kind === "compare" ? " and " : " → "), job.target);
  card.why.hidden = !(job.why || job.verdict);
  card.why.className = job.why || job.differs ? (job.state === "stopped" ? "why mild" : "why") : "why good";
  card.why.textContent = job.why || job.verdict || "";
  card.bar.style.width = `${job.size ? Math.min(100, 100 * job.done / job.size) : 0}%`;
  card.now.replaceChildren(...nowOf(job));
  card.numbers.replaceChildren(...numbersOf(job));
  card.mapPart.hidden = !job.map;
  if (job.map) {
    card.mapMore.textContent = `each square ${human(job.map.bin)}; zeros are paler`;
    card.map.setAttribute("aria-label", `Map of the disk: ${human(job.done)} of ${human(job.size)} are done`);
  }
  card.lines = job.from_journal ? LINES.slice(1) : LINES.filter(([text]) => job.kind === "copy" || text !== "written");
  card.ratePart.hidden = job.timeline.length < 2;
  card.rateMore.textContent = job.from_journal ? "of what became durable" : "";
  if (!card.mapLegend.firstChild) card.mapLegend.append(legend(job.from_journal ? JOURNAL_LEGEND : LEGENDS[job.kind]));
  if (!card.rateLegend.firstChild) card.rateLegend.append(legend(card.lines.map(([text, , colour]) => [colour, text])));
  card.rates.setAttribute("aria-label", `Throughput over time: now ${human(job.rate)} a second`);
  card.workPart.hidden = !job.workers_known;
  card.columns.children[3].textContent = readWord(job);
  onlyCopies(job, card.columns.children[4], card.columns.children[5]);
  card.workMore.textContent = job.workers.length < job.workers_known ? `${job.workers.length} of ${job.workers_known}` : "";
  card.workers.replaceChildren(...job.workers.map((worker) => workerRow(job, worker)));
  const newestFirst = document.body.classList.contains("report") ? job.events : [...job.events].reverse();
  card.eventMore.textContent = document.body.classList.contains("report") ? "" : "newest first";
  card.events.replaceChildren(...newestFirst.map(eventLine));
  drawCharts(card);
}

function drawAgain() {
  for (const card of cards.values()) drawCharts(card);
}

window.addEventListener("resize", drawAgain);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAgain);
