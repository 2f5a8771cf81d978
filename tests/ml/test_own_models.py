"""A researcher's own classifier and images become a stimulus pack by the same command."""

import gc
import hashlib
import itertools
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from ml import attacks, generate, own_models, pack, verify
from ml.datasets import Dataset, to_float
from ml.labeled_folder import load_folder

MODULE = """
import sys

import torch
from torch import nn

class Templates(nn.Module):
    '''Logits: the image's product with a template for each label.'''
    def __init__(self, labels=3):
        super().__init__()
        self.templates = nn.Parameter(torch.zeros(labels, 100))
    def forward(self, x):
        return x.flatten(1) @ self.templates.T

class Listening(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer
    def forward(self, x):
        return self.answer(x)

def made(): return Templates()
ready = Templates()
def four(): return Templates(4)
def color(): return nn.Sequential(nn.Conv2d(3, 3, 10), nn.Flatten())
def broken(): raise RuntimeError("no such luck\\nsecond line\\nthird line")
def text(): return "a model"
def nothing(): return Listening(lambda x: None)
def infinite(): return Listening(lambda x: x.flatten(1)[:, :3] / (x[:, 0, 0, :1] < 0.2).float())
def constant(): return Listening(lambda x: torch.ones(len(x), 3))

def bands(x):
    rows = x[:, 0].sum(2)
    return torch.stack([1.3 * rows[:, k : k + 3].sum(1) - 0.3 * rows.sum(1) for k in (0, 3, 6)], 1)

def on_attacked(what):
    '''A model that does `what` with its logits where an image is brighter than any test image.'''
    def answer(x):
        attacked = (x.detach() > 0.9).flatten(1).any(1, keepdim=True)
        return what(bands(x), attacked) if attacked.any() else bands(x)
    return Listening(answer)

def boom(): raise RuntimeError("boom\\nsecond line\\nthird line")
def late_error(): return on_attacked(lambda logits, attacked: boom())
def late_nan(): return on_attacked(lambda logits, attacked: logits.masked_fill(attacked, torch.nan))
def late_infinite(): return on_attacked(lambda logits, attacked: logits.masked_fill(attacked, torch.inf))
def late_exit(): return on_attacked(lambda logits, attacked: sys.exit(0))
def late_shape(): return on_attacked(lambda logits, attacked: logits[:1])
def late_detached(): return on_attacked(lambda logits, attacked: logits.detach())
def late_backward():
    def failing(logits, attacked):
        logits.register_hook(lambda gradient: boom())
        return logits * 1
    return on_attacked(failing)
def late_gradient(): return on_attacked(lambda logits, attacked: logits + (logits * 0).abs().sqrt())
def shape_of_many(): return Listening(lambda x: bands(x)[: 2])
def detached_of_many(): return Listening(lambda x: bands(x) if len(x) <= 2 else bands(x).detach())
def leaves(): return Listening(lambda x: sys.exit("bye"))
def leaving(): raise SystemExit(3)

class Stays(Listening):
    def eval(self): raise RuntimeError("always in training")
def stays(): return Stays(bands)

class Dropping(nn.Dropout):
    def train(self, mode=True): return super().train(True)
def dropping(): return nn.Sequential(Listening(bands), Dropping(0.5))
def drawing(): return Listening(lambda x: bands(x) + 0.1 * torch.randn(len(x), 3))
def of_batch(): return Listening(lambda x: bands(x - x.mean()))
def counting(after):
    calls = []
    def answer(x):
        calls.append(len(x))
        return bands(x) * (1 if len(calls) < after else 2)
    return Listening(answer)
def plainly(): return Listening(bands)
def soon_another(): return counting(5)
def later_another(): return counting(15)

def overwriting():
    def answer(x):
        logits = bands(x * 1)
        with torch.no_grad():
            x.zero_()
        return logits
    return Listening(answer)
buffer = torch.zeros(1000, 3)
def one_buffer():
    def answer(x):
        if x.requires_grad: return bands(x)
        buffer[: len(x)] = bands(x)
        return buffer[: len(x)]
    return Listening(answer)
def rounding(): return Listening(lambda x: bands(x) * (1 + 1e-5 * (len(x) % 2)))
def short_floats(): return Listening(lambda x: (bands(x) * (1 + 5e-3 * (len(x) % 2))).bfloat16())
"""
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def their_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module that can be imported, as one in the researcher's current directory can."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_models.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture(scope="module")
def templates() -> torch.Tensor:
    """(3, 100): label k is a bright band in rows 3 k to 3 k + 2 of 10 x 10 pixels, and brightness elsewhere speaks
    against it."""
    bands = torch.full((3, 10, 10), -0.3)
    for label in range(3):
        bands[label, 3 * label : 3 * label + 3] = 1.0
    return bands.flatten(1)


@pytest.fixture(scope="module")
def weights(their_module: Path, templates: torch.Tensor) -> dict[str, Path]:
    paths = {"safetensors": their_module / "w.safetensors", "torch": their_module / "w.pt"}
    safetensors.torch.save_file({"templates": templates}, paths["safetensors"])
    torch.save({"templates": templates * 2}, paths["torch"])
    return paths


@pytest.fixture(scope="module")
def folder(their_module: Path, templates: torch.Tensor) -> Path:
    """Twelve images of each band at different brightness and with different noise."""
    root = their_module / "bands"
    generator = np.random.default_rng(3)
    for label, name in enumerate(("low", "middle", "top")):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = (templates[label].view(10, 10).numpy() > 0) * (90 + 5 * number) + generator.integers(
                0, 9, (10, 10)
            )
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def test_own_images_and_own_models_become_a_pack(
    folder: Path, weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "--images",
        str(folder),
        "--attack",
        "jsma",
        "--out",
        str(tmp_path / "bands"),
        "--device",
        "cpu",
    ]
    command += ["--model", f"plain=their_models:made,{weights['safetensors']}"]
    command += ["--model", f"double=their_models:Templates,{weights['torch']}"]
    assert generate.main(command) == 0, capsys.readouterr().err
    made = pack.read(tmp_path / "bands")
    assert made.models == ("double", "plain")
    assert made.labels == ("low", "middle", "top")
    records = {record["name"]: record for record in made.manifest["models"]}
    assert records["plain"]["training"] == {"own": "their_models:made", "weights": "w.safetensors"}
    assert records["plain"]["clean_accuracy"] == 1.0
    digest = hashlib.sha256(weights["safetensors"].read_bytes()).hexdigest()
    assert records["plain"]["checkpoint_sha256"] == digest
    # Every image, read as anyone would read it, is nearest to its target's band.
    for stimulus in made.stimuli:
        pixels = pack.decode_png(made.image(stimulus.sha256)).astype(float)
        bands = [pixels[3 * k : 3 * k + 3].sum() for k in range(3)]
        assert made.labels[int(np.argmax(bands))] == stimulus.target_label != stimulus.source_label
    assert verify.main(["verify", str(tmp_path / "bands"), "--checkpoints", str(tmp_path)]) == 0
    assert "not re-classified" in capsys.readouterr().out


def test_a_module_may_stand_where_its_function_would(folder: Path) -> None:
    found = own_models.load("mine=their_models:ready", CPU)
    assert isinstance(found.network, nn.Module)
    assert (found.weights, found.weights_sha256) == (None, None)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("mine=their_models", "expected NAME=module:function"),
        ("mine=their_models:", "expected NAME=module:function"),
        ("=their_models:made", "a name is letters, digits"),
        ("mine=no_such_module:made", "mine: no_such_module:made cannot be made (No module named"),
        ("mine=their_models:unmade", "cannot be made (module 'their_models' has no attribute 'unmade')"),
        ("mine=their_models:broken", "cannot be made (no such luck second line)"),
        ("mine=their_models:text", "gives a str, not a torch.nn.Module"),
        ("mine=their_models:four", "gives (2, 4) for 2 images; the data set's 3 labels need (2, 3)"),
        ("mine=their_models:color", "cannot read images of shape (1, 10, 10)"),
        ("mine=their_models:nothing", "gives no floating-point tensor"),
        ("mine=their_models:infinite", "logits that are not finite, first for test image"),
        ("mine=their_models:constant", "cannot be differentiated with respect to its input"),
        ("mine=their_models:made,nowhere.pt", "nowhere.pt: no weights for this model (["),
        ("mine=their_models:four,{safetensors}", "no weights for this model (Error(s) in loading state_dict"),
        ("mine=their_models:made,{folder}/low/0.png", "no weights for this model"),
        ("mine=their_models:leaving", "cannot be made (it calls sys.exit(3))"),
        ("mine=their_models:leaves", "cannot read images of shape (1, 10, 10) (it calls sys.exit('bye'))"),
        ("mine=their_models:stays", "mine: cannot be evaluated on cpu (always in training)"),
        ("mine=their_models:shape_of_many", "mine: gives (2, 3) for 36 images; the data set's 3 labels need"),
        (
            "mine=their_models:detached_of_many",
            "mine: cannot be differentiated with respect to its input (its",
        ),
        ("mine=their_models:dropping", "mine: gives other logits for the same images in another order"),
        ("mine=their_models:drawing", "mine: gives other logits for the same images in another order"),
        ("mine=their_models:of_batch", "mine: gives other logits for the same images in another order"),
        ("mine=their_models:soon_another", "mine: gives other logits for the same images in another order"),
        ("un defended=their_models:made", "a name is letters, digits"),
        ("unknown", "--model unknown: not one of undefended"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(
    model: str,
    complaint: str,
    folder: Path,
    weights: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = model.format(folder=folder, safetensors=weights["safetensors"])
    command = ["--images", str(folder), "--attack", "jsma", "--out", str(tmp_path / "p"), "--model", model]
    assert generate.main([*command, "--checkpoints", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("late_error", "cannot read attacked images of shape (1, 10, 10) (boom second line)"),
        ("late_exit", "cannot read attacked images of shape (1, 10, 10) (it calls sys.exit(0))"),
        ("late_nan", "gives logits that are not finite for attacked images"),
        ("late_infinite", "gives logits that are not finite for attacked images"),
        ("late_shape", "gives (1, 3) for 30 attacked images; the data set's 3 labels need (30, 3)"),
        (
            "late_detached",
            "cannot be differentiated with respect to its input (its logits are detached from it)",
        ),
        ("late_backward", "cannot be differentiated with respect to its input (boom second line)"),
        ("late_gradient", "has gradients with respect to its input that are not finite"),
        ("later_another", "gives other logits for the same images"),
    ],
)
def test_a_model_that_fails_on_attacked_images_alone_is_one_clear_line(
    function: str, complaint: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--images", str(folder), "--attack", "tgsm", "--out", str(tmp_path / "p"), "--device", "cpu"]
    assert generate.main([*command, "--model", f"mine=their_models:{function}"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: mine: ")
    assert complaint in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["overwriting", "one_buffer", "rounding"])
def test_what_a_model_may_do_does_not_change_the_pack(function: str, folder: Path, tmp_path: Path) -> None:
    """It may overwrite its input and what it gave, and round differently from batch to batch."""
    images = {}
    for name in (function, "plainly"):
        command = [
            "--images",
            str(folder),
            "--attack",
            "tgsm",
            "--out",
            str(tmp_path / name),
            "--device",
            "cpu",
        ]
        assert generate.main([*command, "--model", f"mine=their_models:{name}"]) == 0
        images[name] = {path.name for path in (tmp_path / name / "images").iterdir()}
    assert images[function] == images["plainly"]


def test_shorter_numbers_may_be_rounded_further(folder: Path) -> None:
    model = own_models.load("mine=their_models:short_floats", CPU)
    assert own_models.check(model, load_folder(folder, split=False)).dtype == torch.bfloat16


@pytest.mark.parametrize("attack", [attacks.jsma, attacks.iterated_tgsm])
def test_an_attack_finds_the_same_through_the_guard(
    attack: Callable[..., attacks.AttackResult], small_digits: Dataset
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(400, 10))
    network.eval().requires_grad_(False)
    x = torch.from_numpy(to_float(small_digits.test_images[:12]))
    targets = (torch.from_numpy(small_digits.test_labels[:12]) + 1) % 10
    alone = attack(network, x, targets)
    through = attack(own_models.Guarded("mine", network, 10), x, targets)
    assert alone.success.any()
    assert torch.equal(alone.images, through.images)
    assert torch.equal(alone.iterations, through.iterations)


def test_the_guard_keeps_no_graph_that_was_used_up(small_digits: Dataset) -> None:
    """Else a large model would need twice the memory."""
    kept: list[weakref.ref[torch.Tensor]] = []

    class Noting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            between = x.flatten(1).exp()  # keeps its result for its gradient
            kept.append(weakref.ref(between))
            return between[:, :10]

    x = torch.from_numpy(to_float(small_digits.test_images[:3])).requires_grad_()
    logits = own_models.Guarded("mine", Noting(), 10)(x)
    torch.autograd.grad(logits.sum(), x, retain_graph=True)
    gc.collect()
    assert kept[0]() is not None
    torch.autograd.grad(logits.sum(), x)
    gc.collect()
    assert kept[0]() is None
    assert logits.grad_fn is not None


def test_weights_may_have_a_name_that_is_not_utf_8(weights: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"w\xff.safetensors")
    path.write_bytes(weights["safetensors"].read_bytes())
    assert own_models.load(f"mine=their_models:made,{path}", CPU).weights == r"w\udcff.safetensors"


def test_two_models_of_one_name_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = itertools.chain.from_iterable(["--model", "mine=their_models:made"] for _ in range(2))
    command = ["--images", str(folder), "--attack", "tgsm", "--out", str(tmp_path / "p"), *models]
    assert generate.main(command) == 2
    assert "--model mine: named twice" in capsys.readouterr().err


def test_a_data_set_and_a_folder_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generate.main(["--images", ".", "--dataset", "digits", "--attack", "jsma"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_networks_of_this_project_train_on_own_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 x 10 pixels cannot be pooled twice, which is said; 12 x 12 can."""
    command = [
        "--attack",
        "tgsm",
        "--checkpoints",
        str(tmp_path / "c"),
        "--model",
        "undefended",
        "--epochs",
        "60",
    ]
    assert generate.main(["--images", str(folder), "--out", str(tmp_path / "p"), *command]) == 2
    assert "multiple of 4 pixels high and wide, not 10 x 10" in capsys.readouterr().err

    larger = tmp_path / "larger"
    for path in folder.rglob("*.png"):
        for turn in range(4):  # more images, so that the test set has enough sources
            copy = larger / path.parent.name / f"{path.stem}-{turn}.png"
            copy.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.pad(np.asarray(Image.open(path)), 1)
            pixels[0, turn] = 40
            Image.fromarray(pixels).save(copy)
    assert generate.main(["--images", str(larger), "--out", str(tmp_path / "p"), *command]) == 0
    made = pack.read(tmp_path / "p")
    [record] = made.manifest["models"]
    assert record["training"]["dataset"] == "larger"
    assert record["clean_accuracy"] > 0.9
    assert made.manifest["dataset"]["source"] == "images of the folder larger"


def test_checking_a_model_does_not_change_it(small_digits: Dataset) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 10))
    model = own_models.OwnModel("mine", network.eval(), "a:b", None, None)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    answers = own_models.check(model, small_digits)
    assert answers.shape == (len(small_digits.test_labels), 10)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
