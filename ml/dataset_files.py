"""Files of data sets: where they lie, the idx format, and downloads that are checked and gone on with."""

import gzip
import hashlib
import http.client
import math
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm


class DatasetError(Exception):
    """A data set cannot be loaded; the message is one line that names the file and the remedy."""


AGAIN = "delete the file, and the next run downloads it again"


@dataclass(frozen=True)
class Source:
    """Where the files of a data set come from. `mirrors` are base URLs and `md5` is by file name.

    If `gzipped`, each name lies there with ".gz" added, and its md5 is of the uncompressed bytes.
    """

    mirrors: tuple[str, ...]
    md5: dict[str, str]
    gzipped: bool = True


def find_folder(name: str, data_dir: Path | None, files: Collection[str]) -> Path:
    """The folder of the files of the data set `name`, made if it is the default one.

    `data_dir` (else the environment's DATA_DIR) may hold a folder of that name, the files themselves, or just
    one folder whose name begins with it ("svhn-10k"), in this order. Raises DatasetError.
    """
    if data_dir is None and os.environ.get("DATA_DIR"):
        data_dir = Path(os.environ["DATA_DIR"])
    if data_dir is None:
        folder = Path("data") / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    if not data_dir.is_dir():
        raise DatasetError(
            f"{data_dir}: no such folder; make it, or leave out --data-dir and DATA_DIR to download {name}"
        )
    if (data_dir / name).is_dir():
        return data_dir / name
    if any(find_file(data_dir, file) for file in files):
        return data_dir
    begin = sorted(path for path in data_dir.iterdir() if path.name.startswith(name) and path.is_dir())
    if len(begin) > 1:
        names = ", ".join(path.name for path in begin)
        raise DatasetError(f"{data_dir}: several folders may be {name}: {names}; give one as --data-dir")
    return begin[0] if begin else data_dir


def find_file(folder: Path, name: str) -> Path | None:
    """The file of this name, plain or with ".gz" added, if there is one."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_bytes(path: Path, remedy: str = AGAIN) -> bytes:
    """The uncompressed content of a file, whose name ends in ".gz" if it is compressed. Raises DatasetError."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DatasetError(f"{path}: truncated or not gzip; {remedy}") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def parse_idx(data: bytes, path: Path, remedy: str = AGAIN) -> npt.NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, with as many dimensions as its name says. Raises DatasetError."""
    dimensions = int(path.name.split("-idx")[1][0])
    magic, header = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if data[:4] != magic:
        raise DatasetError(f"{path}: wrong magic number {data[:4].hex()}, expected {magic.hex()}; {remedy}")
    shape = tuple(int(n) for n in np.frombuffer(data[4:header].ljust(header - 4, b"\0"), dtype=">u4"))
    if len(data) != header + math.prod(shape):
        raise DatasetError(
            f"{path}: truncated or too long: {len(data)} bytes where its header promises "
            f"{header + math.prod(shape)}; {remedy}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def digests(path: Path) -> tuple[str, str]:
    """md5 and sha256 of a file as it lies there. Raises DatasetError."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                md5.update(chunk)
                sha256.update(chunk)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return md5.hexdigest(), sha256.hexdigest()


def download(source: Source, name: str, folder: Path) -> Path:
    """Fetches a file of the source into the folder from the first mirror that has it; returns its path.

    What an interrupted run fetched stays in a `.part` file and is gone on from; it takes its name only once
    the checksum of its content is right. Raises DatasetError.
    """
    path = folder / (f"{name}.gz" if source.gzipped else name)
    part = path.with_name(f"{path.name}.part")
    problem = "no mirror is known"
    for mirror in source.mirrors:
        for _attempt in range(2):  # a part from another mirror may not fit: once more from the beginning
            try:
                resumed = _fetch(f"{mirror}{path.name}", part)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{mirror}: {error}"
                break
            checksum = _checksum(part, source.gzipped)
            if checksum == source.md5[name]:
                part.replace(path)
                return path
            part.unlink()
            problem = f"{mirror}: wrong checksum {checksum}, expected {source.md5[name]}"
            if not resumed:
                break
    raise DatasetError(
        f"{path}: not there, and the download failed ({problem}); run again to go on with it, "
        f"or put the file there by hand"
    )


def _checksum(part: Path, gzipped: bool) -> str:
    """The md5 of a file's content, or words that are none."""
    if not gzipped:
        return digests(part)[0]
    try:
        return hashlib.md5(gzip.decompress(part.read_bytes()), usedforsecurity=False).hexdigest()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return "of a broken file"


def _fetch(url: str, part: Path) -> bool:
    """Downloads a URL to `part`, from where `part` ends if the server can. True if it went on from there."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return True  # nothing is missing
    with response:
        resumed: bool = response.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if resumed else 0
        total = (
            have + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        )
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True) as bar,
        ):
            while chunk := response.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
        size = part.stat().st_size
        if total is not None and size < total:
            raise OSError(f"the connection broke off after {size} of {total} bytes")
    return resumed
