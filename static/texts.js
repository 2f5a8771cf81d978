// The page's words for its scripts, in the participant's language: the page carries them, from its catalog.
const texts = JSON.parse(document.getElementById("texts").textContent);

// The text of that name, its {names} filled in.
export function text(name, values = {}) {
  return texts[name].replace(/\{(\w+)\}/g, (_, key) => String(values[key]));
}
