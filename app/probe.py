"""Questions to the database whose answer is waited for so long and no longer, whatever state the database is in."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from sqlalchemy import Engine

from app.db import Database

FRESH_S = 1.0  # whoever asks more often than that gets the answer again

T = TypeVar("T")


class Probe(Generic[T]):
    """One question, asked on a connection and in a thread of its own: those that answer participants may all wait.

    Whoever asks while it is being asked waits for the same answer, so that it is asked once at a time.
    """

    def __init__(self, database_url: str, ask: Callable[[Engine], T]) -> None:
        self._engine = Database(database_url).engine
        self._ask = ask
        self._guard = threading.Lock()
        self._asked: Future[T] | None = None
        self._answered_at = 0.0

    async def answer(self, within_s: float) -> T:
        """Raises TimeoutError where there is none in time, and what asking raised."""
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._ask_once())), within_s)

    def close(self) -> None:
        self._engine.dispose()

    def _ask_once(self) -> "Future[T]":
        with self._guard:
            asked = self._asked
            if asked is None or (asked.done() and time.monotonic() > self._answered_at + FRESH_S):
                asked = self._asked = Future()
                threading.Thread(target=self._run, args=(asked,), daemon=True).start()
            return asked

    def _run(self, asked: "Future[T]") -> None:
        try:
            answer = self._ask(self._engine)
        except BaseException as error:
            self._answered_at = time.monotonic()
            asked.set_exception(error)
        else:
            self._answered_at = time.monotonic()
            asked.set_result(answer)
