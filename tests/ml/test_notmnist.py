"""notMNIST: four idx files are a part; the archive of the small set is read, cleaned, split and fetched."""

import base64
import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml import datasets, notmnist
from ml.datasets import DatasetError, Source
from ml.pack import encode_png
from tests.ml.conftest import MNIST_DIR, ROOT
from tests.ml.files import Server, idx, serving

FONTS = 20


def font(number: int) -> str:
    """The name of a font's images, encoded as in the publisher's archive."""
    return base64.b64encode(f"Font {number}.ttf".encode()).decode() + ".png"


def in_test_set(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % 5 == 0


def glyph(letter: int, number: int) -> np.ndarray:
    """(28, 28) pixels that tell letter and font: the values of the first two."""
    pixels = np.full((28, 28), 7, dtype=np.uint8)
    pixels[0, :2] = letter, number
    return pixels


def archive(changes: Mapping[str, bytes | None] | None = None) -> bytes:
    """A tar.gz as the publisher's, of FONTS fonts, with some members changed, added, or left out (None)."""
    members: dict[str, bytes | None] = {
        f"notMNIST_small/{letter}/{font(number)}": encode_png(glyph(position, number))
        for position, letter in enumerate("ABCDEFGHIJ")
        for number in range(FONTS)
    }
    members |= dict(changes or {})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put(folder: Path, data: bytes) -> Source:
    """Lays an archive into a folder; returns the source with its checksum."""
    (folder / notmnist.ARCHIVE).write_bytes(data)
    return Source((), {notmnist.ARCHIVE: hashlib.md5(data).hexdigest()}, gzipped=False)


def letters_and_fonts(images: np.ndarray) -> list[tuple[int, int]]:
    return [(int(image[0, 0, 0]), int(image[0, 0, 1])) for image in images]


def test_the_archive_is_split_by_typeface(tmp_path: Path) -> None:
    data = archive()
    dataset = datasets.load_notmnist(tmp_path, put(tmp_path, data))
    assert dataset.labels == tuple("ABCDEFGHIJ")
    assert dataset.train_images.shape[1:] == dataset.test_images.shape[1:] == (1, 28, 28)
    tests = {number for number in range(FONTS) if in_test_set(font(number))}
    assert 0 < len(tests) < FONTS
    train, test = letters_and_fonts(dataset.train_images), letters_and_fonts(dataset.test_images)
    assert sorted(test) == [(letter, number) for letter in range(10) for number in sorted(tests)]
    assert sorted(train + test) == [(letter, number) for letter in range(10) for number in range(FONTS)]
    assert dataset.train_labels.tolist() == [letter for letter, _ in train]
    assert dataset.test_labels.tolist() == [letter for letter, _ in test]
    assert len(set(dataset.train_labels[:10].tolist())) > 3  # not one letter after the other
    assert dataset.files == {notmnist.ARCHIVE: hashlib.sha256(data).hexdigest()}
    assert not dataset.contrast_normalized
    assert dataset.note == "The small set of notMNIST, cleaned by hand, without the large one."
    assert dataset.sha256 == datasets.load_notmnist(tmp_path, put(tmp_path, data)).sha256


def test_what_is_no_image_of_a_letter_is_passed_over(tmp_path: Path) -> None:
    colored = io.BytesIO()
    Image.new("RGB", (28, 28)).save(colored, format="PNG")
    broken = {
        f"notMNIST_small/A/{font(0)}": b"",
        f"notMNIST_small/B/{font(1)}": encode_png(glyph(1, 1))[:40],
        f"notMNIST_small/C/{font(2)}": encode_png(np.zeros((27, 28), dtype=np.uint8)),
        f"notMNIST_small/D/{font(3)}": colored.getvalue(),
        "notMNIST_small/E/._macintosh.png": b"\x00\x05\x16\x07",
        "notMNIST_small/E/readme.txt": b"text",
        "notMNIST_small/K/other.png": encode_png(glyph(50, 50)),
        "loose.png": encode_png(glyph(51, 51)),
    }
    dataset = datasets.load_notmnist(tmp_path, put(tmp_path, archive(broken)))
    seen = letters_and_fonts(dataset.train_images) + letters_and_fonts(dataset.test_images)
    everything = {(letter, number) for letter in range(10) for number in range(FONTS)}
    assert set(seen) == everything - {(0, 0), (1, 1), (2, 2), (3, 3)}


def test_an_image_is_never_in_both_sets_nor_two_letters(tmp_path: Path) -> None:
    tests = [number for number in range(FONTS) if in_test_set(font(number))]
    trains = [number for number in range(FONTS) if not in_test_set(font(number))]
    changes = {
        # a training font whose A is that of a test font, and one whose A is that of a training font
        f"notMNIST_small/A/{font(trains[0])}": encode_png(glyph(0, tests[0])),
        f"notMNIST_small/A/{font(trains[1])}": encode_png(glyph(0, trains[2])),
        # an I that is a J, from two fonts
        f"notMNIST_small/I/{font(trains[3])}": encode_png(glyph(9, tests[1])),
    }
    dataset = datasets.load_notmnist(tmp_path, put(tmp_path, archive(changes)))
    train, test = letters_and_fonts(dataset.train_images), letters_and_fonts(dataset.test_images)
    assert test.count((0, tests[0])) == 1
    assert (0, tests[0]) not in train
    assert train.count((0, trains[2])) == 1
    assert (9, tests[1]) not in train + test
    assert len(train + test) == 10 * FONTS - 4


def test_a_letter_without_images_is_refused(tmp_path: Path) -> None:
    source = put(tmp_path, archive({f"notMNIST_small/J/{font(number)}": None for number in range(FONTS)}))
    with pytest.raises(
        DatasetError, match=r"tar.gz: not all letters from A to J have training and test images"
    ):
        datasets.load_notmnist(tmp_path, source)


# With ids of their own: gzip writes the time into its bytes, and every worker of a run must collect the same names.
@pytest.mark.parametrize(
    "data",
    [b"no archive", gzip.compress(b"x" * 600), archive()[:-900]],
    ids=["no archive", "no tar in it", "cut"],
)
def test_an_archive_that_cannot_be_read_is_one_line(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"tar.gz: cannot be read \(.*\); delete the file, and the next"
    ) as caught:
        datasets.load_notmnist(tmp_path, put(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_an_archive_that_is_not_the_publishers_is_refused(tmp_path: Path) -> None:
    put(tmp_path, archive())
    with pytest.raises(DatasetError, match=r"tar.gz: wrong checksum; delete the file, and the next run"):
        datasets.load_notmnist(tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        server.files = {notmnist.ARCHIVE: archive()}
        yield server


def test_the_archive_is_downloaded_once_and_checked(server: Server, tmp_path: Path) -> None:
    md5 = {notmnist.ARCHIVE: hashlib.md5(server.files[notmnist.ARCHIVE]).hexdigest()}
    source = Source((f"{server.url}nothing-here/", server.url), md5, gzipped=False)
    (tmp_path / "notmnist").mkdir()
    server.cut = 300
    with pytest.raises(DatasetError, match=r"broke off after 300 of \d+ bytes\); run again to go on with it"):
        datasets.load_notmnist(tmp_path, source)
    server.cut = 1 << 30
    first = datasets.load_notmnist(tmp_path, source)
    assert server.requests[-1] == (notmnist.ARCHIVE, "bytes=300-")
    assert (tmp_path / "notmnist" / notmnist.ARCHIVE).read_bytes() == server.files[notmnist.ARCHIVE]
    count = len(server.requests)
    assert datasets.load_notmnist(tmp_path, source).sha256 == first.sha256
    assert len(server.requests) == count


def test_a_wrong_download_does_not_stay(server: Server, tmp_path: Path) -> None:
    source = Source((server.url,), {notmnist.ARCHIVE: "0" * 32}, gzipped=False)
    with pytest.raises(DatasetError, match="wrong checksum"):
        datasets.load_notmnist(tmp_path, source)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def contents() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": idx(generator.integers(0, 256, (30, 28, 28))),
        "train-labels-idx1-ubyte": idx(np.arange(30) % 10),
        "t10k-images-idx3-ubyte": idx(generator.integers(0, 256, (20, 28, 28))),
        "t10k-labels-idx1-ubyte": idx(np.arange(20) % 10),
    }


def put_idx(folder: Path, contents: dict[str, bytes]) -> Path:
    for number, (name, data) in enumerate(contents.items()):
        if number % 2:
            (folder / name).write_bytes(data)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    return folder


def test_idx_files_are_a_part(contents: dict[str, bytes], tmp_path: Path) -> None:
    dataset = datasets.load_notmnist(put_idx(tmp_path, contents))
    assert dataset.note == "A part of notMNIST: 30 training images and 20 test images, not the full set."
    assert dataset.train_images.tobytes() == contents["train-images-idx3-ubyte"][16:]
    assert dataset.test_labels.tolist() == [*range(10), *range(10)]
    assert dataset.labels == tuple("ABCDEFGHIJ")
    assert dataset.files == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        (
            "t10k-labels-idx1-ubyte",
            None,
            r"t10k-labels-idx1-ubyte.gz: not there, but others of its four; put",
        ),
        (
            "t10k-labels-idx1-ubyte",
            b"\0" * 9,
            r"t10k-labels-idx1-ubyte: wrong magic number .*; put another copy",
        ),
        ("t10k-labels-idx1-ubyte", idx(np.arange(19)), "do not belong together; replace"),
        ("t10k-labels-idx1-ubyte", idx(np.full(20, 10)), "do not belong together; replace"),
        ("train-labels-idx1-ubyte", idx(np.zeros(0)), "do not belong together; replace"),
        (
            "t10k-images-idx3-ubyte",
            idx(np.zeros((20, 8, 8))),
            "training and test images are of different sizes",
        ),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(
    name: str, data: bytes | None, complaint: str, contents: dict[str, bytes], tmp_path: Path
) -> None:
    put_idx(tmp_path, contents)
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        path.unlink(missing_ok=True)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=complaint) as caught:
        datasets.load_notmnist(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", [MNIST_DIR] if MNIST_DIR.is_dir() else [])
def test_mnist_is_not_taken_for_it(folder: Path) -> None:
    with pytest.raises(DatasetError, match="this is MNIST's file, not notMNIST's"):
        datasets.load("notmnist", folder)


PART = ROOT / ".." / "shared" / "data" / "notmnist-10k"


@pytest.mark.parametrize("data_dir", [PART, PART.parent] if PART.is_dir() else [])
def test_the_part_beside_the_repository(data_dir: Path) -> None:
    dataset = datasets.load("notmnist", data_dir)
    assert (
        dataset.note == "A part of notMNIST: 7,804 training images and 2,000 test images, not the full set."
    )
    assert dataset.train_images.shape == (7804, 1, 28, 28)
    assert dataset.test_images.shape == (2000, 1, 28, 28)
    assert np.bincount(dataset.train_labels).tolist() == [793, 802, 816, 786, 789, 785, 784, 769, 671, 809]
    assert np.bincount(dataset.test_labels).tolist() == [204, 196, 181, 205, 202, 207, 212, 224, 185, 184]
    images = [image.tobytes() for image in (*dataset.train_images, *dataset.test_images)]
    assert len(set(images)) == 9804
