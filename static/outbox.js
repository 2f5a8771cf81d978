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
  #db;
  #inMemory = new Map();
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
    if (this.durable) {
      try {
        await this.#change((store) => store.add(entry, keyOf(this.#token, entry)));
        return true;
      } catch (error) {
        if (error?.name === "ConstraintError") return false;
        this.durable = false; // full, or taken away: from here on in memory
      }
    }
    const key = String(keyOf(this.#token, entry));
    if (this.#inMemory.has(key)) return false;
    this.#inMemory.set(key, entry);
    return true;
  }

  // All that is not stored by the server yet, of every tab, in the order of the trials.
  async entries() {
    const own = [...this.#inMemory.values()];
    const kept = this.#db ? await this.#change((store) => store.getAll(this.#range()), "readonly") : [];
    return [...kept, ...own].sort(inOrder);
  }

  async remove(entry) {
    const key = keyOf(this.#token, entry);
    this.#inMemory.delete(String(key));
    if (!this.#db) return;
    await this.#change((store) => {
      const found = store.get(key);
      found.onsuccess = () => {
        if (found.result?.answer_id === entry.answer_id) store.delete(key);
      };
    });
  }

  async clear() {
    this.#inMemory.clear();
    if (this.#db) await this.#change((store) => store.delete(this.#range()));
  }

  #range() {
    return IDBKeyRange.bound([this.#token], [this.#token, []]);
  }

  // One transaction; done once it is on the disk. A connection that the browser has closed is opened again.
  async #change(act, mode = "readwrite") {
    try {
      return await this.#transact(act, mode);
    } catch (error) {
      if (error?.name !== "InvalidStateError") throw error;
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
