"""Labeled images: MNIST from its files, downloaded where they are missing, and scikit-learn's digits."""

import gzip
import hashlib
import http.client
import importlib.resources
import math
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

Images = npt.NDArray[np.uint8]  # (N, C, H, W), 0 to 255
Labels = npt.NDArray[np.int64]  # (N,), positions in Dataset.labels


class DatasetError(Exception):
    """A data set cannot be loaded; the message is one line that names the file and the remedy."""


@dataclass(frozen=True)
class Dataset:
    """Images as they are stored, 8 bits a pixel, with what a stimulus pack says of where they come from.

    `files` maps each file's name to the sha256 of its uncompressed bytes.
    """

    name: str
    labels: tuple[str, ...]
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    source: str
    licence: str
    files: dict[str, str]

    @cached_property
    def sha256(self) -> str:
        """The identity of all images and labels."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """Where the four idx files of a data set come from. `md5` is of the uncompressed bytes, by file name;
    `mirrors` are base URLs under which each name lies with ".gz" added."""

    mirrors: tuple[str, ...]
    md5: dict[str, str]


MNIST = Source(
    mirrors=(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
)


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """The data set `name`, one of DATASETS.

    `data_dir` (else the environment's DATA_DIR) is a folder with the files, or a folder of such folders named
    after the data sets; files that it lacks are downloaded into it. Without one, the folder is `data/<name>`
    under the current directory. Raises DatasetError.
    """
    if name not in DATASETS:
        raise DatasetError(f"there is no data set {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name](data_dir)


def to_float(images: Images) -> npt.NDArray[np.float32]:
    """8-bit pixels as float32 in [0, 1], of the same shape."""
    return images.astype(np.float32) / np.float32(255)


def load_mnist(data_dir: Path | None, source: Source = MNIST) -> Dataset:
    """MNIST: 60,000 and 10,000 images (1, 28, 28) of handwritten digits."""
    folder = _folder("mnist", data_dir)
    arrays, files = [], {}
    for name, md5 in source.md5.items():
        path = _present(folder, name) or _download(source, name, folder)
        data = _uncompressed(path)
        arrays.append(_parse_idx(data, path))
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise DatasetError(
                f"{path}: wrong checksum; delete the file, and the next run downloads it again"
            )
        files[name] = hashlib.sha256(data).hexdigest()
    train_images, train_labels, test_images, test_labels = arrays
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(labels) or labels.max(initial=0) > 9:
            raise DatasetError(f"{folder}: images and labels do not belong together; delete the files there")
    return Dataset(
        name="mnist",
        labels=tuple("0123456789"),
        train_images=train_images[:, None],
        train_labels=train_labels.astype(np.int64),
        test_images=test_images[:, None],
        test_labels=test_labels.astype(np.int64),
        source="Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits",
        licence="CC BY-SA 3.0",
        files=files,
    )


def load_digits(data_dir: Path | None = None) -> Dataset:
    """scikit-learn's bundled 8 x 8 scans of 1,797 digits, scaled to (1, 28, 28); `data_dir` is not used.

    As in MNIST the digit fills 20 x 20 pixels (bilinear enlargement, 0..16 to 0..255) amid a margin of 4. Of each
    digit the last fifth, by other writers than the first ones, is the test set.
    """
    import sklearn.datasets  # type: ignore[import-untyped]  # here, as it takes a second to import

    scans = sklearn.datasets.load_digits()
    images = np.stack(
        [
            np.asarray(Image.fromarray(scan.astype(np.float32)).resize((20, 20), Image.Resampling.BILINEAR))
            for scan in scans.images
        ]
    )  # (N, 20, 20) in [0, 16]
    images = np.rint(images * (255 / 16)).astype(np.uint8)
    images = np.pad(images, ((0, 0), (4, 4), (4, 4)))[:, None]
    labels = scans.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        of_digit = np.flatnonzero(labels == digit)
        test[of_digit[-(len(of_digit) // 5) :]] = True
    packed = importlib.resources.files("sklearn.datasets.data").joinpath("digits.csv.gz").read_bytes()
    return Dataset(
        name="digits",
        labels=tuple("0123456789"),
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI), as in scikit-learn",
        licence="CC BY 4.0",
        files={"digits.csv": hashlib.sha256(gzip.decompress(packed)).hexdigest()},
    )


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {"mnist": load_mnist, "digits": load_digits}


def _folder(name: str, data_dir: Path | None) -> Path:
    """The folder of a data set's files, made if it is the default one."""
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
    return data_dir / name if (data_dir / name).is_dir() else data_dir


def _present(folder: Path, name: str) -> Path | None:
    """The idx or idx.gz file of this name, if there is one."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _uncompressed(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DatasetError(
            f"{path}: truncated or not gzip; delete it, and the next run downloads it"
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _parse_idx(data: bytes, path: Path) -> npt.NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, with as many dimensions as its name says."""
    dimensions = int(path.name.split("-idx")[1][0])
    magic, header = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    remedy = "delete the file, and the next run downloads it again"
    if data[:4] != magic:
        raise DatasetError(f"{path}: wrong magic number {data[:4].hex()}, expected {magic.hex()}; {remedy}")
    shape = tuple(int(n) for n in np.frombuffer(data[4:header].ljust(header - 4, b"\0"), dtype=">u4"))
    if len(data) != header + math.prod(shape):
        raise DatasetError(
            f"{path}: truncated or too long: {len(data)} bytes where its header promises "
            f"{header + math.prod(shape)}; {remedy}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _download(source: Source, name: str, folder: Path) -> Path:
    """Fetches `<name>.gz` into the folder from the first mirror that has it; returns its path.

    What an interrupted run fetched stays in a `.part` file and is gone on from; it takes its name only once
    the checksum of its content is right.
    """
    path, part = folder / f"{name}.gz", folder / f"{name}.gz.part"
    problem = "no mirror is known"
    for mirror in source.mirrors:
        for _attempt in range(2):  # a part from another mirror may not fit: once more from the beginning
            try:
                resumed = _fetch(f"{mirror}{path.name}", part)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{mirror}: {error}"
                break
            try:
                checksum = hashlib.md5(gzip.decompress(part.read_bytes()), usedforsecurity=False).hexdigest()
            except (EOFError, zlib.error, gzip.BadGzipFile):
                checksum = "of a broken file"
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
