// The last page: what is written outlives a reload or a crash, and is sent until the server has stored it.

import { insist } from "./server.js";
import { text } from "./texts.js";

const form = document.getElementById("comment");
const box = document.getElementById("text");
const button = form.querySelector("button");
const status = document.getElementById("status");
const error = document.getElementById("error");
const { token } = form.dataset;
const KEY = `comment:${token}`;

const draft = {
  read: () => attempt(() => localStorage.getItem(KEY)),
  keep: (words) => attempt(() => localStorage.setItem(KEY, words)),
  forget: () => attempt(() => localStorage.removeItem(KEY)),
};
function attempt(act) {
  try {
    return act();
  } catch {
    return null; // a browser that keeps nothing for this site
  }
}

const insistently = (path, content) =>
  insist("POST", `/api/sessions/${token}/${path}`, content, () => (status.textContent = text("unsaved")));

async function finish() {
  button.disabled = true;
  if (box) box.readOnly = true; // what is written after this would not be sent
  error.hidden = true;
  status.textContent = text("saving");
  if (box) {
    const reply = await insistently("comments", { text: storable(box.value) });
    if (reply.status === 422 || (reply.status === 409 && reply.body.state === "finished" && box.value)) {
      box.readOnly = false;
      button.disabled = reply.status === 409; // finished in another tab: too late for this comment
      status.textContent = "";
      error.textContent = text(reply.status === 409 ? "too_late" : "too_long");
      error.hidden = false;
      document.getElementById("after").hidden = reply.status !== 409;
      return;
    }
  }
  await insistently("finish");
  draft.forget();
  location.replace(`/s/${token}`);
}

// Without what no database keeps: NUL, and halves of characters.
function storable(words) {
  const whole = words.replaceAll("\0", "");
  return whole.toWellFormed ? whole.toWellFormed() : whole;
}

if (box) {
  box.value = draft.read() ?? box.value;
  box.addEventListener("input", () => draft.keep(box.value));
}
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!button.disabled) finish();
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.replace(`/s/${token}`);
});
