// Keeps the results live: fetches the page again every few seconds while somebody looks at it.
const PERIOD_MS = 5000;
const SHARE = 10; // a page that takes long to make is asked for more rarely: at most a tenth of the time
const KEPT = "summary, .scroll, .figure"; // may have the focus, and get it back
const live = document.getElementById("live");

async function refresh() {
  const started = performance.now();
  // Not under somebody's hands: a form or a link in use, or words being selected to be copied.
  const active = document.activeElement;
  const idle = (!live.contains(active) || active.matches(KEPT)) && document.getSelection().isCollapsed;
  if (!document.hidden && idle) {
    const page = await fetched();
    document.getElementById("away").hidden = page !== null;
    if (page) replace(page);
  }
  setTimeout(refresh, Math.max(PERIOD_MS, SHARE * (performance.now() - started)));
}

// The page anew, or null where the server is away.
async function fetched() {
  try {
    // X-Refresh: it is no sign that somebody is here, who else would stay signed in for ever (app/auth.py).
    const reply = await fetch(location.href, { headers: { Accept: "text/html", "X-Refresh": "yes" } });
    if (reply.status === 401) location.reload(); // signed out meanwhile: the way in is shown, and no results
    return reply.ok ? new DOMParser().parseFromString(await reply.text(), "text/html") : null;
  } catch {
    return null;
  }
}

// What the reader has opened or scrolled sideways stays so.
function replace(page) {
  const fresh = page.getElementById("live");
  if (!fresh) return;
  document.getElementById("as-of").textContent = page.getElementById("as-of").textContent;
  const opened = [...live.querySelectorAll("details")].map((details) => details.open);
  fresh.querySelectorAll("details").forEach((details, i) => (details.open = opened[i] ?? details.open));
  if (fresh.innerHTML === live.innerHTML) return;
  const before = [...live.querySelectorAll(KEPT)];
  const scrolled = before.map((box) => box.scrollLeft);
  const focused = before.indexOf(document.activeElement);
  live.innerHTML = fresh.innerHTML;
  const after = [...live.querySelectorAll(KEPT)];
  after.forEach((box, i) => (box.scrollLeft = scrolled[i] ?? 0));
  after[focused]?.focus({ preventScroll: true });
}

setTimeout(refresh, PERIOD_MS);
