"""Labeled images: MNIST, SVHN and notMNIST from their files, downloaded if missing, and scikit-learn's digits."""

import gzip
import hashlib
import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml import notmnist
from ml.dataset_files import (
    AGAIN,
    DatasetError,
    Source,
    digests,
    download,
    find_file,
    find_folder,
    parse_idx,
    read_bytes,
)

__all__ = ["DATASETS", "Dataset", "DatasetError", "Images", "Labels", "Source", "load", "to_float"]

Images = npt.NDArray[np.uint8]  # (N, C, H, W), 0 to 255
Labels = npt.NDArray[np.int64]  # (N,), positions in Dataset.labels


@dataclass(frozen=True)
class Dataset:
    """Images as they are stored, 8 bits a pixel, with what a stimulus pack says of where they come from.

    `files` maps each file's name to the sha256 of its uncompressed bytes. `contrast_normalized`: the network
    standardizes the contrast of each image. `note` is a sentence on what part of the published set this is, ""
    if it is the whole.
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
    contrast_normalized: bool = False
    note: str = ""

    @cached_property
    def sha256(self) -> str:
        """The identity of all images and labels."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


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

SVHN = Source(
    mirrors=("http://ufldl.stanford.edu/housenumbers/",),
    md5={
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
    },
    gzipped=False,
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
    folder = find_folder("mnist", data_dir, source.md5)
    arrays, files = [], {}
    for name, md5 in source.md5.items():
        path = find_file(folder, name) or download(source, name, folder)
        data = read_bytes(path)
        arrays.append(parse_idx(data, path))
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise DatasetError(f"{path}: wrong checksum; {AGAIN}")
        files[name] = hashlib.sha256(data).hexdigest()
    train_images, train_labels, test_images, test_labels = arrays
    _check_pairs(folder, (train_images, train_labels), (test_images, test_labels))
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


def load_svhn(data_dir: Path | None, source: Source = SVHN) -> Dataset:
    """SVHN's cropped digits in gray: 73,257 and 26,032 images (1, 32, 32) of house numbers.

    `extra_32x32.mat` (531,131 images) is used as further training images if it is in the folder, and never
    downloaded. Other files of the same layout and names are taken as a part of SVHN, which `note` then says.
    """
    folder = find_folder("svhn", data_dir, source.md5)
    parts, files, published = {}, {}, True
    for name, md5 in source.md5.items():
        path = folder / name
        if not path.is_file():
            if name.startswith("extra"):
                continue
            path = download(source, name, folder)
        actual, files[name] = digests(path)
        published = published and actual == md5
        parts[name.split("_")[0]] = _read_mat(path)
    train = [parts[split] for split in ("train", "extra") if split in parts]
    train_images, train_labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    test_images, test_labels = parts["test"]
    extra = f" ({len(parts['extra'][0]):,} of them extra)" if "extra" in parts else ""
    return Dataset(
        name="svhn",
        labels=tuple("0123456789"),
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        source="Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning (SVHN)",
        licence="non-commercial use only",
        files=files,
        contrast_normalized=True,
        note=""
        if published
        else _part("SVHN", f"{len(train_images):,} training images{extra}", len(test_images)),
    )


def load_notmnist(data_dir: Path | None, source: Source = notmnist.SMALL) -> Dataset:
    """notMNIST: images (1, 28, 28) of the letters A to J in many typefaces.

    They are read from four idx files named as MNIST's if the folder has them, and taken as a part of notMNIST,
    which `note` then says; else from the archive of the small set. That one is used and not the large one, as its
    labels were looked through by hand: a person who is asked what a letter is needs a true answer.
    """
    folder = find_folder("notmnist", data_dir, [*MNIST.md5, *source.md5])
    found = {name: find_file(folder, name) for name in MNIST.md5}
    if any(found.values()):
        arrays, files, remedy = [], {}, "put another copy there"
        for name, path in found.items():
            if path is None:
                raise DatasetError(f"{folder / name}.gz: not there, but others of its four; {remedy}")
            data = read_bytes(path, remedy)
            arrays.append(parse_idx(data, path, remedy))
            if hashlib.md5(data, usedforsecurity=False).hexdigest() == MNIST.md5[name]:
                raise DatasetError(f"{path}: this is MNIST's file, not notMNIST's; choose another folder")
            files[name] = hashlib.sha256(data).hexdigest()
        train_images, train_labels, test_images, test_labels = arrays
        _check_pairs(folder, (train_images, train_labels), (test_images, test_labels))
        note = _part("notMNIST", f"{len(train_images):,} training images", len(test_images))
    else:
        [(name, md5)] = source.md5.items()
        path = folder / name
        if not path.is_file():
            path = download(source, name, folder)
        actual, sha256 = digests(path)
        if actual != md5:
            raise DatasetError(f"{path}: wrong checksum; {AGAIN}")
        files = {name: sha256}
        train_images, train_labels, test_images, test_labels = notmnist.read_archive(path)
        note = "The small set of notMNIST, cleaned by hand, without the large one."
    return Dataset(
        name="notmnist",
        labels=notmnist.LETTERS,
        train_images=train_images[:, None],
        train_labels=train_labels.astype(np.int64),
        test_images=test_images[:, None],
        test_labels=test_labels.astype(np.int64),
        source="Y. Bulatov, notMNIST: letters from the glyphs of freely available fonts",
        licence="none stated by its author",
        files=files,
        note=note,
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


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": load_mnist,
    "svhn": load_svhn,
    "notmnist": load_notmnist,
    "digits": load_digits,
}


def _part(name: str, train: str, test: int) -> str:
    return f"A part of {name}: {train} and {test:,} test images, not the full set."


def _check_pairs(folder: Path, *pairs: tuple[Images, Images]) -> None:
    """Raises DatasetError unless images (N, H, W) have one size and each a label of ten."""
    for images, labels in pairs:
        if not len(images) or len(images) != len(labels) or labels.max() > 9:
            raise DatasetError(f"{folder}: images and labels do not belong together; replace the files there")
    if len({images.shape[1:] for images, _ in pairs}) > 1:
        raise DatasetError(f"{folder}: training and test images are of different sizes; choose other files")


def _read_mat(path: Path) -> tuple[Images, Labels]:
    """Gray images (N, 1, 32, 32) and labels of one of SVHN's .mat files, where 10 stands for the digit 0."""
    import scipy.io  # here, as only SVHN needs it

    remedy = "delete the file" if path.name.startswith("extra") else AGAIN
    try:
        contents = scipy.io.loadmat(path, variable_names=("X", "y"))
    except Exception as error:  # SciPy raises many kinds on broken bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{path}: truncated or not a .mat file ({reason}); {remedy}") from None
    colors, digits = contents.get("X"), contents.get("y")
    if (
        not isinstance(colors, np.ndarray)
        or colors.dtype != np.uint8
        or colors.shape[:-1] != (32, 32, 3)
        or not colors.size
    ):
        raise DatasetError(f"{path}: X is not 8-bit colors of shape (32, 32, 3, N); {remedy}")
    count = colors.shape[3]
    if (
        not isinstance(digits, np.ndarray)
        or digits.dtype.kind not in "uif"
        or digits.size != count
        or not np.isin(digits, range(1, 11)).all()
    ):
        raise DatasetError(f"{path}: y is not {count} labels from 1 to 10; {remedy}")
    gray = np.empty((count, 1, 32, 32), dtype=np.uint8)
    for begin in range(0, count, 1000):  # few at a time, as 32-bit colors of all need many gigabytes
        red, green, blue = colors[..., begin : begin + 1000].astype(np.uint32).transpose(2, 3, 0, 1)
        gray[begin : begin + 1000, 0] = (2989 * red + 5870 * green + 1140 * blue + 5000) // 10000
    return gray, digits.ravel().astype(np.int64) % 10
