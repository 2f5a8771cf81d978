// Asking the server, and asking again: with growing pauses, and at once when there is hope.

const TIMEOUT_MS = 15_000; // a request that nobody answers ends here, and is tried again
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;
const LONGEST_REQUESTED_PAUSE_MS = 60_000;
const FINAL = new Set([200, 404, 409, 422]); // the app's own answers; anything else may come right by itself

// {final, status, body, pauseMs}. `final` only for a whole answer of the app: a body that breaks off is no answer,
// nor is the page of a proxy or of a café's network. `signal` ends the attempt early.
export async function ask(method, url, content, signal) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), TIMEOUT_MS);
  const end = () => stop.abort();
  signal?.addEventListener("abort", end);
  const failed = { final: false, status: 0, body: null, pauseMs: 0 };
  try {
    const reply = await fetch(url, {
      method,
      headers: content === undefined ? {} : { "Content-Type": "application/json" },
      body: content === undefined ? undefined : JSON.stringify(content),
      keepalive: method !== "GET", // a page that goes away lets it arrive
      cache: "no-store",
      signal: stop.signal,
    });
    failed.status = reply.status;
    failed.pauseMs = Math.min(1000 * (Number(reply.headers.get("Retry-After")) || 0), LONGEST_REQUESTED_PAUSE_MS);
    if (!FINAL.has(reply.status)) return failed;
    const body = await reply.json();
    if (body === null || typeof body !== "object") return failed;
    return { final: true, status: reply.status, body, pauseMs: 0 };
  } catch {
    return failed;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", end);
  }
}

// Calls `react` whenever a connection is likely to be there again; returns what ends that.
export function onHope(react) {
  const end = new AbortController();
  const options = { signal: end.signal };
  window.addEventListener("online", () => react(), options);
  window.addEventListener("pageshow", () => react(), options);
  document.addEventListener("visibilitychange", () => document.hidden || react(), options);
  return () => end.abort();
}

// The pause after so many failures in a row. The chance in it keeps a class of participants from coming back at once.
export function pause(failures, atLeastMs = 0, wakers = []) {
  const growing = Math.min(FIRST_PAUSE_MS * 2 ** Math.max(0, failures - 1), LONGEST_PAUSE_MS);
  const ms = Math.max(growing * (0.75 + 0.5 * Math.random()), atLeastMs);
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      endHope();
      resolve();
    };
    const timer = setTimeout(done, ms);
    const endHope = atLeastMs ? () => {} : onHope(done);
    for (const waker of wakers) waker.addEventListener("click", done, { once: true });
  });
}

// Asks until there is a final answer; `onFailure` is told how many attempts have failed in a row.
export async function insist(method, url, content, onFailure = () => {}) {
  for (let failures = 1; ; failures += 1) {
    const reply = await ask(method, url, content);
    if (reply.final) return reply;
    onFailure(failures);
    await pause(failures, reply.pauseMs);
  }
}
