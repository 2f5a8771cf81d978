// A part of a session without page loads. An answer goes into the outbox before the next image comes; sending.js takes
// it from there, and "saved" is shown only once the server has committed. Without scripts the page is a plain form.

import { Images } from "./images.js";
import { Outbox } from "./outbox.js";
import * as presentation from "./presentation.js";
import * as questions from "./questions.js";
import { Sending } from "./sending.js";
import { ask, insist } from "./server.js";
import { text } from "./texts.js";

const PAUSE_MIN_MS = 500; // a press meant for the image before ends no pause
const TROUBLE = 2; // failed attempts in a row; before, it may be a hiccup

const root = document.documentElement;
const element = (id) => document.getElementById(id);
const stage = element("stage");
const form = element("questions");
const keys = element("keys");
const { token, phase } = stage.dataset;
const pauseAfter = Number(stage.dataset.pauseAfter);
const minAnswerMs = Number(stage.dataset.minAnswerMs);
const address = `/s/${token}`;
const tabs = "BroadcastChannel" in window ? new BroadcastChannel(address) : null; // what other tabs have answered

let trials; // position -> trial
let order; // positions of this part, as they come
let images;
let outbox;
let sending;
const known = new Set(); // positions that need no answer any more: stored, or in the outbox
let current = null; // the trial before the participant
let busy = false; // from an answer to the next image
let adding = 0; // 1 while an answer is on its way into the outbox
let whenSaved = []; // called when the outbox is empty
let over = false; // the server has all of this part
let pending = 0;
let failures = 0;
let wasCutOff = false;
let leaving = false;
let endPause = null;

// Random version-4 UUID; crypto.randomUUID does not exist on plain http in a laboratory's network.
function newAnswerId() {
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = (b[6] & 0x0f) | 0x40;
  b[8] = (b[8] & 0x3f) | 0x80;
  const hex = [...b].map((x) => x.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

// To the page where the session is; not before it can be reached, as the browser's own error page has no way back.
async function leave() {
  if (leaving) return;
  leaving = true;
  while (!(await reachable())) await insist("GET", `/api/sessions/${token}`);
  location.replace(address);
}
const reachable = () => fetch(address, { method: "HEAD", cache: "no-store" }).then((r) => r.status < 500, () => false);

// What the page says

function panel(name) {
  stage.dataset.panel = name;
  if (name) element(name).focus({ preventScroll: true });
}

function say(id, words) {
  if (element(id).textContent !== words) element(id).textContent = words;
}

function showError(words) {
  say("error", words);
  element("error").hidden = !words;
  if (words) element("error").scrollIntoView({ block: "nearest" });
}

function showState() {
  const trouble = failures >= TROUBLE || (failures > 0 && !navigator.onLine);
  const unsaved = pending + adding;
  say("saved", unsaved ? text(failures ? "unsaved" : "saving", { number: unsaved }) : known.size ? text("saved") : "");
  const cutOff = trouble || !navigator.onLine;
  if (cutOff) say("recovery", "");
  else if (wasCutOff && unsaved === 0) say("recovery", text("recovered"));
  wasCutOff = cutOff || (wasCutOff && unsaved > 0);
  say("connection", cutOff ? text(outbox.durable ? "offline" : "offline_wait") : "");
  element("connection").hidden = !cutOff;
  say("finishing-text", text(trouble ? "last_unsaved" : "last_saving", { number: unsaved }));
}

function showProgress(trial) {
  const kind = order.filter((position) => trials.get(position).practice === trial.practice);
  const number = kind.indexOf(trial.position) + 1;
  const total = kind.length;
  say("progress-text", text(trial.practice ? "practice" : "image", { number, total }));
  element("progress").max = total;
  element("progress").value = trial.practice ? 0 : number - 1;
  for (const note of stage.querySelectorAll("[data-show-on]")) {
    note.hidden = note.dataset.showOn === "practice" ? !trial.practice : trial.practice || number !== 1;
  }
}

// One trial after the other

async function show(trial) {
  current = trial;
  endPause = null;
  presentation.conceal();
  delete stage.dataset.shown;
  questions.clear();
  showError("");
  if (trial.prediction !== null && element("prediction")) say("prediction", trial.prediction);
  showProgress(trial);
  panel("");
  element("main").focus({ preventScroll: true });
  window.scrollTo(0, 0);
  const painted = await presentation.present(images.of(trial.image), images.retries(trial.image));
  if (painted) stage.dataset.shown = trial.position; // for tests: from here on a response time is measured
}

async function goOn(after = null) {
  for (const entry of await outbox.entries().catch(() => [])) if (entry.phase === phase) known.add(entry.position);
  const next = order.find((position) => !known.has(position));
  if (next !== undefined) {
    if (after && pauseIsDue(after)) {
      await rest();
      return goOn();
    }
    return show(trials.get(next));
  }
  current = null;
  presentation.conceal();
  element("progress").value = element("progress").max;
  panel("finishing");
  over = true;
  leaveWhenSaved();
}

function pauseIsDue(trial) {
  const counted = order.filter((position) => !trials.get(position).practice);
  const number = counted.indexOf(trial.position) + 1;
  return pauseAfter > 0 && number > 0 && number < counted.length && number % pauseAfter === 0;
}

function rest() {
  current = null;
  presentation.conceal();
  panel("pause");
  const since = performance.now();
  return new Promise((resolve) => {
    endPause = () => {
      if (performance.now() - since < PAUSE_MIN_MS) return;
      endPause = null;
      resolve();
    };
  });
}

async function submit() {
  if (busy || !current || presentation.tooEarly(minAnswerMs)) return;
  const { content, missing } = questions.answer();
  if (missing) {
    showError(missing);
    return;
  }
  busy = true;
  adding = 1;
  element("continue").disabled = true;
  const trial = current;
  const answer = {
    phase,
    position: trial.position,
    rank: order.indexOf(trial.position),
    answer_id: newAnswerId(),
    answered_at: Date.now(),
    content: { ...content, rt_ms: presentation.responseTime(), display: presentation.display() },
  };
  known.add(trial.position);
  showState();
  await outbox.add(answer);
  tabs?.postMessage(trial.position);
  adding = 0;
  pending += 1;
  sending.wake();
  if (outbox.volatile) await new Promise((resolve) => whenSaved.push(resolve));
  element("continue").disabled = false;
  current = null;
  busy = false;
  await goOn(trial);
}

// Sending, and what comes back

function onState(state) {
  ({ pending, failures } = state);
  showState();
  if (pending > 0) return;
  for (const resolve of whenSaved.splice(0)) resolve();
  leaveWhenSaved();
}

function leaveWhenSaved() {
  if (over && pending + adding === 0) leave();
}

// The server has said where the session is; another tab or device may be ahead of this page.
function onKnown({ state, next_position: next }) {
  if (state !== phase) {
    over = true;
    return;
  }
  order.slice(0, Math.max(0, order.indexOf(next))).forEach((position) => known.add(position));
  catchUp();
}

function catchUp() {
  if (current && known.has(current.position) && !busy) goOn();
}

function askAgain(position, words = "") {
  known.delete(position);
  over = false;
  if (current?.position !== position) show(trials.get(position)).then(() => showError(words));
}


// Presses

function refuse(event) {
  event.preventDefault();
  event.stopPropagation();
}

function onClick(event) {
  if (event.target.closest("#continue, .choices") && presentation.tooEarly(minAnswerMs)) refuse(event);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  const onControl = event.target.closest("a, button");
  if (endPause && key === "enter" && !event.repeat && !onControl) endPause();
  if (!current || !(key === "enter" || (keysAreOn() && questions.isKey(key)))) return;
  if (event.repeat) {
    event.preventDefault(); // a key that stays down is no second answer, on a button neither
    presentation.heldKey();
    return;
  }
  if (!keysAreOn() || (key === "enter" && onControl)) return;
  event.preventDefault();
  if (busy) return;
  if (key === "enter") submit();
  else if (!presentation.tooEarly(minAnswerMs)) {
    questions.press(key);
    showError("");
  }
}

// Keys work only where the line that names them, and switches them off, is to be seen.
const keysAreOn = () => element("keys-on").checked && keys.offsetParent !== null;

function setUpKeys() {
  const KEY = "keys-off";
  const box = element("keys-on");
  try {
    box.checked = localStorage.getItem(KEY) === null;
    box.addEventListener("change", () => {
      if (box.checked) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, "yes");
    });
  } catch {
    // not remembered: the browser keeps nothing for this site
  }
  keys.hidden = false;
}

// The ways out of the page lead to the browser's own error page while there is no connection, and that has no way back.
async function onWayOut(event) {
  const way = event.target.closest(".foot a, .foot button");
  if (!way || way.dataset.open) return;
  refuse(event);
  if (!(await reachable())) return showError(text("no_way_out"));
  way.dataset.open = "yes";
  way.click();
}

function listen() {
  document.addEventListener("click", onWayOut, true);
  form.addEventListener("click", onClick, true);
  form.addEventListener("change", (event) => {
    if (event.target.type !== "radio") return;
    questions.changed(event.target.name);
    showError("");
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  tabs?.addEventListener("message", ({ data: position }) => {
    known.add(position);
    catchUp();
  });
  element("go-on").addEventListener("click", () => endPause?.());
  document.addEventListener("keydown", onKey);
  for (const name of ["online", "offline"]) window.addEventListener(name, showState);
  window.addEventListener("beforeunload", (event) => {
    if (outbox.volatile) event.preventDefault();
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) leave(); // the back button must not bring an answered page back to life
  });
}

// Beginning

function showLoading({ loaded, failing, total }) {
  element("loading-bar").max = total;
  element("loading-bar").value = loaded;
  say("loading-text", text("loading", { loaded, total }));
  say("loading-trouble", failing ? text("failing", { number: failing }) : "");
  element("retry").hidden = !failing;
}

async function begin() {
  outbox = await Outbox.open(token);
  const reply = await insist("GET", `/api/sessions/${token}`, undefined, () => say("loading-trouble", text("waiting")));
  say("loading-trouble", "");
  if (reply.status !== 200 || reply.body.state !== phase) return leave();
  trials = new Map(reply.body.trials.map((trial) => [trial.position, trial]));
  order = reply.body.order;
  for (const position of order) if (trials.get(position).answered) known.add(position);
  sending = new Sending(token, outbox, {
    state: onState,
    known: onKnown,
    missing: askAgain,
    refused: (entry) => (entry.phase === phase ? askAgain(entry.position, text("refused")) : leave()),
    gone: leave,
  });
  sending.start();
  images = new Images(order.map((position) => trials.get(position).image), element("retry"), showLoading);
  await images.loaded;
  setUpKeys();
  listen();
  await goOn();
}

if (root.classList.contains("scripted")) {
  root.dataset.running = "yes";
  begin().catch((error) => {
    root.classList.replace("scripted", "plain");
    throw error;
  });
}
