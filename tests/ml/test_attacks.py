"""The attacks against slow and obvious versions of themselves."""

import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ml import attacks

Gradients = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]


def brute_force(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], domain: npt.NDArray[np.bool_]
) -> float:
    """The best value over all pairs of one row, or minus infinity."""
    best = -np.inf
    for p, q in itertools.combinations(np.flatnonzero(domain), 2):
        alpha, beta = a[p] + a[q], b[p] + b[q]
        if alpha > 0 and beta > 0:
            best = max(best, alpha * beta)
    return best


def check_best_pair(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], domain: npt.NDArray[np.bool_]
) -> None:
    p, q, found = attacks.best_pair(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(domain))
    for row in range(len(a)):
        best = brute_force(a[row], b[row], domain[row])
        assert bool(found[row]) == (best > -np.inf)
        if found[row]:
            i, j = int(p[row]), int(q[row])
            assert i != j
            assert domain[row, i]
            assert domain[row, j]
            assert (a[row, i] + a[row, j]) * (b[row, i] + b[row, j]) == best


@st.composite
def gradients(draw: st.DrawFn) -> Gradients:
    """Three rows of gradients: either any numbers, or a few values so that ties and zeros are common."""
    shape = (3, draw(st.integers(2, 24)))
    numbers = draw(
        st.sampled_from(
            [st.floats(-100, 100, width=32), st.integers(-2, 2).map(float), st.sampled_from([0.0, 1.0])]
        )
    )
    a = draw(hnp.arrays(np.float64, shape, elements=numbers))
    b = draw(hnp.arrays(np.float64, shape, elements=numbers))
    return a, b, draw(hnp.arrays(np.bool_, shape))


@settings(max_examples=300, deadline=None)
@given(gradients())
@example((np.zeros((1, 5)), np.zeros((1, 5)), np.ones((1, 5), dtype=bool)))
@example((np.ones((1, 5)), np.arange(5.0)[None], np.ones((1, 5), dtype=bool)))
@example((np.ones((1, 2)), np.ones((1, 2)), np.array([[True, False]])))
def test_best_pair_is_the_one_that_exhaustive_search_finds(drawn: Gradients) -> None:
    check_best_pair(*drawn)


@pytest.mark.parametrize("correlation", [-0.99, -0.5, 0.0, 0.9])
def test_best_pair_at_the_size_of_mnist(correlation: float) -> None:
    generator = np.random.default_rng(7)
    a = generator.normal(size=(4, 784))
    b = correlation * a + np.sqrt(1 - correlation**2) * generator.normal(size=(4, 784))
    check_best_pair(a, b, generator.random((4, 784)) < 0.8)


def test_best_pair_keeps_to_its_memory_when_every_pixel_is_a_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attacks, "_TABLE", 1000)  # so that these rows are split
    rising = np.arange(60.0)[None].repeat(5, 0)
    check_best_pair(-rising, rising + 1, np.ones((5, 60), dtype=bool))
    check_best_pair(100 - rising, rising + 1, np.ones((5, 60), dtype=bool))


def small_model(seed: int, classes: int = 4) -> nn.Module:
    """Double precision, so that two ways to sum a gradient do not break near-ties differently."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, classes)).double()


def small_batch(n: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    images[images > 0.9] = 1  # some pixels start outside the search domain
    return images, torch.arange(n) % classes


def naive_jsma(
    model: nn.Module, image: Tensor, target: int, theta: float, gamma: float
) -> tuple[Tensor, int]:
    """One image after the text of Papernot et al.: the whole Jacobian, all pairs of pixels, one at a time."""
    x = image.clone()
    for step in range(int(x.numel() * gamma / 2)):
        logits = model(x[None])[0]
        if int(logits.argmax()) == target:
            return x, step
        jacobian: Tensor = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], x)  # type: ignore[no-untyped-call]
        jacobian = jacobian.flatten(1)
        others = jacobian.sum(0) - jacobian[target]
        flat = x.flatten()
        domain = [i for i in range(len(flat)) if (flat[i] < 1 if theta > 0 else flat[i] > 0)]
        best, chosen = 0.0, None
        for p, q in itertools.combinations(domain, 2):
            alpha = float(jacobian[target, p] + jacobian[target, q])
            beta = float(others[p] + others[q])
            if alpha > 0 and beta < 0 and -alpha * beta > best:
                best, chosen = -alpha * beta, (p, q)
        if chosen is None:
            return x, step
        for pixel in chosen:
            flat[pixel] = (flat[pixel] + theta).clamp(0, 1)
        x = flat.view_as(x)
    return x, int(x.numel() * gamma / 2)


@pytest.mark.parametrize(("theta", "gamma"), [(1.0, 0.25), (0.3, 0.6), (-1.0, 0.5)])
def test_jsma_makes_the_images_of_a_naive_jsma(
    theta: float, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "CHUNK", 5)
    model, (images, targets) = small_model(0), small_batch(12)
    result = attacks.jsma(model, images, targets, theta, gamma)
    for i in range(12):
        expected, steps = naive_jsma(model, images[i], int(targets[i]), theta, gamma)
        assert torch.equal(result.images[i], expected)
        assert int(result.iterations[i]) == steps
    assert len(set(result.iterations.tolist())) > 2, "pairs finish at different steps"
    assert torch.equal(result.predictions, model(result.images).argmax(1))
    assert torch.equal(result.success, result.predictions == targets)
    assert result.success.any()


def test_jsma_changes_at_most_gamma_of_the_pixels_and_reports_every_pair() -> None:
    model, (images, targets) = small_model(1), small_batch(40)
    finished: list[int] = []
    result = attacks.jsma(model, images, targets, gamma=0.2, on_progress=finished.append)
    changed = (result.images != images).flatten(1).sum(1)
    assert int(changed.max()) <= 0.2 * 36
    assert torch.equal(changed, 2 * result.iterations)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert sum(finished) == 40


def test_jsma_leaves_alone_what_is_the_target_already() -> None:
    model, (images, _) = small_model(2), small_batch(8)
    predictions = model(images).argmax(1)
    result = attacks.jsma(model, images, predictions)
    assert torch.equal(result.images, images)
    assert not result.iterations.any()
    assert result.success.all()


def test_jsma_stops_where_no_pixels_help() -> None:
    images, _ = small_batch(3)
    logits = torch.tensor([[1.0, 0.0]])
    result = attacks.jsma(
        lambda x: x.flatten(1).sum(1, keepdim=True) * 0 + logits, images, torch.ones(3).long()
    )
    assert torch.equal(result.images, images)
    assert not result.success.any()


def test_iterated_tgsm_follows_its_formula() -> None:
    model, (images, targets) = small_model(3), small_batch(6)
    result = attacks.iterated_tgsm(model, images, targets, steps=3, epsilon=0.05)
    for i in range(6):
        x = images[i : i + 1].clone()
        for _ in range(3):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), targets[i : i + 1]), x)
            x = (x.detach() - 0.05 * gradient.sign()).clamp(0, 1)
        assert torch.equal(result.images[i], x[0])
    before = F.cross_entropy(model(images), targets)
    assert F.cross_entropy(model(result.images), targets) < before
    assert result.iterations.tolist() == [3] * 6


def test_iterated_tgsm_reports_every_pair_once_its_chunk_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "CHUNK", 5)
    model, (images, targets) = small_model(3), small_batch(12)
    finished: list[int] = []
    attacks.iterated_tgsm(model, images, targets, steps=2, on_progress=finished.append)
    assert finished == [5, 5, 2]


def test_every_attack_of_packs_has_an_oracle_here() -> None:
    oracles = {
        attacks.jsma: test_jsma_makes_the_images_of_a_naive_jsma,
        attacks.iterated_tgsm: test_iterated_tgsm_follows_its_formula,
    }
    assert {function for function, _ in attacks.ATTACKS.values()} == set(oracles)


@pytest.mark.parametrize(
    ("images", "targets", "complaint"),
    [
        (torch.rand(2, 6, 6), torch.zeros(2).long(), "expected floating-point images"),
        (torch.ones(2, 1, 6, 6).long(), torch.zeros(2).long(), "expected floating-point images"),
        (torch.rand(2, 1, 6, 6), torch.zeros(3).long(), "expected int64 targets"),
        (torch.rand(2, 1, 6, 6), torch.zeros(2), "expected int64 targets"),
        (torch.rand(2, 1, 6, 6) + 1, torch.zeros(2).long(), r"pixels must be in \[0, 1\]"),
        (torch.full((2, 1, 6, 6), torch.nan), torch.zeros(2).long(), r"pixels must be in \[0, 1\]"),
    ],
)
def test_wrong_input_is_refused(images: Tensor, targets: Tensor, complaint: str) -> None:
    for attack in (attacks.jsma, attacks.iterated_tgsm):
        with pytest.raises(ValueError, match=complaint):
            attack(small_model(0), images, targets)


def test_parameters_outside_their_range_are_refused() -> None:
    images, targets = small_batch(2)
    with pytest.raises(ValueError, match="theta"):
        attacks.jsma(small_model(0), images, targets, theta=0)
    with pytest.raises(ValueError, match="gamma"):
        attacks.jsma(small_model(0), images, targets, gamma=1.5)
    with pytest.raises(ValueError, match="epsilon"):
        attacks.iterated_tgsm(small_model(0), images, targets, epsilon=-1)
