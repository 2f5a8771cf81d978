"""Databases that earlier releases left behind, as they left them; `make` says what is in them."""

import gzip
import json
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from tests.app.databases import Databases, path

FOLDER = Path(__file__).parent
RELEASES = sorted(folder.name for folder in FOLDER.iterdir() if (folder / "sqlite.db.gz").exists())


def carried(release: str, databases: Databases, folder: Path) -> str:
    """The URL of a new database as that release left it."""
    url = databases.new(folder)
    if databases.kind == "sqlite":
        path(url).write_bytes(_read(release, "sqlite.db"))
    else:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(_read(release, "postgresql.sql"))
    return url


def shown_then(release: str, databases: Databases) -> dict[str, Any]:
    """What that release's dashboard showed of it: "real" and "simulated", each with `results` and `responses`."""
    shown: dict[str, Any] = json.loads(_read(release, f"{databases.kind}.json"))
    return shown


def _read(release: str, name: str) -> bytes:
    return gzip.decompress((FOLDER / release / f"{name}.gz").read_bytes())
