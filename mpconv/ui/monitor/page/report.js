// The report: what is known of jobs stands in the file.

document.body.classList.add("report");
const reported = facts(document.getElementById("facts").textContent);
document.getElementById("link").textContent = `report of ${new Date(reported.made * 1000).toLocaleString()}`;
for (const job of reported.jobs) show(job);
