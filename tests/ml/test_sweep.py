"""The penalty is chosen on training images alone, by the rule that the sweep states."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ml import attacks, sweep, train
from ml.datasets import Dataset, to_float
from ml.train import Schedule

CPU = torch.device("cpu")


def row(penalty: float, clean: float, *transferred: float) -> sweep.Row:
    by_epsilon = dict(zip(("0.1", "0.2", "0.3"), transferred, strict=True))
    return sweep.Row(penalty, clean, by_epsilon, by_epsilon)


def test_the_penalties_are_the_paper_s() -> None:
    values = sweep.penalties("double_backprop")
    assert len(values) == 13
    assert values[0] == 100
    assert values[-1] == 100_000
    assert 10_000 in values
    assert 56_230 in values  # the paper's choice for MNIST, 56234 to four digits
    assert 562.3 in values  # and for notMNIST
    ratios = np.divide(values[1:], values[:-1])
    assert np.allclose(ratios, 10**0.25, rtol=1e-3)
    assert {1000.0, 177.8} <= set(sweep.penalties("gradient_regularized"))  # MNIST and SVHN; notMNIST


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([row(1, 0.99, 0.5, 0.5, 0.5), row(10, 0.98, 0.9, 0.6, 0.3)], 10),  # 0.6 above 0.5
        ([row(1, 0.99, 0.5, 0.5, 0.5), row(10, 0.96, 0.9, 0.9, 0.9)], 1),  # too much lost
        ([row(10, 0.99, 0.5, 0.5, 0.5), row(1, 0.97, 0.5, 0.5, 0.5)], 1),  # equal: the smaller
        ([row(3, 0.2, 0.1, 0.1, 0.1)], 3),
    ],
)
def test_the_most_robust_that_still_reads_well_is_chosen(rows: list[sweep.Row], chosen: float) -> None:
    found = sweep.Sweep("double_backprop", 10, row(0, 0.99, 0.1, 0.1, 0.1), tuple(rows))
    assert found.chosen == chosen
    assert found.as_json()["chosen"] == chosen


def test_a_sweep_measures_each_penalty_on_held_out_training_images(
    few_digits: Dataset, tmp_path: Path
) -> None:
    fewer = dataclasses.replace(
        few_digits, train_images=few_digits.train_images[:320], train_labels=few_digits.train_labels[:320]
    )
    # Test images that would break everything, were they looked at.
    blind = dataclasses.replace(fewer, test_images=fewer.test_images[:0], test_labels=np.zeros(0, np.int64))
    schedule = Schedule(epochs=2, batch=16)
    found = sweep.sweep("double_backprop", blind, schedule, 3, CPU, tmp_path, values=(1.0, 1e7))
    data = sweep.split(fewer)
    assert found.validation_images == len(data.test_images) == -(-len(fewer.train_images) // 10)
    assert len(data.train_images) + len(data.test_images) == len(fewer.train_images)
    assert found.undefended.transferred == found.undefended.own
    weak, strong = found.rows
    assert (weak.penalty, strong.penalty) == (1.0, 1e7)
    assert weak.own != strong.own, "the penalty made no difference"

    # The numbers of one row, one image after the other.

    undefended = train.obtain("undefended", data, schedule, 3, CPU, tmp_path).network
    judged = train.obtain("double_backprop", data, schedule, 3, CPU, tmp_path, {"penalty": 1.0}).network
    right = 0
    for image, label in zip(to_float(data.test_images), data.test_labels, strict=True):
        x, y = torch.from_numpy(image)[None], torch.tensor([label])
        right += int(judged(attacks.stepped(x, attacks.loss_gradient(undefended, x, y), 0.2)).argmax(1) == y)
    assert weak.transferred["0.2"] == pytest.approx(right / len(data.test_labels), abs=1e-6)
