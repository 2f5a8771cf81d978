// After a withdrawal this device forgets too: answers not yet sent, and the draft of a comment.
import { Outbox } from "./outbox.js";

const token = location.pathname.split("/")[2];
try {
  localStorage.removeItem(`comment:${token}`);
} catch {
  // a browser that keeps nothing for this site
}
await (await Outbox.open(token)).clear();
