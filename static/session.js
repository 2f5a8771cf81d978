// A trial without page loads: sends each answer to the JSON API and shows the next image in place.
// The page is a plain form; everything here only makes it quicker. Nothing is shown as saved before the server said so.

import { fit } from "./crisp.js";

const stage = document.getElementById("stage");
const form = document.getElementById("questions");
const image = document.getElementById("stimulus");
const errorBox = document.getElementById("error");
const status = document.getElementById("status");
const button = document.getElementById("continue");
const token = stage.dataset.token;
const phase = stage.dataset.phase;
const labelling = phase === "labelling";
const DAY_MS = 24 * 3600 * 1000;

let session = null; // GET /api/sessions/{token}
let position = Number(stage.dataset.position);
let number = Number(stage.dataset.number);
let answerId = form.elements.answer_id.value;
let shownAt = null; // performance.now() at the paint after the image was decoded
let hiddenTimes = 0; // how often the page went out of sight during this trial
let sending = false;
let secondFilledIn = false; // "no other" was set because no label is plausible

const leave = () => location.replace(`/s/${token}`);

// Repeats until the attempt gives something: after half a second, then ever more rarely, and at once on reconnect.
async function insist(attempt, message) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const result = await attempt();
      if (result) {
        status.textContent = "";
        return result;
      }
    } catch {
      // no connection; tried again below
    }
    status.textContent = message;
    await new Promise((resolve) => {
      setTimeout(resolve, wait);
      window.addEventListener("online", resolve, { once: true });
    });
  }
}

// Random version-4 UUID; crypto.randomUUID does not exist on plain http in a laboratory's network.
function newAnswerId() {
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = (b[6] & 0x0f) | 0x40;
  b[8] = (b[8] & 0x3f) | 0x80;
  const hex = [...b].map((x) => x.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

function fitImage() {
  image.style.width = ""; // back to the room that the style sheet gives
  fit(image, image.getBoundingClientRect().width);
}

const fetched = new Map(); // image address -> promise of the decoded image
function decoded(url) {
  if (!fetched.has(url)) {
    const ahead = new Image();
    ahead.src = url;
    fetched.set(url, ahead.decode().then(() => ahead, () => fetched.delete(url) && null));
  }
  return fetched.get(url);
}

async function markShown() {
  shownAt = null;
  delete stage.dataset.shown;
  hiddenTimes = 0;
  const of = position;
  try {
    await image.decode();
  } catch {
    showError("The image could not be loaded. Please reload the page; nothing is lost.");
    return;
  }
  requestAnimationFrame(() => requestAnimationFrame(() => {
    if (of !== position) return;
    shownAt = performance.now();
    stage.dataset.shown = position; // for tests: from here on a response time is measured
  }));
}

function showError(text) {
  errorBox.textContent = text;
  errorBox.hidden = !text;
  if (text) errorBox.scrollIntoView({ block: "nearest" });
}

function group(name) {
  return [...form.querySelectorAll(`input[name="${name}"]`)];
}
const chosen = (name) => group(name).find((input) => input.checked && !input.disabled) || null;

// The second label cannot be the first one; with no plausible label there is no second.
function updateChoices() {
  if (chosen("label") || chosen("plausible")) showError("");
  if (!labelling) return;
  const first = chosen("label");
  const none = first !== null && first.value === "none";
  for (const input of group("runner_up")) {
    if (secondFilledIn && !none) input.checked = false; // it was not the participant's choice
    input.disabled = none ? input.value !== "none" : first !== null && input.value !== "none" && input.value === first.value;
    if (none) input.checked = input.value === "none";
    else if (input.disabled) input.checked = false;
  }
  secondFilledIn = none;
}

function answer() {
  if (!labelling) {
    const choice = chosen("plausible");
    return choice ? { plausible: choice.value === "yes" } : "Choose yes or no.";
  }
  const first = chosen("label");
  if (!first) return "Choose a label, or “none is plausible”.";
  if (group("runner_up").length === 0) return { label: first.value, runner_up: null };
  const second = chosen("runner_up");
  if (!second) return "Choose a second label too, or “no other”.";
  return { label: first.value, runner_up: second.value };
}

function display() {
  const box = image.getBoundingClientRect();
  return {
    css_width: box.width,
    css_height: box.height,
    device_pixel_ratio: window.devicePixelRatio,
    interpolation: getComputedStyle(image).imageRendering,
    zoom: window.visualViewport ? window.visualViewport.scale : null,
    hidden_times: hiddenTimes,
  };
}

// Sends until the server has answered: what it has not acknowledged is sent again, with the same id.
function put(body) {
  const url = `/api/sessions/${token}/trials/${position}/${labelling ? "label" : "plausibility"}`;
  const request = {
    method: "PUT",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  return insist(async () => {
    const reply = await fetch(url, request);
    return reply.status < 500 && reply.status !== 429 ? reply : null;
  }, "Not saved yet; trying again …");
}

async function submit() {
  if (sending) return;
  const given = answer();
  if (typeof given === "string") return showError(given);
  const elapsed = shownAt === null ? null : Math.max(0, performance.now() - shownAt);
  const rt = elapsed !== null && elapsed <= DAY_MS ? Math.round(elapsed * 10) / 10 : null;
  sending = true;
  button.disabled = true;
  showError("");
  const reply = await put({ answer_id: answerId, ...given, rt_ms: rt, display: display() });
  if (reply.ok) {
    const stored = await reply.json();
    const trial = session?.trials.find((trial) => trial.position === stored.next_position);
    if (!trial) return leave(); // another phase, or this page does not know what comes
    await insist(() => decoded(trial.image), "The next image is on its way …");
    show(trial);
  } else if (reply.status === 422) {
    showError((await reply.json()).detail);
  } else {
    return leave(); // answered elsewhere, or another page by now: the server knows where
  }
  sending = false;
  button.disabled = false;
}

function show(trial) {
  const was = session.trials.find((trial) => trial.position === position);
  if (!was.practice) number += 1;
  position = trial.position;
  answerId = newAnswerId();
  form.elements.position.value = position;
  form.elements.answer_id.value = answerId;
  for (const input of form.querySelectorAll("input[type=radio]")) {
    input.checked = false;
    input.disabled = false;
  }
  image.src = trial.image;
  if (!labelling) document.getElementById("prediction").textContent = trial.prediction;
  const total = Number(stage.dataset.total);
  document.getElementById("progress-text").textContent =
    trial.practice ? `Practice image ${position}` : `Image ${number} of ${total}`;
  document.getElementById("progress").value = trial.practice ? 0 : number - 1;
  for (const note of stage.querySelectorAll("[data-show-on]")) {
    note.hidden = note.dataset.showOn === "practice" ? !trial.practice : trial.practice || number !== 1;
  }
  document.getElementById("main").focus({ preventScroll: true });
  window.scrollTo(0, 0);
  markShown();
}

function choose(name, value) {
  const input = group(name).find((input) => input.value.toLowerCase() === value && !input.disabled);
  if (input) input.checked = true;
  updateChoices();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || sending) return;
  const key = event.key.toLowerCase();
  if (key === "enter") {
    if (event.target.closest("a, button")) return;
    event.preventDefault();
    submit();
  } else if (!labelling) {
    if (key === "y") choose("plausible", "yes");
    if (key === "n") choose("plausible", "no");
  } else {
    const second = chosen("label") !== null && group("runner_up").length > 0;
    if (key === "backspace") {
      event.preventDefault();
      const last = chosen("runner_up") && chosen("label")?.value !== "none" ? "runner_up" : "label";
      for (const input of group(last)) input.checked = false;
      if (last === "label") for (const input of group("runner_up")) input.checked = false;
      updateChoices();
    } else if (session?.labels.some((label) => label.toLowerCase() === key) || /^[0-9]$/.test(key)) {
      choose(second ? "runner_up" : "label", key);
    } else if (key === "n") {
      choose(second ? "runner_up" : "label", "none");
    }
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
form.addEventListener("change", updateChoices);
document.addEventListener("keydown", onKey);
document.getElementById("keys").hidden = false; // the keys work from here on
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenTimes += 1;
});
window.addEventListener("resize", fitImage);
window.addEventListener("pageshow", (event) => {
  if (event.persisted) leave(); // the back button must not bring an answered page back to life
});

fitImage();
if (errorBox.hidden) updateChoices(); // an error that came with the page stays until something is chosen
markShown();
try {
  const reply = await fetch(`/api/sessions/${token}`);
  if (reply.ok) session = await reply.json();
  if (session && (session.state !== phase || session.next_position !== position) && !sending) leave();
} catch {
  // without it, every answer loads the next page
}
// Fetched and decoded ahead, so that no trial waits for the network.
for (const trial of session?.trials ?? []) decoded(trial.image);
