"""The paper's claims about gradients (2, 3), pictures (4, 5, 6) and cost (7), judged as `claims` says."""

import numpy as np

from ml import intervals
from ml.evidence import FIVE, NAMES, REGULARIZED, Measured, decided, informing
from ml.intervals import Estimate
from ml.measurements import LABELS, Floats
from ml.pictures import Examples
from ml.verdicts import Claim, Number, above, below, within

MAGNITUDE = 10.0  # "by orders of magnitude": so many times or more
OFTEN, HARDLY_EVER = 0.5, 0.05  # shares of images
ABOUT_TWICE, NEARLY_THREE_TIMES = (1.5, 2.5), (2.5, 3.0)

PEOPLE = (
    "People decide this, not a measurement. This repository’s human-subject studies ask them about JSMA examples "
    "of MNIST and iterated-TGSM examples of SVHN, and not about others or about gradients. The numbers only "
    "describe the pictures."
)


def judge(measured: Measured) -> list[Claim]:
    """Every claim of this module."""
    return [
        fgsm_vanishes(measured),
        tgsm_does_not_vanish(measured),
        true_gradients_vanish(measured),
        other_gradients_explode(measured),
        *(controlled(measured, model) for model in REGULARIZED),
        jsma_pictures(measured),
        gradient_pictures(measured),
        tgsm_pictures(measured),
        distillation_cost(measured),
        *(penalty_cost(measured, model) for model in REGULARIZED),
    ]


def fgsm_vanishes(measured: Measured) -> Claim:
    """2a."""
    shares = {model: intervals.share(of["true"]) for model, of in measured.gradients.vanished.items()}
    numbers = [above("FGSM changes nothing: distilled", shares["distilled"], OFTEN, "share")]
    numbers += informing("FGSM changes nothing", shares, but="distilled")
    return decided(
        "2a",
        "FGSM on the distilled model often leaves the image as it was",
        "The distilled model’s gradient for the true label underflows, so that FGSM often changes nothing.",
        "In float32, every component of the gradient is exactly zero for more than half of the images.",
        numbers,
        ("gradient-norms",),
    )


def tgsm_does_not_vanish(measured: Measured) -> Claim:
    """2c."""
    shares = {model: intervals.share(of["next"]) for model, of in measured.gradients.vanished.items()}
    numbers = [below("TGSM changes nothing: distilled", shares["distilled"], HARDLY_EVER, "share")]
    numbers += informing("TGSM changes nothing", shares, but="distilled")
    return decided(
        "2c",
        "TGSM on the distilled model does not vanish",
        "The gradient for another label than the true one does not underflow, but explodes (3b): TGSM works.",
        "In float32, every component of the gradient for label y + 1 is exactly zero for less than 5 % of "
        "the images.",
        numbers,
        ("gradient-norms",),
    )


def true_gradients_vanish(measured: Measured) -> Claim:
    """3a."""
    numbers = [
        below(
            f"Norm for the true label: distilled over {NAMES[other]}",
            _ratio(measured, "distilled", other, "true"),
            1 / MAGNITUDE,
            "factor",
        )
        for other in FIVE
        if other != "distilled"
    ]
    return decided(
        "3a",
        "The distilled model’s gradients vanish for the true label",
        "For the true label, the distilled model’s input gradients are smaller by orders of magnitude.",
        "The geometric mean over images of the ratio of l2 norms (none below 1e-20) is less than a tenth, "
        "in relation to each of the other models.",
        numbers,
        ("gradient-norms", "log-probabilities"),
    )


def other_gradients_explode(measured: Measured) -> Claim:
    """3b."""
    numbers = [
        above(
            f"Norm for label y + 1: distilled over {NAMES[other]}",
            _ratio(measured, "distilled", other, "next"),
            MAGNITUDE,
            "factor",
        )
        for other in FIVE
        if other != "distilled"
    ]
    return decided(
        "3b",
        "The distilled model’s gradients for other labels are the largest by orders of magnitude",
        "For labels other than the true one, the distilled model’s input gradients are larger by orders of "
        "magnitude.",
        "The geometric mean over images of the ratio of l2 norms for label y + 1 is more than ten, in "
        "relation to each of the other models.",
        numbers,
        ("gradient-norms", "log-probabilities"),
    )


def controlled(measured: Measured, model: str) -> Claim:
    """3c, of one of REGULARIZED."""
    logs = {
        name: {label: np.log10(norms) for label, norms in of.items()}
        for name, of in measured.gradients.norms.items()
    }
    gap = {name: of["next"] - of["true"] for name, of in logs.items()}
    narrower = _factor(intervals.mean(gap[model] - gap["undefended"]))
    numbers = [below("Norm for y + 1 over that for the true label: over undefended", narrower, 1.0, "factor")]
    numbers += [
        below(f"Norm for y + 1: over {NAMES[other]}", _ratio(measured, model, other, "next"), 1.0, "factor")
        for other in ("undefended", "distilled")
    ]
    return decided(
        f"3c-{REGULARIZED[model]}",
        f"Gradients stay controlled: {NAMES[model]}",
        "A gradient-regularized model’s gradients are of similar size for the true label and for others, "
        "and not large.",
        "Geometric means over images: the norm for y + 1, divided by that for the true label, is smaller "
        "than the undefended model’s; and the norm for y + 1 is smaller than the undefended and the "
        "distilled model’s.",
        numbers,
        ("gradient-norms", "log-probabilities"),
    )


def jsma_pictures(measured: Measured) -> Claim:
    """4."""
    numbers = []
    for model, made in measured.jsma.items():
        numbers += _about(NAMES[model], made)
        changed = made.pixels_changed[made.success]
        if len(changed) > 1:
            what = f"Pixels changed where the target is reached: {NAMES[model]}"
            numbers.append(Number(what, intervals.mean(changed), "number"))
    return _for_people(
        "4",
        "JSMA examples of the gradient-regularized model look like the label that it gives",
        "0s and 1s that JSMA changes until the network answers another digit look like noise where the "
        "network is distilled, and like that digit where it is gradient-regularized.",
        numbers,
        ("jsma",),
    )


def gradient_pictures(measured: Measured) -> Claim:
    """5."""
    numbers = []
    for label, name in zip(LABELS, ("the true label", "label y + 1"), strict=True):
        for model in measured.models:
            values = measured.gradients.smoothness[model][label]
            known = values[~np.isnan(values)]
            if len(known) > 1:
                what = f"Smoothness of gradients for {name}: {NAMES[model]}"
                numbers.append(Number(what, intervals.mean(known), "number"))
    return _for_people(
        "5",
        "Input gradients of gradient-regularized models can be read",
        "Pictures of their input gradients are smoother, and show where strokes are or would have to be. "
        "(Smoothness below is a measure of our own, the spatial autocorrelation at lag 1: 1 is smooth, 0 is "
        "noise.)",
        numbers,
        ("input-gradients",),
    )


def tgsm_pictures(measured: Measured) -> Claim:
    """6."""
    numbers = [n for model, path in measured.tgsm.items() for n in _about(NAMES[model], path.last)]
    return _for_people(
        "6",
        "Iterated-TGSM examples of gradient-regularized models look like their target",
        "The grid of examples made for a gradient-regularized model shows the labels aimed at; the others’ "
        "grids show noise over the original.",
        numbers,
        ("tgsm-grids", "tgsm-path", "tgsm-steps"),
    )


def distillation_cost(measured: Measured) -> Claim:
    """7a."""
    title = "Distillation costs about twice as much to train"
    return _cost(measured, "distilled", "7a", title, "about twice", ABOUT_TWICE)


def penalty_cost(measured: Measured, model: str) -> Claim:
    """7b, of one of REGULARIZED."""
    title = f"Gradient penalties cost nearly three times as much to train: {NAMES[model]}"
    return _cost(measured, model, f"7b-{REGULARIZED[model]}", title, "nearly three times", NEARLY_THREE_TIMES)


def _cost(
    measured: Measured, model: str, id: str, title: str, words: str, wanted: tuple[float, float]
) -> Claim:
    claim = f"Training takes {words} as long as that of the undefended model."
    criterion = (
        "The interval of the median, over interleaved training steps, of the time that all trainings of the "
        f"model take, in undefended ones, lies between {wanted[0]:g} and {wanted[1]:g}. Distillation is two "
        "trainings. This is a claim about a program: where it fails because ours costs less, that is no "
        "fault."
    )
    if measured.cost is None:
        reason = "Not measured in this run: --cost-repetitions was 0."
        return Claim(id, title, claim, criterion, "undecided", (), (), reason)
    number = within(f"Cost: {NAMES[model]}", measured.cost.ratio(model), *wanted, "factor")
    return decided(id, title, claim, criterion, [number], ("cost",))


def _for_people(id: str, title: str, claim: str, numbers: list[Number], figures: tuple[str, ...]) -> Claim:
    criterion = "None that a program could apply."
    return Claim(id, title, claim, criterion, "undecided", tuple(numbers), figures, PEOPLE)


def _about(name: str, made: Examples) -> list[Number]:
    """Success and distance of an attack's examples."""
    return [
        Number(f"Target reached: {name}", intervals.share(made.success), "share"),
        Number(f"l2 distance from the original: {name}", intervals.mean(made.l2), "number"),
    ]


def _ratio(measured: Measured, model: str, other: str, label: str) -> Estimate:
    """The geometric mean over images of the ratio of two models' gradient norms."""

    def logs(name: str) -> Floats:
        return np.log10(measured.gradients.norms[name][label])

    return _factor(intervals.mean(logs(model) - logs(other)))


def _factor(log10: Estimate) -> Estimate:
    return Estimate(10.0**log10.value, 10.0**log10.low, 10.0**log10.high, log10.n)
