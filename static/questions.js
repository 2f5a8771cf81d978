// The questions beside an image: what is chosen, what excludes what, and the keys that choose.

import { text } from "./texts.js";

const form = document.getElementById("questions");
const names = [...form.querySelectorAll("fieldset.keypad")].map((group) => group.id); // in the order of the page
const MISSING = { label: "choose_label", runner_up: "choose_runner_up", plausible: "choose_plausible" };

let given = []; // names of the questions in the order in which they were answered
let filledIn = false; // "no other" was set because no label is plausible

const inputs = (name) => [...form.querySelectorAll(`input[name="${name}"]`)];
const chosen = (name) => inputs(name).find((input) => input.checked) ?? null;

export function clear() {
  for (const input of form.querySelectorAll("input[type=radio]")) {
    input.checked = false;
    input.disabled = false;
  }
  given = [];
  filledIn = false;
}

// The answer as the server takes it, or what is missing, in words.
export function answer() {
  const open = names.find((name) => !chosen(name));
  if (open) return { missing: text(MISSING[open]) };
  const [label, runnerUp, plausible] = ["label", "runner_up", "plausible"].map((name) => chosen(name)?.value ?? null);
  return { content: plausible ? { plausible: plausible === "yes" } : { label, runner_up: runnerUp } };
}

// Call after the choice of `name` has changed. Two labels are never the same, and with no plausible label there is no
// second one: the question that stands first decides, the other follows.
export function changed(name) {
  given = given.filter((other) => other !== name && chosen(other));
  if (chosen(name)) given.push(name);
  if (!names.includes("label") || !names.includes("runner_up")) return;
  const [first, second] = names;
  if (name === "runner_up" && first === "runner_up" && chosen("label")?.value === "none" && chosen(name)?.value !== "none") {
    chosen("label").checked = false;
    filledIn = false;
  }
  const none = chosen("label")?.value === "none";
  if (filledIn && !none) for (const input of inputs("runner_up")) input.checked = false; // nobody had chosen it
  if (none) for (const input of inputs("runner_up")) input.checked = input.value === "none";
  if (none && !filledIn) given = given.filter((other) => other !== "runner_up");
  filledIn = none;
  const taken = chosen(first)?.value;
  for (const input of inputs(second)) {
    const same = input.value === taken && taken !== "none";
    input.disabled = same || (none && second === "runner_up" && input.value !== "none");
    if (input.disabled) input.checked = false;
  }
}

// Whether a key is one of those that choose or undo.
export function isKey(key) {
  return key === "backspace" || choices(key).length > 0;
}

export function press(key) {
  if (key === "backspace") {
    const last = given.at(-1);
    if (!last) return;
    for (const input of inputs(last)) input.checked = false;
    changed(last);
    return;
  }
  const name = names.find((name) => !chosen(name)) ?? names.at(-1);
  const input = choices(key).find((input) => input.name === name && !input.disabled);
  if (!input) return;
  input.checked = true;
  changed(name);
}

// A label's own character, or its digit where the page gives it one; "n" for none of them or for no, "y" for yes.
function choices(key) {
  const all = names.flatMap(inputs);
  const exact = all.filter((input) => (input.dataset.key ?? input.value).toLowerCase() === key);
  return exact.length ? exact : all.filter((input) => key.length === 1 && ["none", "yes", "no"].includes(input.value) && input.value[0] === key);
}
