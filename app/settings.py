"""Where things are and what the environment says; read once at start-up."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DATA = ROOT / "data"


class SettingsError(ValueError):
    """Bad configuration; the message is one line that says what to change."""


@dataclass(frozen=True)
class Settings:
    database_url: str
    secret: str  # signs the researcher's cookie and sign-in link
    studies: Path = ROOT / "studies"
    stimuli: Path = ROOT / "stimuli"
    results: Path = ROOT / "docs" / "results"  # of `python -m ml.evaluate`


def load() -> Settings:
    """Settings from the environment: DATABASE_URL, SECRET_KEY, STUDIES_DIR, STIMULI_DIR, RESULTS_DIR.

    Raises SettingsError for a database that is neither SQLite nor PostgreSQL and for a short secret.
    """
    url = os.environ.get("DATABASE_URL") or f"sqlite:///{DEFAULT_DATA / 'study.db'}"
    if not url.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
        raise SettingsError(
            "DATABASE_URL must start with sqlite:/// or postgresql://, for example sqlite:///data/study.db"
        )
    if url.startswith("sqlite:///") and ":memory:" in url:
        raise SettingsError(
            "DATABASE_URL must name a file: answers in memory would be lost at the first restart"
        )
    secret = os.environ.get("SECRET_KEY") or _stored_secret(DEFAULT_DATA / "secret.key")
    if len(secret) < 16:
        raise SettingsError("SECRET_KEY must have at least 16 characters")
    return Settings(
        database_url=url,
        secret=secret,
        studies=Path(os.environ.get("STUDIES_DIR") or ROOT / "studies"),
        stimuli=Path(os.environ.get("STIMULI_DIR") or ROOT / "stimuli"),
        results=Path(os.environ.get("RESULTS_DIR") or ROOT / "docs" / "results"),
    )


def _stored_secret(path: Path) -> str:
    """The secret of this installation: made once, kept readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # O_EXCL: of two processes that start at once, one writes and the other reads.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path.read_text().strip()
