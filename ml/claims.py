"""The paper's claims, each judged by a criterion that was fixed here before any data were looked at.

A claim is a pure function from what was measured to a `Claim`. Models are compared image by image, so that an
interval is one of the mean difference over the same images; differences within MARGIN count as none, and only an
interval that lies wholly within it shows that. What an interval leaves open is undecided.

Here are the claims about accuracies (1, 2, 8, 9), in `gradient_claims` those about gradients, pictures and cost.

Ross and Doshi-Velez, "Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
Regularizing their Input Gradients", AAAI 2018.
"""

import itertools

from ml import gradient_claims, intervals
from ml.evidence import (
    FIVE,
    NAMES,
    OTHERS,
    PUBLISHED,
    PUBLISHED_CLEAN,
    PUBLISHED_IMAGES,
    REGULARIZED,
    Measured,
    decided,
    informing,
)
from ml.intervals import Estimate
from ml.measurements import SINGLE_STEPS
from ml.verdicts import Claim, above, below, within

MARGIN = 0.1  # of an accuracy: smaller differences count as none
CLEAN_MARGIN = 0.002
HIGH = 0.4  # epsilons from here on are high
LEAST = 0.1  # the lowest epsilon that attacks at all


def judge(measured: Measured) -> list[Claim]:
    """Every claim, in the paper's order; those about MNIST's published numbers only for MNIST."""
    found = [
        *(resists(measured, model) for model in REGULARIZED),
        *(fools_all(measured, model) for model in REGULARIZED),
        fools_nobody(measured),
        as_weak(measured),
        *gradient_claims.judge(measured),
        distilled_and_regularized(measured),
        entropy_penalty(measured),
        both_defenses(measured),
    ]
    if measured.dataset == "mnist":
        found += [clean_accuracy(measured), published_points(measured), published_shape(measured)]
    return sorted(found, key=lambda claim: claim.id)


def resists(measured: Measured, model: str) -> Claim:
    """1a, of one of REGULARIZED."""
    numbers = []
    for attack in SINGLE_STEPS:
        # What FGSM makes for the distilled network is hardly changed (2a): nothing that one could resist.
        makers = [maker for maker in OTHERS if (attack, maker) != ("fgsm", "distilled")]
        for other in OTHERS:
            neither = [maker for maker in makers if maker != other]
            lead = intervals.difference(
                measured.transfer.share(attack, neither, model, HIGH),
                measured.transfer.share(attack, neither, other, HIGH),
            )
            made = " and ".join(NAMES[maker] for maker in neither)
            what = f"{attack.upper()} examples made for {made}: accuracy above that of {NAMES[other]}"
            numbers.append(above(what, lead, 0.0, "points"))
    return decided(
        f"1a-{REGULARIZED[model]}",
        f"The others’ examples are resisted best at high epsilon: {NAMES[model]}",
        "On examples made for other models, gradient-regularized models keep the highest accuracy once "
        "epsilon is high.",
        f"At epsilon {HIGH} to 0.7 on average, under FGSM and under TGSM, the model is more accurate than "
        "each of the undefended, the distilled and the adversarially trained one: on examples made neither "
        "for the two compared nor for a gradient-regularized model. FGSM examples of the distilled model, "
        "which mostly are the images themselves, are left out.",
        numbers,
        ("fgsm", "tgsm"),
    )


def fools_all(measured: Measured, model: str) -> Claim:
    """1b, of one of REGULARIZED."""
    numbers = [
        below(
            f"{attack.upper()}: accuracy of {NAMES[evaluated]}",
            intervals.mean_share(measured.transfer.share(attack, [model], evaluated, HIGH)),
            0.5,
            "share",
        )
        for attack in SINGLE_STEPS
        for evaluated in FIVE
    ]
    return decided(
        f"1b-{REGULARIZED[model]}",
        f"Examples made for it fool every model: {NAMES[model]}",
        "Examples made for a gradient-regularized model fool all models, not only itself.",
        f"At epsilon {HIGH} to 0.7 on average, each of the five models is right on less than half of the "
        "examples, under FGSM and under TGSM.",
        numbers,
        ("fgsm", "tgsm", "overlap"),
    )


def fools_nobody(measured: Measured) -> Claim:
    """2b."""
    numbers = []
    for evaluated in FIVE:
        change = intervals.difference(
            measured.transfer.share("fgsm", ["distilled"], evaluated, HIGH),
            measured.transfer.share("fgsm", ["distilled"], evaluated, 0.0, 0.0),
        )
        numbers.append(within(f"Change of accuracy: {NAMES[evaluated]}", change, -MARGIN, MARGIN, "points"))
    return decided(
        "2b",
        "FGSM examples of the distilled model fool nobody",
        "As they mostly are the unmodified images, FGSM examples made for the distilled model fool no "
        "model. (The paper says so of MNIST and notMNIST, as we recall it.)",
        f"At epsilon {HIGH} to 0.7 on average, each of the five models is as accurate on them as on the "
        "unmodified images, within 10 points.",
        numbers,
        ("fgsm",),
    )


def as_weak(measured: Measured) -> Claim:
    """2d."""
    own = {model: measured.transfer.share("tgsm", [model], model, LEAST) for model in FIVE}
    lead = intervals.difference(own["distilled"], own["undefended"])
    numbers = [below("Own TGSM examples: distilled above undefended", lead, MARGIN, "points")]
    shares = {model: intervals.mean_share(values) for model, values in own.items()}
    numbers += informing("Accuracy on own TGSM examples", shares)
    return decided(
        "2d",
        "Under TGSM the distilled model is as weak as the undefended one",
        "Attacked by TGSM, distillation protects no more than no defense at all.",
        f"At epsilon {LEAST} to 0.7 on average, the distilled model is less than 10 points more accurate on "
        "its own TGSM examples than the undefended model is on its own. Being weaker agrees with the claim, "
        "too.",
        numbers,
        ("tgsm",),
    )


def distilled_and_regularized(measured: Measured) -> Claim:
    """8a."""
    return _alike(
        measured,
        "8a",
        "distilled_double_backprop",
        "double_backprop",
        "Regularizing on distilled probabilities is like double backprop, and not better",
        "Gradient regularization on distilled probabilities does what double backprop does, and no more.",
    )


def entropy_penalty(measured: Measured) -> Claim:
    """8b."""
    return _alike(
        measured,
        "8b",
        "entropy_regularized",
        "undefended",
        "A penalty on the entropy of the own predictions has no effect",
        "Penalizing the input gradient of the entropy of the model’s own predictions protects as little as "
        "nothing.",
    )


def both_defenses(measured: Measured) -> Claim:
    """8c."""
    model, title = "adversarial_double_backprop", "Adversarial training and double backprop add up"
    claim = (
        "Together the two resist attacks on the model itself and examples made for others better than either "
        "alone. (As we recall the paper, shown for SVHN.)"
    )
    criterion = (
        f"At epsilon {LEAST} to 0.7 on average, under FGSM and under TGSM, the model is more accurate than "
        "each of the two alone: each on examples made for itself, and both on those made for the undefended "
        "model."
    )
    if model not in measured.models:
        return _not_trained("8c", title, claim, criterion)
    numbers = [
        above(f"{what}: above {NAMES[other]}", lead, 0.0, "points")
        for other in ("adversarially_trained", "double_backprop")
        for what, lead in _leads(measured, model, other)
    ]
    return decided("8c", title, claim, criterion, numbers, ("fgsm", "tgsm"))


def clean_accuracy(measured: Measured) -> Claim:
    """9a, MNIST."""
    lowest, highest = PUBLISHED_CLEAN[0] - CLEAN_MARGIN, PUBLISHED_CLEAN[1] + CLEAN_MARGIN
    numbers = [
        within(f"Accuracy: {NAMES[model]}", intervals.share(measured.clean[model]), lowest, highest, "share")
        for model in FIVE
    ]
    return decided(
        "9a",
        "All models read unmodified MNIST digits with 99.2 to 99.4 % accuracy",
        "No defense costs accuracy on unmodified images: 99.2 to 99.4 % for all (after the long schedule).",
        "The interval of each of the five models, over all test images, lies within that range widened by "
        "0.2 points on either side.",
        numbers,
        ("fgsm",),
    )


def published_points(measured: Measured) -> Claim:
    """9b, MNIST."""
    numbers = []
    for (maker, evaluated), points in PUBLISHED.items():
        for epsilon, published in points.items():
            right = measured.transfer.answers("fgsm", maker, evaluated, epsilon)[:PUBLISHED_IMAGES]
            what = f"Accuracy at epsilon {epsilon} (published: {published:.0%}): {NAMES[evaluated]}"
            lowest, highest = published - MARGIN, min(published + MARGIN, 1.0)
            numbers.append(within(what, intervals.share(right), lowest, highest, "share"))
    return decided(
        "9b",
        "Accuracies on the undefended model’s FGSM examples are as published",
        "On MNIST, after the long schedule, on the first 256 test images, at epsilon 0.1, 0.2 and 0.3: "
        "undefended 73, 28 and 11 %, double backprop 98, 92 and 80 %.",
        "The interval of each accuracy, on the first 256 test images (or as many as were attacked), lies within "
        "10 points of the published one.",
        numbers,
        ("fgsm",),
    )


def published_shape(measured: Measured) -> Claim:
    """9c, MNIST."""
    numbers, epsilons = [], (0.1, 0.2, 0.3)
    right = {
        (model, epsilon): measured.transfer.answers("fgsm", "undefended", model, epsilon)
        for model in ("undefended", "double_backprop")
        for epsilon in epsilons
    }
    for epsilon in epsilons:
        lead = intervals.difference(right["double_backprop", epsilon], right["undefended", epsilon])
        numbers.append(above(f"Double backprop above undefended at epsilon {epsilon}", lead, 0.0, "points"))
    for model in ("undefended", "double_backprop"):
        for lower, higher in itertools.pairwise(epsilons):
            fall = intervals.difference(right[model, lower], right[model, higher])
            what = f"Fall from epsilon {lower} to {higher}: {NAMES[model]}"
            numbers.append(above(what, fall, 0.0, "points"))
    return decided(
        "9c",
        "The curves on the undefended model’s FGSM examples have the published shape",
        "Both curves fall as epsilon grows from 0.1 to 0.3, and double backprop stays above undefended.",
        "Each of these differences, paired over all images measured, is above zero.",
        numbers,
        ("fgsm",),
    )


def _alike(measured: Measured, id: str, model: str, other: str, title: str, claim: str) -> Claim:
    criterion = (
        f"At epsilon {LEAST} to 0.7 on average, under FGSM and under TGSM, its accuracy is that of the "
        f"{NAMES[other]} model, within 10 points: each on examples made for itself, and both on those made "
        "for the undefended model."
    )
    if model not in measured.models:
        return _not_trained(id, title, claim, criterion)
    numbers = [
        within(f"{what}: above {NAMES[other]}", lead, -MARGIN, MARGIN, "points")
        for what, lead in _leads(measured, model, other)
    ]
    return decided(id, title, claim, criterion, numbers, ("fgsm", "tgsm"))


def _not_trained(id: str, title: str, claim: str, criterion: str) -> Claim:
    reason = "Not trained in this run: --combinations trains the paper’s combinations."
    return Claim(id, title, claim, criterion, "undecided", (), (), reason)


def _leads(measured: Measured, model: str, other: str) -> list[tuple[str, Estimate]]:
    """By how much a model is more accurate than another, each attacked itself, and on undefended's examples."""
    share, found = measured.transfer.share, []
    for attack in SINGLE_STEPS:
        for what, mine, theirs in (
            ("own examples", model, other),
            ("examples made for undefended", "undefended", "undefended"),
        ):
            a, b = share(attack, [mine], model, LEAST), share(attack, [theirs], other, LEAST)
            found.append((f"{attack.upper()}, {what}", intervals.difference(a, b)))
    return found
