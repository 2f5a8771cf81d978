// Sends what the outbox holds: in the order of the trials, one at a time, each with the same id until the server has
// answered. Two tabs may send the same answer: the server stores it once.

import { ask, onHope, pause } from "./server.js";

const QUESTIONS = { labelling: "label", judging: "plausibility" };
const STATES = ["labelling", "judging", "commenting", "finished"];

export class Sending {
  #token;
  #outbox;
  #on;
  #wake = () => {};
  #stop = new AbortController(); // ends the attempt under way
  #failures = 0;
  #pending = 0;

  // on.state({pending, failures}): after every change.
  // on.known(reply): the server has said where the session is; a session, or the answer to a stored answer.
  // on.missing(position): the server lacks the answer to this image, and nothing after it can be stored.
  // on.refused(entry): the server will never take this answer, which is dropped.
  // on.gone(): there is no such session any more.
  constructor(token, outbox, on) {
    this.#token = token;
    this.#outbox = outbox;
    this.#on = on;
  }

  start() {
    onHope(() => this.wake());
    window.addEventListener("online", () => this.#stop.abort()); // what was sent into the dead line may hang
    this.#run();
  }

  // Something was put into the outbox. While a failed attempt waits for the next one, that one stays when it is due.
  wake() {
    this.#wake();
    this.#report().catch(() => {});
  }

  async #run() {
    for (;;) {
      try {
        await this.#step();
      } catch {
        await this.#failed(0); // the outbox itself failed
      }
    }
  }

  async #step() {
    const entry = await this.#report();
    if (!entry) {
      await this.#idle();
      return;
    }
    this.#stop = new AbortController();
    const url = `/api/sessions/${this.#token}`;
    const waited = Math.max(0, Date.now() - entry.answered_at);
    const content = { ...entry.content, display: { ...entry.content.display, waited_ms: waited } };
    const address = `${url}/trials/${entry.position}/${QUESTIONS[entry.phase]}`;
    const reply = await ask("PUT", address, { answer_id: entry.answer_id, ...content }, this.#stop.signal);
    if (!reply.final) {
      await this.#failed(reply.pauseMs);
    } else if (reply.status === 200 && reply.body.stored === true) {
      this.#failures = 0;
      await this.#outbox.remove(entry);
      this.#on.known(reply.body);
    } else if (reply.status === 422) {
      await this.#outbox.remove(entry);
      this.#on.refused(entry);
    } else {
      await this.#reconcile(entry, await ask("GET", url, undefined, this.#stop.signal));
    }
  }

  // The answer was not taken: what the server has stored stands.
  async #reconcile(entry, { final, status, body, pauseMs }) {
    if (final && (status === 404 || body.state === "withdrawn")) {
      await this.#outbox.clear();
      this.#on.gone();
      await this.#idle();
      return;
    }
    if (!final || status !== 200) {
      await this.#failed(pauseMs);
      return;
    }
    this.#failures = 0;
    const present = body.state === entry.phase;
    const over = STATES.indexOf(body.state) > STATES.indexOf(entry.phase);
    if (over || (present && body.trials.find((trial) => trial.position === entry.position)?.answered)) {
      await this.#outbox.remove(entry);
      this.#on.known(body);
    } else if (present && body.next_position === entry.position) {
      await this.#failed(0); // it is its turn, and yet it was not taken: perhaps the next time
    } else {
      this.#on.known(body);
      if (present) this.#on.missing(body.next_position);
      await this.#idle();
    }
  }

  async #failed(pauseMs) {
    this.#failures += 1;
    this.#on.state({ pending: this.#pending, failures: this.#failures });
    await pause(this.#failures, pauseMs);
  }

  // Says how many are waiting; returns the first of them.
  async #report() {
    const entries = await this.#outbox.entries();
    this.#pending = entries.length;
    if (this.#pending === 0) this.#failures = 0; // another tab may have sent what this one could not
    this.#on.state({ pending: this.#pending, failures: this.#failures });
    return entries[0];
  }

  #idle() {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}
