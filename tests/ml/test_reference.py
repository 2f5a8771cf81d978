"""The paper's settings, copied from its text by hand: what a slip of a digit in the code would change unseen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ml import attacks, datasets, evidence, measurements, models, pairs, pictures, train
from ml.defenses import COMBINATIONS, DEFENSES, plain
from ml.models import Network
from ml.train import Schedule

Settings = dict[str, float]

TEMPERED = {"temperature": 50.0}

# Of each model, the settings on MNIST, SVHN and notMNIST, and its teacher. The paper has the first six; its
# combinations have the settings of what they combine.
PAPER: dict[str, tuple[Settings, Settings, Settings, str | None]] = {
    "undefended": ({}, {}, {}, None),
    "distillation_teacher": (TEMPERED, TEMPERED, TEMPERED, None),
    "distilled": (TEMPERED, TEMPERED, TEMPERED, "distillation_teacher"),
    "adversarially_trained": ({"epsilon": 0.3}, {"epsilon": 0.3}, {"epsilon": 0.3}, None),
    "gradient_regularized": ({"penalty": 1000}, {"penalty": 1000}, {"penalty": 178}, None),
    "double_backprop": ({"penalty": 56234}, {"penalty": 10000}, {"penalty": 562}, None),
    "distilled_double_backprop": (
        {"penalty": 56234, "temperature": 50},
        {"penalty": 10000, "temperature": 50},
        {"penalty": 562, "temperature": 50},
        "distillation_teacher",
    ),
    "entropy_regularized": ({"penalty": 1000}, {"penalty": 1000}, {"penalty": 178}, None),
    "adversarial_double_backprop": (
        {"epsilon": 0.3, "penalty": 56234},
        {"epsilon": 0.3, "penalty": 10000},
        {"epsilon": 0.3, "penalty": 562},
        None,
    ),
}


def test_every_model_has_the_paper_s_settings_on_each_data_set() -> None:
    found = {
        model: (*(defense.settings_for(name) for name in ("mnist", "svhn", "notmnist")), defense.teacher)
        for model, defense in DEFENSES.items()
    }
    assert found == PAPER
    assert {*evidence.FIVE, *COMBINATIONS, "distillation_teacher"} == set(PAPER)


@pytest.mark.parametrize("dataset", ["mnist", "svhn", "notmnist"])
def test_the_schedules_are_the_paper_s(dataset: str) -> None:
    study = Schedule(
        epochs=4, batch=256, learning_rate=0.001, adam_epsilon=1e-8, batches=None, precision=None
    )
    long = Schedule(
        epochs=None, batch=256, learning_rate=0.0002, adam_epsilon=0.0001, batches=15000, precision=None
    )
    assert {kind: train.schedule_for(dataset, kind) for kind in train.SCHEDULES} == {
        "study": study,
        "long": long,
    }
    assert long.steps(60_000) == 15000
    assert study.steps(60_000) == 4 * 234


def test_a_teacher_is_trained_for_10_000_batches_at_most(small_digits: datasets.Dataset) -> None:
    def batches(model: str, asked: int) -> int:
        schedule = replace(train.SCHEDULES["long"], batches=asked)
        found: int = train.configuration(model, small_digits, schedule, 0)["schedule"]["batches"]
        return found

    assert batches("distillation_teacher", 15000) == 10000
    assert batches("distillation_teacher", 9999) == 9999
    for model in set(PAPER) - {"distillation_teacher"}:
        assert batches(model, 15000) == 15000


def test_adam_has_the_rate_and_the_epsilon_of_the_schedule(
    small_digits: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Adam] = []

    class Recorded(torch.optim.Adam):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(torch.optim, "Adam", Recorded)
    images, labels = small_digits.train_images[:8], torch.from_numpy(small_digits.train_labels[:8])
    schedule = replace(train.SCHEDULES["long"], batches=1)
    config = train.configuration("undefended", small_digits, schedule, 0)
    train.fit(config, plain, images, labels, F.one_hot(labels, 10).float(), torch.device("cpu"))
    (adam,) = made
    assert (adam.defaults["lr"], adam.defaults["eps"]) == (0.0002, 0.0001)
    assert (adam.defaults["betas"], adam.defaults["weight_decay"]) == ((0.9, 0.999), 0)


def test_a_student_learns_the_probabilities_of_its_teacher_at_temperature_50(
    small_digits: datasets.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = replace(
        small_digits, train_images=small_digits.train_images[:8], train_labels=small_digits.train_labels[:8]
    )
    learned: dict[str, tuple[Tensor, Network]] = {}

    def fit(config: dict[str, Any], *arguments: Any) -> Network:
        network = Network((1, 12, 12))
        network.initialize(torch.Generator().manual_seed(len(learned)))
        network.dense2.weight.data *= 1000  # logits so far apart that the temperature matters
        learned[config["model"]] = (arguments[3], network)
        return network

    monkeypatch.setattr(train, "fit", fit)
    train.obtain("distilled", data, train.SCHEDULES["study"], 0, torch.device("cpu"), tmp_path)
    assert list(learned) == ["distillation_teacher", "distilled"]
    of_teacher, teacher = learned["distillation_teacher"]
    assert torch.equal(of_teacher, F.one_hot(torch.from_numpy(data.train_labels), 10).float())
    logits = teacher(torch.from_numpy(datasets.to_float(data.train_images))).detach()
    assert logits.std() > 20
    powers = (logits.double() / 50).exp()
    assert torch.allclose(learned["distilled"][0].double(), powers / powers.sum(1, keepdim=True), atol=1e-6)


def test_attacks_have_the_paper_s_parameters() -> None:
    assert set(attacks.ATTACKS) == {"jsma", "tgsm"}
    assert attacks.ATTACKS["jsma"] == (attacks.jsma, {"theta": 1, "gamma": 0.25})
    assert attacks.ATTACKS["tgsm"] == (attacks.iterated_tgsm, {"steps": 10, "epsilon": 0.1})
    assert pairs.SOURCES == pictures.JSMA_SOURCES == 5
    assert (pictures.STEPS, pictures.EPSILON) == (10, 0.1)
    assert measurements.EPSILONS == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert measurements.FLOOR == 1e-20


@pytest.mark.parametrize(("side", "places"), [(28, 7 * 7), (32, 8 * 8)])
def test_the_network_has_the_paper_s_layers(side: int, places: int) -> None:
    network = Network((1, side, side), 10, contrast_normalized=side == 32)
    assert {name: tuple(parameter.shape) for name, parameter in network.named_parameters()} == {
        "conv1.weight": (32, 1, 5, 5),
        "norm1.weight": (32,),
        "norm1.bias": (32,),
        "conv2.weight": (64, 32, 5, 5),
        "norm2.weight": (64,),
        "norm2.bias": (64,),
        "dense1.weight": (1024, 64 * places),
        "norm3.weight": (1024,),
        "norm3.bias": (1024,),
        "dense2.weight": (10, 1024),
        "dense2.bias": (10,),
    }
    assert (models.MOMENTUM, models.DROPOUT) == (0.9, 0.5)


def test_the_published_points_are_the_paper_s() -> None:
    assert evidence.PUBLISHED == {
        ("undefended", "undefended"): {0.1: 0.73, 0.2: 0.28, 0.3: 0.11},
        ("undefended", "double_backprop"): {0.1: 0.98, 0.2: 0.92, 0.3: 0.80},
    }
    assert (evidence.PUBLISHED_IMAGES, evidence.PUBLISHED_CLEAN) == (256, (0.992, 0.994))
