"""SVHN: gray values worked out by hand, which files make a part, broken files, and the download."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from ml import datasets
from ml.datasets import DatasetError, Source
from tests.ml.conftest import ROOT
from tests.ml.files import Server, serving

TRAIN, TEST, EXTRA = "train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"


def colors(*rgb: tuple[int, int, int]) -> np.ndarray:
    """(32, 32, 3, N), an image of one color for each."""
    return np.broadcast_to(np.array(rgb, dtype=np.uint8).T, (32, 32, 3, len(rgb))).copy()


def put(folder: Path, name: str, images: np.ndarray, labels: Sequence[int] | np.ndarray) -> Path:
    scipy.io.savemat(folder / name, {"X": images, "y": np.reshape(labels, (-1, 1))}, do_compression=True)
    return folder / name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    put(tmp_path, TRAIN, generator.integers(0, 256, (32, 32, 3, 12), dtype=np.uint8), [*range(1, 11), 1, 2])
    put(tmp_path, TEST, generator.integers(0, 256, (32, 32, 3, 3), dtype=np.uint8), [10, 9, 8])
    return tmp_path


def published(folder: Path, *mirrors: str) -> Source:
    """A source whose checksums are those of the files that are there."""
    md5 = dict.fromkeys((TRAIN, TEST, EXTRA), "0" * 32)
    md5 |= {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.glob("*.mat")}
    return Source(mirrors, md5, gzipped=False)


def test_gray_is_the_weighted_sum_of_the_colors(folder: Path) -> None:
    # 0.2989 R + 0.5870 G + 0.1140 B: 76.2195, 149.685, 29.07, 254.9745, 0, 2.989 + 11.74 + 3.42 = 18.149,
    # 2.989 + 0.587 + 0.912 = 4.488 and just 28.5, which goes up.
    known = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    known += [(10, 20, 30), (10, 1, 8), (0, 0, 250)]
    put(folder, TEST, colors(*known), range(1, 9))
    images = datasets.load_svhn(folder).test_images
    assert images.shape == (8, 1, 32, 32)
    assert images.dtype == np.uint8
    assert [np.unique(image).tolist() for image in images] == [[76], [150], [29], [255], [0], [18], [4], [29]]


def test_rows_stay_rows_and_images_stay_apart(folder: Path) -> None:
    many = np.zeros((32, 32, 3, 2503), dtype=np.uint8)  # more than are turned to gray at a time
    for number in range(many.shape[3]):
        many[number % 32, number // 32 % 32, :, number] = 200
    put(folder, TRAIN, many, np.arange(2503) % 10 + 1)
    images = datasets.load_svhn(folder).train_images
    assert len(images) == 2503
    for number in (0, 1, 31, 32, 999, 1000, 2502):
        assert np.argwhere(images[number, 0]).tolist() == [[number % 32, number // 32 % 32]]
        assert images[number].max() == 200


def test_label_10_is_the_digit_0(folder: Path) -> None:
    svhn = datasets.load_svhn(folder)
    assert svhn.labels == tuple("0123456789")
    assert svhn.train_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert svhn.test_labels.tolist() == [0, 9, 8]
    assert svhn.train_labels.dtype == np.int64


def test_labels_may_be_stored_as_floats_in_a_row(folder: Path) -> None:
    scipy.io.savemat(folder / TEST, {"X": colors((1, 1, 1), (2, 2, 2)), "y": np.array([[10.0, 7.0]])})
    assert datasets.load_svhn(folder).test_labels.tolist() == [0, 7]


def test_the_publishers_files_are_the_whole_set_and_others_a_part(folder: Path) -> None:
    whole = datasets.load_svhn(folder, published(folder))
    assert whole.note == ""
    assert whole.contrast_normalized
    assert whole.name == "svhn"
    assert "non-commercial" in whole.licence
    assert whole.files == {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in (TRAIN, TEST)}

    part = datasets.load_svhn(folder)
    assert part.note == "A part of SVHN: 12 training images and 3 test images, not the full set."
    assert part.sha256 == whole.sha256


def test_extra_images_are_trained_on_where_they_are_there(folder: Path) -> None:
    without = datasets.load_svhn(folder)
    put(folder, EXTRA, colors(*[(90, 90, 90)] * 1100), [10] * 1100)
    svhn = datasets.load_svhn(folder)
    assert len(svhn.train_images) == 1112
    assert np.array_equal(svhn.train_images[:12], without.train_images)
    assert np.unique(svhn.train_images[12:]).tolist() == [90]
    assert svhn.train_labels[12:].tolist() == [0] * 1100
    assert np.array_equal(svhn.test_images, without.test_images)
    assert set(svhn.files) == {TRAIN, TEST, EXTRA}
    assert (
        svhn.note
        == "A part of SVHN: 1,112 training images (1,100 of them extra) and 3 test images, not the full set."
    )
    assert datasets.load_svhn(folder, published(folder)).note == ""


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("cut", "truncated or not a .mat file"),
        ("empty", "truncated or not a .mat file"),
        ("text", "truncated or not a .mat file"),
        ("hdf5", "truncated or not a .mat file"),
        ("flipped", "truncated or not a .mat file"),
        ("no X", r"X is not 8-bit colors of shape \(32, 32, 3, N\)"),
        ("gray", r"X is not 8-bit colors of shape \(32, 32, 3, N\)"),
        ("size", r"X is not 8-bit colors of shape \(32, 32, 3, N\)"),
        ("16 bit", r"X is not 8-bit colors of shape \(32, 32, 3, N\)"),
        ("none", r"X is not 8-bit colors of shape \(32, 32, 3, N\)"),
        ("no y", "y is not 2 labels from 1 to 10"),
        ("fewer", "y is not 2 labels from 1 to 10"),
        ("zero", "y is not 2 labels from 1 to 10"),
        ("eleven", "y is not 2 labels from 1 to 10"),
        ("half", "y is not 2 labels from 1 to 10"),
        ("NaN", "y is not 2 labels from 1 to 10"),
        ("words", "y is not 2 labels from 1 to 10"),
        ("a struct", "y is not 2 labels from 1 to 10"),
    ],
)
def test_a_broken_file_is_one_line_with_the_remedy(kind: str, complaint: str, folder: Path) -> None:
    path, two = folder / TEST, colors((1, 2, 3), (4, 5, 6))
    good = path.read_bytes()
    raw = {
        "cut": good[:-200],
        "empty": b"",
        "text": b"<html>404</html>" * 100,
        "hdf5": b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF",
        "flipped": good[:2000] + bytes([good[2000] ^ 255]) + good[2001:],
    }
    contents: dict[str, dict[str, object]] = {
        "no X": {"y": [[1], [2]]},
        "gray": {"X": two[:, :, 0], "y": [[1], [2]]},
        "size": {"X": two[:28, :28], "y": [[1], [2]]},
        "16 bit": {"X": two.astype(np.uint16), "y": [[1], [2]]},
        "none": {"X": two[..., :0], "y": np.zeros((0, 1))},
        "no y": {"X": two},
        "fewer": {"X": two, "y": [[1]]},
        "zero": {"X": two, "y": [[0], [2]]},
        "eleven": {"X": two, "y": [[1], [11]]},
        "half": {"X": two, "y": [[1.5], [2]]},
        "NaN": {"X": two, "y": [[np.nan], [2]]},
        "words": {"X": two, "y": np.array(["one", "two"], dtype=object)},
        "a struct": {"X": two, "y": {"a": 1, "b": 2}},
    }
    if kind in raw:
        path.write_bytes(raw[kind])
    else:
        scipy.io.savemat(path, contents[kind])
    with pytest.raises(DatasetError, match=complaint) as caught:
        datasets.load_svhn(folder)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; delete the file, and the next run downloads it again")
    assert "\n" not in message


def test_a_broken_extra_file_is_not_said_to_be_downloaded(folder: Path) -> None:
    (folder / EXTRA).write_bytes(b"")
    with pytest.raises(DatasetError, match=f"{EXTRA}: .*; delete the file$"):
        datasets.load_svhn(folder)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the files of `folder`, and has an extra one."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        server.files = {path.name: path.read_bytes() for path in folder.glob("*.mat")}
        server.files[EXTRA] = b"large"
        yield server


def test_train_and_test_are_downloaded_and_extra_is_not(server: Server, folder: Path, tmp_path: Path) -> None:
    source, mine = published(folder, server.url), tmp_path / "svhn"
    mine.mkdir()
    svhn = datasets.load_svhn(tmp_path, source)
    assert svhn.note == ""
    assert svhn.sha256 == datasets.load_svhn(mine, source).sha256
    assert [path for path, _ in server.requests] == [TRAIN, TEST]
    assert sorted(path.name for path in mine.iterdir()) == [TEST, TRAIN]
    assert (mine / TEST).read_bytes() == server.files[TEST]


def test_an_interrupted_download_goes_on(server: Server, folder: Path, tmp_path: Path) -> None:
    source, mine = published(folder, server.url), tmp_path / "mine"
    mine.mkdir()
    server.cut = 500
    with pytest.raises(
        DatasetError, match=r"train_32x32.mat: not there, .* broke off after 500 of \d+ bytes"
    ):
        datasets.load_svhn(mine, source)
    assert [path.name for path in mine.iterdir()] == [f"{TRAIN}.part"]
    server.cut = 1 << 30
    datasets.load_svhn(mine, source)
    assert server.requests[1] == (TRAIN, "bytes=500-")
    assert (mine / TRAIN).read_bytes() == server.files[TRAIN]


def test_a_download_that_is_not_the_publishers_does_not_stay(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    source, mine = published(folder, server.url), tmp_path / "mine"
    mine.mkdir()
    server.files[TRAIN] = server.files[TEST]  # a well-formed file, but another one
    with pytest.raises(DatasetError, match="wrong checksum"):
        datasets.load_svhn(mine, source)
    assert list(mine.iterdir()) == []


PART = ROOT / ".." / "shared" / "data" / "svhn-10k"


@pytest.mark.parametrize("data_dir", [PART, PART.parent] if PART.is_dir() else [])
def test_the_part_beside_the_repository(data_dir: Path) -> None:
    svhn = datasets.load("svhn", data_dir)
    assert svhn.note == (
        "A part of SVHN: 24,027 training images (16,027 of them extra) and 2,000 test images, not the full set."
    )
    assert svhn.train_images.shape == (24027, 1, 32, 32)
    assert svhn.test_images.shape == (2000, 1, 32, 32)
    # The first digits of the official test split are 5, 2, 1, 0 and 6.
    assert svhn.train_labels[:5].tolist() == [5, 2, 1, 0, 6]
    assert np.bincount(svhn.test_labels).tolist() == [141, 432, 312, 215, 169, 177, 157, 162, 118, 117]
    assert np.bincount(svhn.train_labels[:8000]).tolist() == [
        543,
        1536,
        1278,
        889,
        795,
        732,
        616,
        605,
        503,
        503,
    ]
    raw = scipy.io.loadmat(PART / TEST)["X"][..., 1234].astype(np.float64)
    expected = raw[..., 0] * 0.2989 + raw[..., 1] * 0.5870 + raw[..., 2] * 0.1140
    assert np.abs(svhn.test_images[1234, 0] - expected).max() <= 0.5 + 1e-9
