"""The researcher's password: what it must be, how it is stored and compared, and how often it may be tried."""

import math
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import auth
from app.audit import Event, record
from app.models import AuditEntry, ResearcherPassword
from app.security import AddressLimit

LEAST = 12  # characters
LEAST_LETTERS = 5  # different ones
LONGEST = 500  # characters; none is longer, and it is not asked to hash megabytes

# From one address at one server: ten tries at once, then one each half minute. Each process counts for itself and
# gives its share: of the tries at once as many as come to AT_ONCE together, but one at least.
TRIES = 10
TRIES_PER_S = 1 / 30
AT_ONCE = 64
# Of all addresses and server processes together: after so many refusals within an hour a second's wait, after each
# further one twice as long, up to a minute. Some 5,000 tries a day are left, of which none finds twelve characters.
# More in an hour than one address gets by its own tries at one server, however many processes that has (app/cli.py,
# MOST_WORKERS): one visitor alone never makes the researcher wait.
FREE_REFUSALS = 200
COUNTED_FOR = timedelta(hours=1)
LONGEST_WAIT_S = 60
# Comparing takes a core's 100 to 300 ms and 64 MiB: one at a time, few in line, so that participants are served.
IN_LINE = 3

_hasher = PasswordHasher()  # Argon2id with the parameters of RFC 9106 for little memory


def weakness(text: str) -> str | None:
    """What is wrong with a password that is to be set, in one sentence; None if nothing is."""
    plain = _plain(text)
    if len(plain) < LEAST:
        return f"the password has {len(plain)} characters, and {LEAST} are the least: it guards every answer"
    if len(plain) > LONGEST:
        return f"the password has {len(plain)} characters; {LONGEST} are the most"
    if len(set(plain)) < LEAST_LETTERS:
        return "the password repeats a few characters and could be guessed; take several words"
    if any(unicodedata.category(letter) == "Cc" for letter in plain):
        return "the password contains a character that no form sends, such as a tab or an end of line"
    return None


def is_set(session: Session) -> bool:
    return session.get(ResearcherPassword, 1) is not None


def change(session: Session, text: str, now: datetime) -> None:
    """Set the password and end all sessions and links; the caller commits. Raises ValueError for a weak one."""
    if (wrong := weakness(text)) is not None:
        raise ValueError(wrong)
    session.merge(ResearcherPassword(id=1, hash=_hasher.hash(_plain(text)), set_at=now))
    auth.end_everything(session)
    record(session, Event.PASSWORD_SET, now=now)


def stored(session: Session, hold: bool = False) -> str | None:
    """The password's hash; with `hold` it can change only after this transaction, and ends what that began."""
    found = session.get(ResearcherPassword, 1, with_for_update={"read": True} if hold else None)
    return found.hash if found else None


def is_right(hashed: str | None, text: str) -> bool:
    """Whether the text is the password of that hash; it takes as long where there is none."""
    try:
        right = _hasher.verify(hashed or _nobodys(), _plain(text))
    except (VerificationError, InvalidHashError):
        return False
    return right and hashed is not None


@cache
def _nobodys() -> str:
    return _hasher.hash("nobody's password")


def _plain(text: str) -> str:
    """The same characters however a keyboard composes them."""
    return unicodedata.normalize("NFKC", text)


def wait(session: Session, refused: Event, now: datetime) -> int:
    """How many seconds the next try has to wait for, of anybody at any process, by the refusals on record."""
    count, last = session.execute(
        select(func.count(), func.max(AuditEntry.at)).where(
            AuditEntry.event == str(refused), AuditEntry.at > now - COUNTED_FOR
        )
    ).one()
    if count < FREE_REFUSALS:
        return 0
    pause: int = min(2 ** (count - FREE_REFUSALS), LONGEST_WAIT_S)
    return max(0, math.ceil(pause - (now - last).total_seconds()))


class Tries:
    """How fast this process, one of a server's `workers`, lets anybody try to sign in."""

    def __init__(self, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        share = max(1, min(TRIES, AT_ONCE // workers)), TRIES_PER_S / workers
        self.passwords = AddressLimit(*share, clock=clock)
        # Of their own: another website's images can open links that lead nowhere in the researcher's browser.
        self.links = AddressLimit(*share, clock=clock)
        self._line = threading.BoundedSemaphore(IN_LINE)
        self._one = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """One at a time; False, at once, where too many are in line."""
        if not self._line.acquire(blocking=False):
            yield False
            return
        try:
            with self._one:
                yield True
        finally:
            self._line.release()
