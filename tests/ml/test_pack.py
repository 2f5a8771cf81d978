"""The pack format: what is written is read back, and every kind of damage is named."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ml import pack

MODELS = ("gradient_regularized", "zebra", "undefended")


def png(seed: int, size: int = 4) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    return pack.encode_png(pixels)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def example() -> tuple[dict[str, Any], list[bytes]]:
    """A small pack of three models with two stimuli each."""
    images: list[bytes] = []
    stimuli = []
    for model in MODELS:
        for target in ("1", "2"):
            images.append(png(len(images)))
            stimuli.append(
                {
                    "sha256": sha(images[-1]),
                    "model": model,
                    "source_index": 7,
                    "source_label": "0",
                    "target_label": target,
                    "prediction": target,
                    "target_probability": 0.75,
                    "iterations": 3,
                    "pixels_changed": 6,
                    "l2": 1.5,
                    "linf": 1.0,
                }
            )
    grids = {}
    for model in MODELS:
        images.append(png(len(images), size=9))
        grids[model] = sha(images[-1])
    originals = [png(50), png(51)]
    images += originals
    manifest = {
        "name": "tiny",
        "labels": ["0", "1", "2"],
        "models": [{"name": model, "clean_accuracy": 0.9} for model in MODELS],
        "stimuli": stimuli,
        "grids": grids,
        "originals": [{"sha256": sha(originals[0]), "source_index": 7, "source_label": "0"}],
        "clean": [{"sha256": sha(originals[1]), "source_index": 8, "source_label": "1"}],
    }
    return manifest, images


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    manifest, images = example()
    written = pack.write(tmp_path / "tiny", manifest, images)
    again = pack.read(tmp_path / "tiny")
    assert again == written
    assert again.models == ("undefended", "gradient_regularized", "zebra")
    assert again.labels == ("0", "1", "2")
    assert len(again.stimuli) == 6
    assert again.stimuli[0].target_probability == 0.75
    assert [image.source_index for image in (*again.originals, *again.clean)] == [7, 8]
    assert sha(again.image(again.grids["zebra"])) == again.grids["zebra"]
    assert again.manifest["format"] == pack.FORMAT
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "nothing temporary stays"


def test_the_optional_keys_may_be_missing(tmp_path: Path) -> None:
    manifest, images = example()
    del manifest["originals"], manifest["clean"]
    written = pack.write(tmp_path / "tiny", manifest, images)
    assert written.originals == written.clean == ()


def test_replacing_a_pack_keeps_its_readme_and_nothing_else(tmp_path: Path) -> None:
    manifest, images = example()
    first = pack.write(tmp_path / "tiny", manifest, images)
    (tmp_path / "tiny" / "README.md").write_text("how it was made")
    manifest["stimuli"] = manifest["stimuli"][::2]
    second = pack.write(tmp_path / "tiny", manifest, images[::2] + images[6:])
    assert second.pack_sha256 != first.pack_sha256
    assert (tmp_path / "tiny" / "README.md").read_text() == "how it was made"
    assert len(list((tmp_path / "tiny" / "images").iterdir())) == 3 + 3 + 2


def test_a_folder_that_is_no_pack_is_left_alone(tmp_path: Path) -> None:
    manifest, images = example()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(pack.PackError, match="is not a stimulus pack; choose another folder"):
        pack.write(tmp_path / "thesis", manifest, images)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_failed_write_leaves_the_old_pack(tmp_path: Path) -> None:
    manifest, images = example()
    first = pack.write(tmp_path / "tiny", manifest, images)
    with pytest.raises(pack.PackError, match="cannot be read"):
        pack.write(tmp_path / "tiny", {**manifest, "name": "other"}, images[1:])
    assert pack.read(tmp_path / "tiny") == first
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def _set(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("format", value="stimulus-pack/9"), "format is 'stimulus-pack/9'"),
        (_set("name", value="../up"), "the name '../up'"),
        (_set("labels", value=["0", "0", "1"]), "labels must be"),
        (_set("labels", value=[0, 1, 2]), "labels must be strings"),
        (_set("models", value=[]), "models must be objects"),
        (_set("models", value={}), "models is missing or not a list"),
        (_set("models", value=["undefended"]), "models must be objects"),
        (_set("models", value=[{"name": "x/y"}]), "the model's name 'x/y'"),
        (_set("labels", value=["0", "1", "x" * 51]), "50 characters at most"),
        (
            _set("stimuli", 0, "iterations", value=2**31),
            "iterations is missing or not a whole number from 0",
        ),
        (_set("stimuli", 0, "l2", value=10**400), "a whole number has more than 64 bits"),
        (_set("models", value=[{"name": "x"}, {"name": "x"}]), "two models have one name"),
        (_set("grids", value={"undefended": "0" * 64}), "is missing or not a string"),
        (_set("grids", "nobody", value="0" * 64), "grids names 'nobody'"),
        (_set("stimuli", value=[]), "no stimuli"),
        (_set("stimuli", 0, value="x"), "a stimulus is not an object"),
        (_set("stimuli", 0, "model", value="nobody"), "'nobody' is not one of the pack's models"),
        (_set("stimuli", 0, "sha256", value="../../etc/passwd"), "is not a sha256"),
        (_set("stimuli", 0, "source_label", value="9"), "source_label '9' is not one of"),
        (_set("stimuli", 0, "source_label", value="1"), "its source label as its target"),
        (_set("stimuli", 0, "prediction", value="2"), "is not its target"),
        (_set("stimuli", 0, "target_label", value="2"), "is not its target"),
        (_set("stimuli", 0, "source_index", value=-1), "source_index is missing or not a whole number"),
        (_set("stimuli", 0, "source_index", value=True), "source_index is missing or not a whole number"),
        (_set("stimuli", 0, "l2", value="1.5"), "l2 is missing or not a finite number"),
        (_set("stimuli", 0, "target_probability", value=1.5), "not in \\[0, 1\\]"),
        (_set("clean", value={}), "clean is missing or not a list"),
        (_set("clean", 0, value=3), "an unmodified image is not an object"),
        (_set("clean", 0, "sha256", value="f" * 64), "cannot be read"),
    ],
)
def test_a_wrong_manifest_is_refused(
    change: Callable[[dict[str, Any]], None], complaint: str, tmp_path: Path
) -> None:
    manifest, images = example()
    directory = tmp_path / "tiny"
    pack.write(directory, manifest, images)
    stored = json.loads((directory / "manifest.json").read_text())
    change(stored)
    stored["pack_sha256"] = pack.pack_sha256(stored)
    (directory / "manifest.json").write_text(json.dumps(stored))
    with pytest.raises(pack.PackError, match=complaint) as caught:
        pack.read(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_stimuli_for_one_cell_are_refused(tmp_path: Path) -> None:
    manifest, images = example()
    manifest["stimuli"].append(dict(manifest["stimuli"][0], sha256=manifest["stimuli"][1]["sha256"]))
    with pytest.raises(pack.PackError, match="occur twice"):
        pack.write(tmp_path / "tiny", manifest, images)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    manifest, images = example()
    pack.write(tmp_path / "tiny", manifest, images)
    path = tmp_path / "tiny" / "manifest.json"
    path.write_text(path.read_text().replace('"iterations": 3', '"iterations": 2', 1))
    with pytest.raises(pack.PackError, match="pack_sha256 does not match"):
        pack.read(tmp_path / "tiny")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": NaN}', "[" * 100_000])
def test_a_manifest_that_is_not_a_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(pack.PackError, match=r"not valid JSON|not a JSON object"):
        pack.read(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(pack.PackError, match=r"nowhere: there is no such folder"):
        pack.read(tmp_path / "nowhere")


def jpeg(pixels: pack.Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


def color(pixels: pack.Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("encode", "complaint"),
    [
        (jpeg, "not a readable PNG"),
        (color, "is not 8-bit gray without interlacing"),
        (lambda pixels: pack.encode_png(pixels)[:-30], "not a readable PNG"),
        (lambda pixels: pack.encode_png(pixels[:2]), "4 x 2 pixels, the others 4 x 4"),
    ],
)
def test_an_image_of_another_kind_is_refused(
    encode: Callable[[pack.Pixels], bytes], complaint: str, tmp_path: Path
) -> None:
    manifest, images = example()
    wrong = encode(np.arange(16, dtype=np.uint8).reshape(4, 4))
    manifest["stimuli"][5]["sha256"] = sha(wrong)
    with pytest.raises(pack.PackError, match=complaint):
        pack.write(tmp_path / "tiny", manifest, [*images, wrong])


def test_an_image_with_other_bytes_than_its_name_says_is_refused(tmp_path: Path) -> None:
    manifest, images = example()
    written = pack.write(tmp_path / "tiny", manifest, images)
    path = tmp_path / "tiny" / "images" / f"{written.stimuli[0].sha256}.png"
    path.write_bytes(images[1])
    with pytest.raises(pack.PackError, match="does not have the sha256 in its name"):
        pack.read(tmp_path / "tiny")


@pytest.mark.parametrize("sha256", ["0" * 64, "../manifest", ""])
def test_an_unknown_image_is_not_served(sha256: str, tmp_path: Path) -> None:
    manifest, images = example()
    written = pack.write(tmp_path / "tiny", manifest, images)
    with pytest.raises(pack.PackError):
        written.image(sha256)


@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_png_is_lossless_and_deterministic(height: int, width: int, random: Any) -> None:
    pixels = np.frombuffer(random.randbytes(height * width), dtype=np.uint8).reshape(height, width)
    data = pack.encode_png(pixels)
    assert np.array_equal(pack.decode_png(data), pixels)
    assert pack.encode_png(pack.decode_png(data)) == data


def test_grid_places_every_cell() -> None:
    cells = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    grid = pack.grid_pixels(cells, gap=2)
    assert grid.shape == (2 * 6 + 2, 3 * 7 + 2)
    assert np.array_equal(grid[8:12, 16:21], cells[1, 2])
    assert set(np.unique(grid[:2])) == {96}
    assert np.array_equal(pack.grid_cells(grid, 2, 3, gap=2), cells)


@pytest.mark.parametrize("shape", [(13, 21), (14, 22), (14, 19), (6, 21), (1, 1), (2, 2)])
def test_a_picture_that_is_no_grid_has_no_cells(shape: tuple[int, int]) -> None:
    with pytest.raises(pack.PackError, match=f"{shape[1]} x {shape[0]} pixels are no grid of 2 x 3 cells"):
        pack.grid_cells(np.zeros(shape, dtype=np.uint8), 2, 3, gap=2)


def test_canonical_json_is_one_text_for_equal_objects() -> None:
    assert pack.canonical_json({"b": 1, "a": ["é", 0.1]}) == '{"a":["é",0.1],"b":1}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack.canonical_json({"a": float("nan")})


def test_reading_packs_needs_no_torch() -> None:
    code = "import sys, ml.pack; assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
