// Runs before anything is drawn. With scripts, the page waits until its images are loaded; where the scripts do not
// start, the plain form that the page is comes back.
"use strict";
(() => {
  const PATIENCE_MS = 10_000;
  const root = document.documentElement;
  if (!("noModule" in HTMLScriptElement.prototype)) return; // too old for session.js
  root.classList.add("scripted");
  const giveBack = () => {
    if (!root.dataset.running) root.classList.replace("scripted", "plain");
  };
  setTimeout(giveBack, PATIENCE_MS);
  window.addEventListener(
    "error",
    (event) => {
      if (event.target === window || event.target.tagName === "SCRIPT") giveBack();
    },
    true,
  );
})();
