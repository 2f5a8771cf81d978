// Keeps what is written in the comment box through a reload, in this tab alone, until it is sent.
const box = document.getElementById("text");
const key = `comment:${location.pathname}`;

if (box) {
  if (!box.value) box.value = sessionStorage.getItem(key) ?? "";
  box.addEventListener("input", () => sessionStorage.setItem(key, box.value));
  // Kept when sending fails: the finished page has no box, so what is left behind is never shown again.
}
