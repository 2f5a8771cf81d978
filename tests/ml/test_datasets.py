"""Reading MNIST's files, fetching them from a real server, and every way in which that goes wrong."""

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ml import datasets, generate
from ml.dataset_files import find_folder
from ml.datasets import DatasetError, Source
from tests.ml.conftest import mnist_dirs
from tests.ml.files import Server, idx, serving


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """Four small files in MNIST's layout, uncompressed."""
    generator = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": idx(generator.integers(0, 256, (30, 28, 28))),
        "train-labels-idx1-ubyte": idx(np.arange(30) % 10),
        "t10k-images-idx3-ubyte": idx(generator.integers(0, 256, (20, 28, 28))),
        "t10k-labels-idx1-ubyte": idx(np.arange(20) % 10),
    }


def source(contents: dict[str, bytes], *mirrors: str) -> Source:
    return Source(mirrors, {name: hashlib.md5(data).hexdigest() for name, data in contents.items()})


def put(folder: Path, contents: dict[str, bytes], compress: bool = True) -> Path:
    for name, data in contents.items():
        path = folder / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(data, mtime=0) if compress else data)
    return folder


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read(compress: bool, contents: dict[str, bytes], tmp_path: Path) -> None:
    dataset = datasets.load_mnist(put(tmp_path, contents, compress), source(contents))
    assert dataset.train_images.shape == (30, 1, 28, 28)
    assert dataset.test_images.shape == (20, 1, 28, 28)
    assert dataset.train_images.tobytes() == contents["train-images-idx3-ubyte"][16:]
    assert dataset.test_labels.tolist() == [*range(10), *range(10)]
    assert dataset.labels == tuple("0123456789")
    assert dataset.files == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def test_the_folder_may_hold_several_data_sets(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist").mkdir()
    put(tmp_path / "mnist", contents)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert len(datasets.load_mnist(None, source(contents)).train_images) == 30


def test_of_several_folders_the_one_with_the_exact_name_is_taken_then_the_only_one_that_begins_so(
    contents: dict[str, bytes], tmp_path: Path
) -> None:
    names = list(contents)
    (tmp_path / "mnist-part").mkdir()
    (tmp_path / "mnistlike.txt").touch()
    (tmp_path / "notmnist").mkdir()
    assert find_folder("mnist", tmp_path, names) == tmp_path / "mnist-part"
    (tmp_path / "mnist-other").mkdir()
    with pytest.raises(DatasetError, match=r"may be mnist: mnist-other, mnist-part; give one as --data-dir"):
        find_folder("mnist", tmp_path, names)
    (tmp_path / f"{names[2]}.gz").touch()
    assert find_folder("mnist", tmp_path, names) == tmp_path
    (tmp_path / "mnist").mkdir()
    assert find_folder("mnist", tmp_path, names) == tmp_path / "mnist"
    assert find_folder("svhn", tmp_path, ["train_32x32.mat"]) == tmp_path


def damaged(contents: dict[str, bytes], kind: str) -> tuple[str, bytes]:
    """A name in the folder and the bytes to put there."""
    name = "t10k-images-idx3-ubyte"
    good = contents[name]
    return {
        "magic": (name, b"\0\0\x08\x01" + good[4:]),
        "short": (name, good[:-100]),
        "long": (name, good + b"x"),
        "empty": (name, b""),
        "header": (name, good[:9]),
        "gzip cut": (f"{name}.gz", gzip.compress(good)[:-50]),
        "no gzip": (f"{name}.gz", good),
        "checksum": (name, good[:-1] + bytes([good[-1] ^ 1])),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("magic", "wrong magic number 00000801, expected 00000803; delete the file"),
        ("short", "truncated or too long: 15596 bytes where its header promises 15696; delete the file"),
        ("long", "truncated or too long: 15697 bytes"),
        ("empty", "wrong magic number , expected"),
        ("header", "truncated or too long: 9 bytes"),
        ("gzip cut", "truncated or not gzip; delete the file"),
        ("no gzip", "truncated or not gzip; delete the file"),
        ("checksum", "wrong checksum; delete the file"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(
    kind: str, complaint: str, contents: dict[str, bytes], tmp_path: Path
) -> None:
    put(tmp_path, contents, compress=False)
    name, data = damaged(contents, kind)
    (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=complaint) as caught:
        datasets.load_mnist(tmp_path, source(contents))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_images_and_labels_of_different_numbers_are_refused(
    contents: dict[str, bytes], tmp_path: Path
) -> None:
    wrong = {**contents, "t10k-labels-idx1-ubyte": idx(np.zeros(3))}
    with pytest.raises(DatasetError, match="do not belong together"):
        datasets.load_mnist(put(tmp_path, wrong), source(wrong))


def test_a_missing_folder_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "nowhere"
    arguments = ["--dataset", "mnist", "--attack", "jsma", "--data-dir", str(folder)]
    assert generate.main([*arguments, "--out", str(tmp_path / "pack")]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {folder}: no such folder; make it, or leave out --data-dir")
    assert line.count("\n") == 1


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(
        DatasetError, match=r"no data set 'cifar'; choose one of mnist, svhn, notmnist, digits"
    ):
        datasets.load("cifar")


@pytest.fixture
def server(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        server.files = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in contents.items()}
        yield server


FIRST = "train-images-idx3-ubyte.gz"


def test_missing_files_are_downloaded_once(
    server: Server, contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    first = datasets.load_mnist(None, source(contents, server.url))
    assert sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir()) == sorted(server.files)
    server.files = {}
    assert datasets.load_mnist(None, source(contents, server.url)).sha256 == first.sha256
    assert len(server.requests) == 4


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(
    ranges: bool, server: Server, contents: dict[str, bytes], tmp_path: Path
) -> None:
    server.ranges, server.cut = ranges, 1000
    with pytest.raises(
        DatasetError, match=r"broke off after 1000 of \d+ bytes\); run again to go on with it"
    ):
        datasets.load_mnist(tmp_path, source(contents, server.url))
    assert [path.name for path in tmp_path.iterdir()] == [f"{FIRST}.part"]
    assert (tmp_path / f"{FIRST}.part").stat().st_size == 1000

    server.cut = 1 << 30
    assert len(datasets.load_mnist(tmp_path, source(contents, server.url)).train_images) == 30
    assert server.requests[:2] == [(FIRST, None), (FIRST, "bytes=1000-")]
    assert (tmp_path / FIRST).read_bytes() == server.files[FIRST]
    assert not list(tmp_path.glob("*.part"))


def test_a_download_interrupted_after_its_last_byte_is_finished(
    server: Server, contents: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / f"{FIRST}.part").write_bytes(server.files[FIRST])
    datasets.load_mnist(tmp_path, source(contents, server.url))
    assert (tmp_path / FIRST).read_bytes() == server.files[FIRST]


def test_a_part_that_does_not_fit_is_fetched_anew(
    server: Server, contents: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / f"{FIRST}.part").write_bytes(b"from another mirror")
    datasets.load_mnist(tmp_path, source(contents, server.url))
    assert (tmp_path / FIRST).read_bytes() == server.files[FIRST]
    assert [request for request in server.requests if request[0] == FIRST] == [
        (FIRST, "bytes=19-"),
        (FIRST, None),
    ]


def test_a_download_with_a_wrong_checksum_does_not_stay(
    server: Server, contents: dict[str, bytes], tmp_path: Path
) -> None:
    server.files[FIRST] = gzip.compress(b"something else")
    with pytest.raises(DatasetError, match=r"train-images.*download failed \(.*wrong checksum"):
        datasets.load_mnist(tmp_path, source(contents, server.url))
    assert list(tmp_path.iterdir()) == []


def test_the_next_mirror_is_asked(server: Server, contents: dict[str, bytes], tmp_path: Path) -> None:
    mirrors = source(contents, f"{server.url}nothing-here/", server.url)
    assert len(datasets.load_mnist(tmp_path, mirrors).train_images) == 30


def test_no_server_at_all_is_one_line(contents: dict[str, bytes], tmp_path: Path, server: Server) -> None:
    server.files = {}
    with pytest.raises(DatasetError, match=r"HTTP Error 404.*or put the file there by hand") as caught:
        datasets.load_mnist(tmp_path, source(contents, server.url))
    assert "\n" not in str(caught.value)


def test_digits_are_bundled_and_split_by_class() -> None:
    digits = datasets.load("digits")
    assert digits.train_images.shape == (1442, 1, 28, 28)
    assert digits.test_images.shape == (355, 1, 28, 28)
    assert np.bincount(digits.test_labels).min() >= 34
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 255
    together = {image.tobytes() for image in digits.train_images} & {i.tobytes() for i in digits.test_images}
    assert not together
    # Checkpoints hang on it.
    assert digits.sha256 == "2543b0506cecfc9841339cb643d50e2ec026bc180d44c81aa391fc713d5c8cae"
    assert not digits.contrast_normalized
    assert digits.note == ""


def test_eight_bits_and_floats_go_back_and_forth() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    floats = datasets.to_float(pixels)
    assert floats.dtype == np.float32
    assert (floats[0], floats[-1]) == (0, 1)
    assert np.array_equal(np.rint(floats * 255), pixels)


@pytest.mark.parametrize("folder", mnist_dirs)
def test_the_real_mnist(folder: Path) -> None:
    mnist = datasets.load("mnist", folder)
    assert mnist.train_images.shape == (60000, 1, 28, 28)
    assert mnist.test_images.shape == (10000, 1, 28, 28)
    # Checkpoints hang on it.
    assert mnist.sha256 == "da391adbc18b0d9eae51bc8b1a7a5cd9e56524915b4e635992460a8d77986c54"
    assert not mnist.contrast_normalized
    assert mnist.note == ""
    assert mnist.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(mnist.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert round(float(datasets.to_float(mnist.train_images).mean()), 4) == 0.1307
