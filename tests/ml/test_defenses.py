"""The network and its objectives against PyTorch's own modules and plain double backprop."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml import defenses
from ml.models import LocalContrast, Network


def batch(n: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, 1, 12, 12), target probabilities (n, 10) and a dropout mask, in double precision."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(n, 1, 12, 12, generator=generator).double()
    targets = torch.rand(n, 10, generator=generator).double().softmax(1)
    keep = (torch.rand(n, 1024, generator=generator) < 0.5).double() * 2
    return x, targets, keep


class Dropout(nn.Module):
    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep


class Contrast(nn.Module):
    """Local contrast normalization by the batch's mean deviation, in front of the oracle's first layer."""

    def __init__(self, layer: LocalContrast) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.of_batch(x)[0]


def network_and_oracle(keep: Tensor, contrast_normalized: bool = False) -> tuple[Network, nn.Sequential]:
    """Our network, and the same one from PyTorch's layers in the order of the paper, with the same weights."""
    ours = Network((1, 12, 12), 10, contrast_normalized)
    ours.initialize(torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(11)
    for norm in (ours.norm1, ours.norm2, ours.norm3):
        # Of both signs, as max-pooling and a negative scale do not commute.
        nn.init.normal_(norm.weight, generator=generator)
        nn.init.normal_(norm.bias, generator=generator)
    oracle = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(576, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(), Dropout(keep), nn.Linear(1024, 10),
    )  # fmt: skip
    with torch.no_grad():
        for mine, theirs in zip(parameters(ours), oracle.parameters(), strict=True):
            theirs.copy_(mine)
    if ours.local_contrast is not None:
        oracle.insert(0, Contrast(ours.local_contrast))
    return ours.double(), oracle.double()


def parameters(network: Network) -> list[Tensor]:
    convolutions = (network.conv1, network.norm1, network.conv2, network.norm2)
    layers = (*convolutions, network.dense1, network.norm3, network.dense2)
    return [
        parameter for layer in layers for parameter in (layer.weight, layer.bias) if parameter is not None
    ]


def assert_same_gradients(loss: Tensor, network: Network, expected: Tensor, oracle: nn.Sequential) -> None:
    assert torch.allclose(loss, expected, rtol=1e-12)
    ours = torch.autograd.grad(loss, parameters(network))
    theirs = torch.autograd.grad(expected, list(oracle.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        assert torch.allclose(mine, other, rtol=1e-8, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_plain_training_is_that_of_the_same_network_from_pytorch_layers(temperature: float) -> None:
    x, targets, keep = batch()
    network, oracle = network_and_oracle(keep)
    loss, logits, _ = defenses.plain(network, x, targets, keep, temperature=temperature)
    expected = F.cross_entropy(oracle(x) / temperature, targets)
    assert torch.allclose(logits, oracle(x))
    assert_same_gradients(loss, network, expected, oracle)


def gradient_l2(loss: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    assert gradient.abs().max() > 0
    return gradient.square().sum() / 2


def entropy(logits: Tensor) -> Tensor:
    distribution = torch.distributions.Categorical(logits=logits)
    mean: Tensor = distribution.entropy().mean()  # type: ignore[no-untyped-call]
    return mean


# Each objective's settings, and what is to be the loss of a network of PyTorch's own layers on x.
Expected = Callable[[nn.Module, Tensor, Tensor], Tensor]


def uniform(penalty: float) -> Expected:
    def expected(oracle: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        logits = oracle(x)
        against_uniform = F.cross_entropy(logits, torch.full_like(targets, 0.1))
        return F.cross_entropy(logits, targets) + penalty * gradient_l2(against_uniform, x)

    return expected


def true_label(penalty: float, temperature: float = 1.0) -> Expected:
    def expected(oracle: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(oracle(x) / temperature, targets)
        return loss + penalty * gradient_l2(loss, x)

    return expected


def of_entropy(penalty: float) -> Expected:
    def expected(oracle: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        logits = oracle(x)
        return F.cross_entropy(logits, targets) + penalty * gradient_l2(entropy(logits), x)

    return expected


def adversarial(epsilon: float, penalty: float = 0.0) -> Expected:
    def expected(oracle: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        logits = oracle(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), x)
        examples = torch.clamp(x + epsilon * gradient.sign(), 0, 1).detach()
        clean = true_label(penalty)(oracle, x, targets) if penalty else F.cross_entropy(oracle(x), targets)
        return (clean + F.cross_entropy(oracle(examples), targets)) / 2

    return expected


PENALIZED: list[tuple[defenses.Objective, dict[str, float], Expected]] = [
    (defenses.uniform_gradient_penalty, {"penalty": 0.0}, uniform(0.0)),
    (defenses.uniform_gradient_penalty, {"penalty": 1000.0}, uniform(1000.0)),
    (defenses.double_backprop, {"penalty": 1000.0}, true_label(1000.0)),
    (defenses.double_backprop, {"penalty": 1e5, "temperature": 50.0}, true_label(1e5, 50.0)),
    (defenses.entropy_gradient_penalty, {"penalty": 1000.0}, of_entropy(1000.0)),
    (defenses.adversarial_training, {"epsilon": 0.3}, adversarial(0.3)),
    (defenses.adversarial_training, {"epsilon": 0.3, "penalty": 1000.0}, adversarial(0.3, 1000.0)),
]


@pytest.mark.parametrize(("objective", "settings", "expected"), PENALIZED)
@pytest.mark.parametrize("contrast_normalized", [False, True])
def test_an_objective_is_that_of_plain_double_backprop(
    objective: defenses.Objective, settings: dict[str, float], expected: Expected, contrast_normalized: bool
) -> None:
    x, targets, keep = batch()
    # Flat patches, as MNIST's background: all four pixels of a block are the maximum, and the first one counts.
    x[:, :, :6] = 0
    network, oracle = network_and_oracle(keep, contrast_normalized)
    loss, _, _ = objective(network, x, targets, keep, **settings)
    assert_same_gradients(loss, network, expected(oracle, x.clone().requires_grad_(), targets), oracle)


def test_every_objective_is_held_here_with_the_settings_that_models_have() -> None:
    held = {(objective, frozenset(settings)) for objective, settings, _ in PENALIZED}
    held |= {(defenses.plain, frozenset()), (defenses.plain, frozenset({"temperature"}))}
    used = {(d.objective, frozenset(d.settings_for("mnist"))) for d in defenses.DEFENSES.values()}
    assert used == held


def test_the_running_averages_are_those_of_pytorch_but_for_its_unbiased_variance() -> None:
    x, _, keep = batch()
    network, oracle = network_and_oracle(keep)
    oracle(x)
    _, statistics = network.on_batch(x, keep)
    network.update_averages(statistics)
    norms = [layer for layer in oracle if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)]
    for mine, theirs, n in zip(
        (network.norm1, network.norm2, network.norm3), norms, (2304, 576, 16), strict=True
    ):
        assert theirs.running_mean is not None
        assert theirs.running_var is not None
        assert torch.allclose(mine.running_mean, theirs.running_mean)
        assert torch.allclose((mine.running_var - 0.9) * n / (n - 1), theirs.running_var - 0.9)


def test_evaluation_uses_the_running_averages_and_no_dropout() -> None:
    x, _, keep = batch()
    network, oracle = network_and_oracle(torch.ones_like(keep))
    for _ in range(3):
        network.update_averages(network.on_batch(x, keep)[1])
    norms = [layer for layer in oracle if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)]
    for mine, theirs in zip((network.norm1, network.norm2, network.norm3), norms, strict=True):
        theirs.running_mean, theirs.running_var = mine.running_mean, mine.running_var
    oracle.eval()
    assert torch.allclose(network(x), oracle(x))
    assert torch.allclose(network(x[:1]), network(x)[:1])


def test_the_dropout_mask_keeps_half_and_the_mean() -> None:
    mask = Network().dropout_mask(200, torch.Generator().manual_seed(0))
    assert set(mask.unique().tolist()) == {0.0, 2.0}  # type: ignore[no-untyped-call]
    assert abs(float(mask.mean()) - 1) < 0.01


def test_images_that_cannot_be_pooled_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4 pixels high and wide, not 28 x 30"):
        Network((1, 28, 30))
