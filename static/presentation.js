// One image before a participant: from when on, for how long, how large; and what was pressed that is no answer.

import { fit } from "./crisp.js";

const DAY_MS = 24 * 3600 * 1000;
const NATIVE = ["width", "height"];

const figure = document.querySelector(".stimulus");
const alt = document.getElementById("stimulus").alt;
let image = document.getElementById("stimulus");
let shownAt = null; // performance.now() at the paint after the image was decoded
let turn = 0;
let noted = {};
let hiddenSince = null;
let input = null; // what the last press was made with

export function fitImage() {
  image.style.width = ""; // back to the room that the style sheet gives
  fit(image, image.getBoundingClientRect().width);
}

// Puts a decoded image before the participant; resolves when it has been painted, to false if another came first.
export async function present(decoded, retries) {
  turn += 1;
  const mine = turn;
  shownAt = null;
  noted = { hidden_times: 0, hidden_ms: 0, held_keys: 0, too_early: 0, image_retries: retries };
  hiddenSince = document.hidden ? performance.now() : null;
  input = null;
  decoded.id = "stimulus";
  decoded.alt = alt;
  for (const side of NATIVE) decoded.setAttribute(side, side === "width" ? decoded.naturalWidth : decoded.naturalHeight);
  image = decoded;
  figure.replaceChildren(image);
  fitImage();
  await image.decode().catch(() => {});
  await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  if (mine !== turn) return false;
  shownAt = performance.now();
  return true;
}

export function conceal() {
  turn += 1;
  shownAt = null;
}

// Whether a press comes before the image can have been seen: it is no answer, and counted.
export function tooEarly(minAnswerMs) {
  if (shownAt !== null && performance.now() - shownAt >= minAnswerMs) return false;
  noted.too_early += 1;
  return true;
}

export function heldKey() {
  noted.held_keys += 1;
}

export function responseTime() {
  const elapsed = performance.now() - shownAt;
  return elapsed >= 0 && elapsed <= DAY_MS ? Math.round(elapsed * 10) / 10 : null;
}

export function display() {
  const box = image.getBoundingClientRect();
  return {
    css_width: box.width,
    css_height: box.height,
    device_pixel_ratio: window.devicePixelRatio,
    interpolation: getComputedStyle(image).imageRendering,
    zoom: window.visualViewport ? window.visualViewport.scale : null,
    viewport_width: window.innerWidth,
    viewport_height: window.innerHeight,
    input,
    ...noted,
    hidden_ms: Math.round(noted.hidden_ms),
  };
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    noted.hidden_times += 1;
    hiddenSince = performance.now();
  } else if (hiddenSince !== null) {
    noted.hidden_ms += performance.now() - hiddenSince;
    hiddenSince = null;
  }
});
window.addEventListener("pointerdown", (event) => (input = event.pointerType || "mouse"), true);
window.addEventListener("keydown", () => (input = "keyboard"), true);
window.addEventListener("resize", fitImage);
