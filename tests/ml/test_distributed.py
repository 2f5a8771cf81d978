"""Several processes do what one does: training up to rounding, generation byte for byte."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ml import attacks, datasets, defenses, distributed, generate, models, train
from ml.checkpoints import Trained
from ml.datasets import Dataset
from ml.train import Schedule
from tests.ml.conftest import FEW, ROOT, save_dataset, saved_dataset

CPU = torch.device("cpu")
MODELS = ("undefended", "double_backprop")
ATTACKED = ("undefended", "distillation_teacher")  # which are soon trained

SCHEDULE = Schedule(epochs=2, batch=16)  # 12 steps: rounding grows with their number

# In each process: train from nothing into the folder "shared"; make a pack from the checkpoints in "for-pack".
WORK = """
import sys; from pathlib import Path
from ml import distributed
from tests.ml.test_distributed import CPU, one_pack, some_steps, trained
from tests.ml.conftest import saved_dataset
folder = Path(sys.argv[1])
with distributed.started():
    data = saved_dataset(folder / "data.npz")
    assert distributed.processes() == 2
    some_steps(data, folder / f"steps-{distributed.rank()}.pt")
    trained(data, folder / "shared")
    one_pack(data, folder / "for-pack", folder / "by-two" / "pack")
"""


def trained(data: Dataset, folder: Path) -> list[Trained]:
    part = dataclasses.replace(data, train_images=data.train_images[:96], train_labels=data.train_labels[:96])
    return [train.obtain(model, part, SCHEDULE, 3, CPU, folder) for model in MODELS]


def one_pack(data: Dataset, folder: Path, out: Path) -> None:
    """Attacked in so many chunks that each of two processes has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "CHUNK", 20)
        generate.generate(data, "jsma", out, 3, FEW, CPU, folder, ATTACKED)


def some_steps(data: Dataset, path: Path) -> None:
    """Losses, gradients and running averages of one step of each objective, in double precision, on a network with
    contrast normalization: what every process has in the end."""
    found = {}
    x = torch.from_numpy(datasets.to_float(data.train_images[:8])).double()
    targets = F.one_hot(torch.from_numpy(data.train_labels[:8]), 10).double()
    for name, defense in defenses.DEFENSES.items():
        network = models.Network((1, 12, 12), contrast_normalized=True)
        network.initialize(torch.Generator().manual_seed(0))
        network.double()
        network.low, network.high = -9.0, 9.0
        keep = network.dropout_mask(8, torch.Generator().manual_seed(1)).double()
        batch = [distributed.mine(part) for part in (network.normalize(x), targets, keep)]
        loss, _, statistics = defense.objective(network, *batch, **defense.settings_for("digits"))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        loss = loss.detach()
        distributed.add_up([loss, *gradients])
        network.update_averages(statistics)
        found[name] = [loss, *gradients, *network.averages]
    torch.save(found, path)


@pytest.fixture(scope="module")
def both(few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trained]]:
    """The folder after one process and after two, and what the one trained."""
    folder = tmp_path_factory.mktemp("distributed")
    save_dataset(few_digits, folder / "data.npz")
    data = saved_dataset(folder / "data.npz")
    alone = trained(data, folder / "trained")
    one_pack(data, folder / "for-pack", folder / "by-one" / "pack")
    some_steps(data, folder / "steps.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    (folder / "work.py").write_text(WORK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [*command, str(folder / "work.py"), str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, alone


def test_a_step_of_two_processes_is_that_of_one(both: tuple[Path, list[Trained]]) -> None:
    """Each has half the batch, yet statistics, penalty and gradients are those of the whole: equal to 1e-9."""
    folder, _ = both
    alone = torch.load(folder / "steps.pt")
    for rank in (0, 1):
        shared = torch.load(folder / f"steps-{rank}.pt")
        assert set(shared) == set(defenses.DEFENSES)
        for name, expected in alone.items():
            for mine, other in zip(shared[name], expected, strict=True):
                scale = float(other.abs().max())
                assert scale > 0, name
                assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9 * scale), name


def test_training_by_two_processes_is_that_of_one_up_to_rounding(
    both: tuple[Path, list[Trained]], few_digits: Dataset
) -> None:
    """After two epochs in single precision: weights within 5 % of their spread, the same reading of nearly all test
    images. (Adam turns the sign of a gradient that is nearly 0 into a whole step, so that rounding grows.)"""
    folder, alone = both
    for one, two in zip(alone, trained(saved_dataset(folder / "data.npz"), folder / "shared"), strict=True):
        assert two.checkpoint_sha256 != one.checkpoint_sha256, "the two processes trained nothing"
        for name, tensor in one.network.state_dict().items():
            difference = (two.network.state_dict()[name] - tensor).square().mean().sqrt()
            assert float(difference) < 0.05 * float(tensor.std()), name
        readings = [train.predict(each.network, few_digits.test_images).argmax(1) for each in (one, two)]
        assert float((readings[0] == readings[1]).double().mean()) > 0.99


def test_a_pack_by_two_processes_is_that_of_one_byte_for_byte(both: tuple[Path, list[Trained]]) -> None:
    folder, _ = both
    files = [path.relative_to(folder / "by-one") for path in (folder / "by-one").rglob("*.*")]
    assert len(files) > 100
    assert len(list((folder / "by-two").rglob("*.*"))) == len(files)
    for path in files:
        assert (folder / "by-two" / path).read_bytes() == (folder / "by-one" / path).read_bytes()


def test_a_batch_that_cannot_be_shared_equally_is_one_clear_line(
    few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml.distributed.processes", lambda: 3)
    config = train.configuration("undefended", few_digits, FEW, 3)
    targets = torch.zeros(len(few_digits.train_images), 6)
    with pytest.raises(train.TrainingError, match="a batch of 16 images cannot be shared by 3 processes"):
        train.fit(
            config, defenses.plain, few_digits.train_images, torch.zeros(9, dtype=torch.int64), targets, CPU
        )
