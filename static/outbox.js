// Answers on their way to the server. Each lies in IndexedDB until the server has committed it: a reload, a crash or a
// lost connection loses none. Where the browser has no such store, they lie in this page's memory (`durable` is false).

const DATABASE = "reasonable-mistakes";
const STORE = "answers"; // key: [token, phase, position]
const PHASES = ["labelling", "judging"]; // in the order in which the server takes them
const OPENING_MS = 3000;

const keyOf = (token, entry) => [token, entry.phase, entry.position];
const inOrder = (a, b) => PHASES.indexOf(a.phase) - PHASES.indexOf(b.phase) || a.rank - b.rank;

export class Outbox {
  #token;
  #db; // null: there is none, or it has failed
  #inStore = new Map(); // what the store held when last seen, for the case that it fails
  #inMemory = new Map(); // what only this page has
  durable;

  constructor(token, db) {
    this.#token = token;
    this.#db = db;
    this.durable = db !== null;
  }

  static async open(token) {
    return new Outbox(token, await openDatabase().catch(() => null));
  }

  // Whether something here would be lost with the page.
  get volatile() {
    return this.#inMemory.size > 0;
  }

  // Keep the answer {phase, position, rank, answer_id, answered_at, content}. False: another tab was first, its answer
  // to this image is here already and counts.
  async add(entry) {
    const key = keyOf(this.#token, entry);
    if (this.#db) {
      try {
        await this.#change((store) => store.add(entry, key));
        this.#inStore.set(String(key), entry);
        return true;
      } catch (error) {
        if (error?.name === "ConstraintError") return false;
        this.#goOnInMemory(); // full, or taken away
      }
    }
    if (this.#inMemory.has(String(key))) return false;
    this.#inMemory.set(String(key), entry);
    return true;
  }

  // All that is not stored by the server yet, of every tab, in the order of the trials.
  async entries() {
    if (this.#db) {
      try {
        const kept = await this.#change((store) => store.getAll(this.#range()), "readonly");
        this.#inStore = new Map(kept.map((entry) => [String(keyOf(this.#token, entry)), entry]));
      } catch {
        this.#goOnInMemory();
      }
    }
    return [...this.#inStore.values(), ...this.#inMemory.values()].sort(inOrder);
  }

  async remove(entry) {
    const key = keyOf(this.#token, entry);
    this.#inMemory.delete(String(key));
    this.#inStore.delete(String(key));
    await this.#tidy((store) => {
      const found = store.get(key);
      found.onsuccess = () => {
        if (found.result?.answer_id === entry.answer_id) store.delete(key);
      };
    });
  }

  async clear() {
    this.#inMemory.clear();
    this.#inStore.clear();
    await this.#tidy((store) => store.delete(this.#range()));
  }

  // What stays behind where this fails is sent once more by a later page, and the server stores it once.
  async #tidy(act) {
    if (!this.#db) return;
    try {
      await this.#change(act);
    } catch {
      this.#goOnInMemory();
    }
  }

  // The store has failed: nothing that it held may be forgotten, and nothing new counts as kept.
  #goOnInMemory() {
    this.#db = null;
    this.durable = false;
    for (const [key, entry] of this.#inStore) this.#inMemory.set(key, entry);
    this.#inStore.clear();
  }

  #range() {
    return IDBKeyRange.bound([this.#token], [this.#token, []]);
  }

  // One transaction; done once it is on the disk. A connection that the browser has closed is opened again.
  async #change(act, mode = "readwrite") {
    try {
      return await this.#transact(act, mode);
    } catch (error) {
      if (!["InvalidStateError", "UnknownError", "AbortError"].includes(error?.name)) throw error;
      this.#db = await openDatabase();
      return this.#transact(act, mode);
    }
  }

  #transact(act, mode) {
    return new Promise((resolve, reject) => {
      const transaction = this.#db.transaction(STORE, mode, { durability: "strict" });
      const request = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = () => reject(transaction.error ?? request?.error);
    });
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    const timer = setTimeout(() => reject(new Error("IndexedDB does not open")), OPENING_MS);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => {
      clearTimeout(timer);
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
}
