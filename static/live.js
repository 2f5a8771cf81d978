// Keeps the results live: fetches the page again every few seconds while somebody looks at it.
const PERIOD_MS = 5000;
const live = document.getElementById("live");

async function refresh() {
  if (document.hidden || live.contains(document.activeElement)) return;
  try {
    const reply = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!reply.ok) return;
    const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").getElementById("live");
    if (fresh && fresh.innerHTML !== live.innerHTML) live.innerHTML = fresh.innerHTML;
  } catch {
    // the server is away for a moment; what is shown stays
  }
}
setInterval(refresh, PERIOD_MS);
