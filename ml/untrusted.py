"""Reading what came from elsewhere: files of a bounded size that are nothing else, and JSON without tricks."""

import json
import math
import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

_MAX_DEPTH = 32
_MAX_TEXT = 10_000  # characters of one string
_MAX_INTEGER = 2**64  # exclusive; what is larger fits neither a database nor a float
# Controls but tab and new line (PostgreSQL stores no NUL), halves of characters, and what turns the direction of
# the text around it, so that people would read something else than is there.
_REFUSED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class PackError(ValueError):
    """A pack is not what its format promises; the message is one line naming the file and the fault."""


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a regular file of `most` bytes at most.

    Links, pipes and devices are refused without being opened, so that none can be waited for. Raises PackError.
    """
    try:
        if fault := _fault(path.lstat(), most):
            raise PackError(f"{path}: {fault}")
        # Should it be something else by now: not followed, not waited for, and looked at again.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if fault := _fault(found, most):
                raise PackError(f"{path}: {fault}")
            return file.read(found.st_size)
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror})") from None


def _fault(found: os.stat_result, most: int) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a link, not a file"
    if not stat.S_ISREG(found.st_mode):
        return "is not a file"
    if found.st_size > most:
        return f"has more than {most:,} bytes"
    return None


def parse_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Refused is what programs read differently or cannot keep: a key twice in one object, NaN and infinities (1e999
    too), integers of more than 64 bits, controls, halves of characters and marks of direction in strings, more than
    `_MAX_DEPTH` levels. Raises ValueError with one line.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_no_number, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise ValueError("not in UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    left: list[tuple[Any, int]] = [(value, 1)]
    while left:
        part, depth = left.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if isinstance(part, dict):
            for key in part:
                _check_text(key)
            left += [(inner, depth + 1) for inner in part.values()]
        elif isinstance(part, list):
            left += [(inner, depth + 1) for inner in part]
        elif isinstance(part, str):
            _check_text(part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("a number is too large")
        elif isinstance(part, int) and abs(part) >= _MAX_INTEGER:
            raise ValueError("a whole number has more than 64 bits")
    return value


def shown(value: object) -> str:
    """A value from elsewhere for a message: in one line, printable, not long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _check_text(text: str) -> None:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"a string has more than {_MAX_TEXT:,} characters")
    if found := _REFUSED.search(text):
        raise ValueError(f"a string has the character U+{ord(found[0]):04X}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice in one object")
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
