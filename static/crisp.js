// Sizes an image to an integer number of screen pixels per image pixel, as large as `room` (CSS pixels) allows.
export function fit(image, room) {
  const native = Number(image.getAttribute("width"));
  const ratio = window.devicePixelRatio || 1;
  const factor = Math.max(1, Math.floor((room * ratio) / native + 0.01));
  image.style.width = `${(factor * native) / ratio}px`;
}

// The sheets of the last page: about their own size, side by side where there is room; a researcher's are larger.
const sheets = [...document.querySelectorAll(".grids img")];
function fitSheets() {
  for (const image of sheets) {
    const most = Number(image.dataset.most ?? 1.34) * Number(image.getAttribute("width"));
    fit(image, Math.min(most, image.closest(".grids").clientWidth));
  }
}
fitSheets();
window.addEventListener("resize", fitSheets);
