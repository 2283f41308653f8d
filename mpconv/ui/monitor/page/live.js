// The page that follows jobs: each message is a job as it stands.

const link = document.getElementById("link");

function tellLink(text, bad) {
  link.textContent = text;
  link.className = bad ? "bad" : "";
}

function titled() {
  const jobs = [...cards.values()].map((card) => card.job);
  const failed = jobs.find((job) => job.state === "failed");
  const done = jobs.reduce((sum, job) => sum + job.done, 0), size = jobs.reduce((sum, job) => sum + job.size, 0);
  const states = new Map();
  for (const job of jobs) states.set(job.state, (states.get(job.state) || 0) + 1);
  const counts = [...states].map(([state, count]) => `${count} ${state}`).join(", ");
  document.getElementById("sum").textContent = jobs.length < 2 ? "" : `${jobs.length} jobs: ${counts}; ${human(done)} of ${human(size)}`;
  document.title = jobs.some((job) => job.differs) ? "different – mpconv" : failed ? "failed – mpconv" : `${size ? Math.floor(100 * done / size) : 0} % – mpconv`;
}

function endedText() {
  if ([...cards.values()].some((card) => card.job.differs)) return "the command has ended: the images differ";
  const states = [...cards.values()].map((card) => card.job.state);
  const bad = states.filter((state) => state !== "finished").length;
  if (!bad) return "the command has ended: finished";
  return states.length === 1 ? `the command has ended: ${states[0]}` : `the command has ended: ${bad} of ${states.length} did not finish`;
}

tellLink("connecting", false);
const source = new EventSource("events" + window.location.search);
source.onopen = () => tellLink("live", false);
source.onmessage = (event) => { show(facts(event.data)); titled(); };
source.addEventListener("over", (event) => {
  source.close();
  if (JSON.parse(event.data).journals) {
    tellLink("mpconv status has ended: what is shown is not kept up to date any more", true);
    return;
  }
  const text = endedText();
  tellLink(text, !text.endsWith("finished"));
});
source.onerror = () => {
  const gone = source.readyState === EventSource.CLOSED;
  tellLink(gone ? "not connected: open the URL that mpconv printed" :
           "connection lost: the command was killed, or its host cannot be reached; trying again", true);
};
