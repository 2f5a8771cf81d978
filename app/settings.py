"""Where things are and what the environment says; read once at start-up."""

import ipaddress
import os
import secrets
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DATA = ROOT / "data"

LEAST_SECRET = 16  # characters
LEAST_LETTERS = 8  # different ones in a secret
PLACEHOLDERS = ("changeme", "replaceme", "yoursecret", "secretkey", "insecure", "placeholder", "example")


class SettingsError(ValueError):
    """Bad configuration; the message is one line that says what to change."""


@dataclass(frozen=True)
class Settings:
    database_url: str = field(repr=False)  # may name a password
    secret: str = field(repr=False)  # keys hashes of tokens, and the sign-in link of loopback
    studies: Path = ROOT / "studies"
    stimuli: Path = ROOT / "stimuli"
    results: Path = ROOT / "docs" / "results"  # of `python -m ml.evaluate`
    host: str = "127.0.0.1"  # the address that the server listens on
    workers: int = 1  # the processes of that server
    public_url: str | None = None  # where participants reach it: https://study.example.org
    allow_http: bool = False  # consent to plain http outside this machine
    secret_given: bool = True  # by SECRET_KEY; else it is this machine's own
    metrics_token: str | None = field(default=None, repr=False)  # who has it reads /metrics from anywhere
    log_format: str = "text"  # or json

    @property
    def exposed(self) -> bool:
        """Whether others than this machine reach the server: by its address, or by a proxy on this machine."""
        named = urlsplit(self.public_url).hostname if self.public_url else None
        return not is_loopback(self.host) or (named is not None and not is_loopback(named))

    @property
    def https(self) -> bool:
        """Whether participants reach the server by https, which a proxy in front of it speaks."""
        return self.public_url is not None and self.public_url.startswith("https://")

    @property
    def allowed_hosts(self) -> frozenset[str] | None:
        """The names by which the server may be asked, lowercase, without a port, IPv6 addresses without brackets.

        Those of this machine are always among them, for checks of its health. None: any name, where it is
        exposed and PUBLIC_URL does not say how (ALLOW_HTTP=yes).
        """
        if self.exposed and self.public_url is None:
            return None
        named = urlsplit(self.public_url).hostname if self.public_url else None
        own = {"localhost", "127.0.0.1", "::1"} | ({self.host.lower()} if is_loopback(self.host) else set())
        return frozenset(own | ({named} if named else set()))


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach that address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load() -> Settings:
    """Settings from the environment: DATABASE_URL, SECRET_KEY, HOST, PUBLIC_URL, ALLOW_HTTP, STUDIES_DIR,
    STIMULI_DIR, RESULTS_DIR, METRICS_TOKEN, LOG_FORMAT.

    Raises SettingsError for what cannot be used, and for a secret that could be guessed.
    """
    given = os.environ.get("SECRET_KEY")
    secret = given or _stored_secret(DEFAULT_DATA / "secret.key")
    _check_secret(secret, "SECRET_KEY" if given else f"the secret in {DEFAULT_DATA / 'secret.key'}")
    if (allow := os.environ.get("ALLOW_HTTP", "").lower()) not in ("", "no", "yes"):
        raise SettingsError(f"ALLOW_HTTP must be yes or no, not {allow!r}")
    return Settings(
        database_url=_database_url(
            os.environ.get("DATABASE_URL") or f"sqlite:///{DEFAULT_DATA / 'study.db'}"
        ),
        secret=secret,
        studies=Path(os.environ.get("STUDIES_DIR") or ROOT / "studies"),
        stimuli=Path(os.environ.get("STIMULI_DIR") or ROOT / "stimuli"),
        results=Path(os.environ.get("RESULTS_DIR") or ROOT / "docs" / "results"),
        host=os.environ.get("HOST") or "127.0.0.1",
        public_url=_public_url(os.environ.get("PUBLIC_URL") or None),
        allow_http=allow == "yes",
        secret_given=bool(given),
        metrics_token=_metrics_token(os.environ.get("METRICS_TOKEN") or None),
        log_format=_log_format(os.environ.get("LOG_FORMAT") or "text"),
    )


def refuse_unsafe(config: Settings, password_set: bool) -> None:
    """Refuse to serve others than this machine with what is safe on this machine alone. Raises SettingsError."""
    if not config.exposed:
        return
    if is_loopback(config.host):
        where = f"PUBLIC_URL {config.public_url} lets others than this machine in"
    else:
        where = f"HOST {config.host} lets others than this machine in"
    if not config.https and not config.allow_http:
        raise SettingsError(
            f"{where}, and without https anybody on the way reads answers and sign-ins: set PUBLIC_URL to the "
            "https:// address that a proxy serves, or ALLOW_HTTP=yes to accept it, as for a class on a closed net"
        )
    if not config.secret_given and make_url(config.database_url).get_backend_name() == "postgresql":
        raise SettingsError(
            f"{where}, and SECRET_KEY is not set: with PostgreSQL each machine would make a secret of its own, and "
            "signing in at one would not count at the next; give all of them the same, of 32 random characters"
        )
    if not password_set:
        raise SettingsError(
            f"{where}, and the researcher has no password: set one with `python -m app password`"
        )


def _database_url(text: str) -> str:
    try:
        url: URL | None = make_url(text)
    except (ArgumentError, ValueError):  # a port that is no number
        url = None
    if url is None or url.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise SettingsError(
            "DATABASE_URL must start with sqlite:/// or postgresql://, for example sqlite:///data/study.db"
        )
    if "@" in (url.host or ""):  # it would be said, with half of the password, when it cannot be found
        raise SettingsError("DATABASE_URL: an @ in the user's name or password is written %40")
    if url.drivername == "sqlite":
        file = (url.database or "").strip()
        if not file and text.rstrip() != "sqlite://":  # which is SQLAlchemy's word for memory
            raise SettingsError("DATABASE_URL must name a SQLite file, for example sqlite:///data/study.db")
        # SQLite's own addresses (file:...?mode=memory, ?vfs=memdb) are further ways into memory.
        uri = file.startswith("file:") or {"uri", "mode", "vfs"} & set(url.query)
        if not file or ":memory:" in file or uri:
            raise SettingsError(
                "DATABASE_URL must name a file by its path: answers in memory would be lost at the first restart"
            )
    return text


def _public_url(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        parts = urlsplit(text.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    more = known and (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    odd = known and not all(letter.isalnum() or letter in ".-:[]" for letter in parts.netloc)
    if not known or more or odd:
        raise SettingsError(
            "PUBLIC_URL must be the server's address and nothing else, for example https://study.example.org"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _metrics_token(token: str | None) -> str | None:
    if token is not None and not (len(token) >= LEAST_SECRET and token.isascii() and token.isprintable()):
        raise SettingsError(f"METRICS_TOKEN must have at least {LEAST_SECRET} printable ASCII characters")
    return token


def _log_format(name: str) -> str:
    if name not in ("text", "json"):
        raise SettingsError(f"LOG_FORMAT must be text or json, not {name[:20]!r}")
    return name


def _check_secret(secret: str, which: str) -> None:
    plain = "".join(letter for letter in secret.lower() if letter.isalnum())
    if len(secret) < LEAST_SECRET:
        raise SettingsError(f"{which} must have at least {LEAST_SECRET} characters")
    # Doubled and without its ends, a repetition contains itself.
    if len(set(secret)) < LEAST_LETTERS or secret in (secret + secret)[1:-1]:
        raise SettingsError(f"{which} repeats itself and could be guessed: take 32 random characters")
    if any(word in plain for word in PLACEHOLDERS):
        raise SettingsError(f"{which} is a placeholder that others know: take 32 random characters")


def _stored_secret(path: Path) -> str:
    """The secret of this installation: made once, kept readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Written whole and then linked: of two processes that start at once, one's is kept, and both read it.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".secret-")  # mode 600
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):
            os.link(name, path)
        Path(name).unlink()
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)  # raises OSError for a file of somebody else's
        print(
            f"{path} could be read by others and is yours alone now; delete it for a new one if they may have",
            file=sys.stderr,
        )
    return path.read_text().strip()
