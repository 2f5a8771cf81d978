// All images of a session, fetched and decoded before the first is shown; one that fails is tried until it comes.
// What is shown later is the very element that was decoded: it needs no connection and is never blank.

import { pause } from "./server.js";

const TIMEOUT_MS = 15_000;

export class Images {
  #ready = new Map(); // address -> element
  #failing = new Set();
  #retries = new Map();
  #retry;
  #onChange;

  // `retry` is a button that ends the pauses between attempts; onChange({loaded, failing, total}) after every change.
  constructor(addresses, retry, onChange) {
    this.total = new Set(addresses).size;
    this.#retry = retry;
    this.#onChange = onChange;
    this.loaded = Promise.all([...new Set(addresses)].map((address) => this.#load(address)));
  }

  of(address) {
    return this.#ready.get(address);
  }

  retries(address) {
    return this.#retries.get(address) ?? 0;
  }

  async #load(address) {
    for (let failures = 0; ; ) {
      const image = await decoded(address, failures > 0).catch(() => null);
      if (image) {
        this.#ready.set(address, image);
        this.#failing.delete(address);
        this.#report();
        return;
      }
      failures += 1;
      this.#retries.set(address, failures);
      this.#failing.add(address);
      this.#report();
      await pause(failures, 0, [this.#retry]);
    }
  }

  #report() {
    this.#onChange({ loaded: this.#ready.size, failing: this.#failing.size, total: this.total });
  }
}

// `anew`: past what a cache may hold of the attempt that failed.
async function decoded(address, anew) {
  if (anew) {
    const reply = await fetch(address, { cache: "reload", signal: AbortSignal.timeout?.(TIMEOUT_MS) });
    if (!reply.ok) return null;
    await reply.blob();
  }
  const image = new Image();
  image.decoding = "sync";
  image.src = address;
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("late")), TIMEOUT_MS);
  });
  try {
    await Promise.race([image.decode(), late]);
  } catch {
    image.src = "";
    return null;
  } finally {
    clearTimeout(timer);
  }
  return image;
}
