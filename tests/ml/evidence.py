"""Made-up measurements, in which everything that the paper claims holds unless a test says otherwise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ml.cost import Cost
from ml.defenses import COMBINATIONS
from ml.evidence import FIVE, REGULARIZED, Measured
from ml.measurements import EPSILONS, SINGLE_STEPS, Gradients, Transfer
from ml.pictures import Examples, Path

N = 400
ALL = (*FIVE, *COMBINATIONS)
ROBUST = (*REGULARIZED, "distilled_double_backprop", "adversarial_double_backprop")

Accuracy = Callable[[str, str, str, float], float]  # attack, made for, evaluated, epsilon


def as_published(attack: str, made_for: str, evaluated: str, epsilon: float) -> float:
    """Accuracies as the paper has them."""
    if epsilon == 0 or (attack, made_for) == ("fgsm", "distilled"):
        return 0.993
    both = 0.1 * (evaluated == "adversarial_double_backprop")
    if made_for in ROBUST:
        return max(0.95 - 2 * epsilon, 0.02) + both
    if evaluated in ROBUST:
        return {0.1: 0.98, 0.2: 0.92, 0.3: 0.80}.get(epsilon, 0.4) + both * (epsilon > 0.2)
    return {0.1: 0.73, 0.2: 0.28, 0.3: 0.11}.get(epsilon, 0.05)


@dataclass
class Story:
    """What is to be measured; `build` makes the measurements."""

    accuracy: Accuracy = as_published
    clean: Mapping[str, float] = field(default_factory=dict)  # 0.993 where it names no other
    # log10 of the norms' mean, by model, for the true label and the next; the spread is 0.5.
    norms: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "undefended": (-4.0, 1.0),
            "distilled": (-20.0, 2.5),
            "adversarially_trained": (-3.0, 1.0),
            "gradient_regularized": (-1.0, 0.0),
            "double_backprop": (-1.5, 0.2),
        }
    )
    vanished: dict[str, tuple[float, float]] = field(default_factory=lambda: {"distilled": (0.96, 0.0)})
    cost: Mapping[str, float] | None = field(
        default_factory=lambda: {"distilled": 1.0, "gradient_regularized": 2.8, "double_backprop": 2.8}
    )
    noise: float = 0.02  # relative, of the times
    models: tuple[str, ...] = FIVE
    dataset: str = "mnist"
    n: int = N

    def build(self) -> Measured:
        random = np.random.default_rng(0)
        count = len(self.models)
        # The images that a model finds easiest differ from model to model in part.
        common = random.random(self.n)
        ease = {m: np.argsort(np.argsort(common + 0.3 * random.random(self.n))) for m in self.models}
        correct = {a: np.zeros((count, len(EPSILONS), count, self.n), dtype=bool) for a in SINGLE_STEPS}
        for attack in SINGLE_STEPS:
            for made, made_for in enumerate(self.models):
                for level, epsilon in enumerate(EPSILONS):
                    for judge, evaluated in enumerate(self.models):
                        accuracy = self.accuracy(attack, made_for, evaluated, epsilon)
                        correct[attack][made, level, judge] = ease[evaluated] < round(accuracy * self.n)
        norms = {
            model: {
                label: np.maximum(10 ** random.normal(mean, 0.5, self.n), 1e-20)
                for label, mean in zip(("true", "next"), self.norms.get(model, (-2.0, 0.5)), strict=True)
            }
            for model in self.models
        }
        vanished = {
            model: {
                label: np.arange(self.n) < round(share * self.n)
                for label, share in zip(("true", "next"), self.vanished.get(model, (0.0, 0.0)), strict=True)
            }
            for model in self.models
        }
        return Measured(
            dataset=self.dataset,
            models=self.models,
            clean={m: np.arange(10_000) < round(10_000 * self.clean.get(m, 0.993)) for m in self.models},
            transfer=Transfer(self.models, EPSILONS, correct),
            gradients=Gradients(
                norms,
                vanished,
                {m: {label: np.full(self.n, 0.5) for label in ("true", "next")} for m in self.models},
                {m: np.log(np.full((self.n, 10), 0.1)) for m in self.models},
                {label: np.arange(self.n) % 10 for label in ("true", "next")},
            ),
            jsma={m: examples(0.9) for m in ("distilled", "gradient_regularized")},
            tgsm={m: Path((examples(0.0), examples(1.0)), np.ones((2, 90))) for m in self.models},
            cost=self._cost(random),
        )

    def _cost(self, random: np.random.Generator) -> Cost | None:
        if self.cost is None:
            return None
        names = (*self.models, "distillation_teacher")
        return Cost(
            256,
            True,
            {
                name: tuple(self.cost.get(name, 1.0) * (1 + self.noise * random.standard_normal(15)))
                for name in names
            },
            dict.fromkeys(names, 936),
        )


def examples(success: float) -> Examples:
    """The 90 pairs of a grid, of so much success."""
    pairs = np.array([(s, t) for s in range(10) for t in range(10) if s != t])
    originals = np.random.default_rng(0).random((90, 1, 4, 4), dtype=np.float32)
    reached = np.arange(90) < round(90 * success)
    return Examples(
        pairs[:, 0],
        pairs[:, 0],
        pairs[:, 1],
        originals,
        1 - originals,
        np.where(reached, pairs[:, 1], pairs[:, 0]),
    )
