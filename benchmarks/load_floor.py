"""The floor of `benchmarks.load`: the least that FastAPI and a database need to store an answer durably.

One INSERT and one commit for each request, nothing checked but the body's shape. `store_in_thread` is a plain
handler, which FastAPI runs in its pool of threads; `store_inline` an asynchronous one that calls the database in
the event loop.
"""

import json
import os
import sqlite3
import sys
import threading
import uuid

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    participant TEXT NOT NULL, position INTEGER NOT NULL, answer_id TEXT NOT NULL UNIQUE, label TEXT NOT NULL,
    runner_up TEXT, rt_ms REAL, display TEXT NOT NULL, PRIMARY KEY (participant, position)
)
"""
INSERT = "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)"


class Answer(BaseModel):
    answer_id: uuid.UUID
    label: str
    runner_up: str | None = None
    rt_ms: float | None = None
    display: dict[str, object] = {}

    def row(self, participant: str, position: int) -> tuple[object, ...]:
        display = json.dumps(self.display)
        return participant, position, self.answer_id.hex, self.label, self.runner_up, self.rt_ms, display


def sqlite_app(file: str, inline: bool) -> FastAPI:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(TABLE)
    app, lock = FastAPI(), threading.Lock()

    def store(participant: str, position: int, answer: Answer) -> dict[str, bool]:
        with lock:
            connection.execute(INSERT, answer.row(participant, position))
        return {"stored": True}

    async def store_inline(participant: str, position: int, answer: Answer) -> dict[str, bool]:
        return store(participant, position, answer)

    def store_in_thread(participant: str, position: int, answer: Answer) -> dict[str, bool]:
        return store(participant, position, answer)

    app.put("/answers/{participant}/{position}")(store_inline if inline else store_in_thread)
    return app


def postgresql_app(url: str) -> FastAPI:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE)
    app, mine = FastAPI(), threading.local()

    @app.put("/answers/{participant}/{position}")
    def store_in_thread(participant: str, position: int, answer: Answer) -> dict[str, bool]:
        if not hasattr(mine, "connection"):
            mine.connection = psycopg.connect(url, autocommit=True)
        mine.connection.execute(INSERT.replace("?", "%s"), answer.row(participant, position))
        return {"stored": True}

    return app


if __name__ == "__main__":
    variant, database, port = sys.argv[1:]
    found = postgresql_app(database) if variant == "postgresql" else sqlite_app(database, variant == "inline")
    uvicorn.run(found, port=int(port), log_level="warning", access_log=False, workers=1)
    os._exit(0)
