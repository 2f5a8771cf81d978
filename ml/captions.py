"""What each figure of the evaluation shows, and what the paper shows in its place, in our words.

What is said of the paper's figures is partly recalled; the page says so.
"""

from dataclasses import dataclass

from ml.measurements import OVERLAP_EPSILON
from ml.pictures import EPSILON, STEPS


@dataclass(frozen=True)
class Caption:
    """A figure's title, what it shows, what the published figure shows, and the claims' section it stands in."""

    section: str
    title: str
    shows: str
    published: str


# By the name of the figure's file, without its suffix, in the order of the page.
CAPTIONS: dict[str, Caption] = {
    "fgsm": Caption(
        "1",
        "Accuracy on FGSM examples",
        "One panel for each model that the examples are made for, a line for each model that judges them; "
        "accuracy means answering the true label. Bands are 95 % Wilson intervals over the test images.",
        "A row of such panels for each data set. Gradient-regularized models’ lines stay highest at high "
        "epsilon in the others’ panels; in the gradient-regularized panel all lines fall steeply. In the "
        "distilled panel all lines are nearly flat on MNIST and notMNIST, where FGSM leaves most images as "
        "they were.",
    ),
    "tgsm": Caption(
        "1",
        "Accuracy on TGSM examples, towards the label after the true one",
        "As before, with one step towards y + 1 instead of away from y; accuracy still means answering the "
        "true label.",
        "The same panels for TGSM. The distilled model’s examples fool the others again, since its "
        "gradients for other labels do not underflow, and its own line falls like the undefended model’s. "
        "Gradient-regularized models again resist the others’ examples best.",
    ),
    "overlap": Caption(
        "1",
        "Overlap of misclassified examples",
        f"For the FGSM examples at epsilon {OVERLAP_EPSILON} made for each model: of those that either of "
        "two models gets wrong, the share that both get wrong. report.json has the counts, and those of the "
        "paper’s diagrams.",
        "Venn diagrams for MNIST of which examples made for the undefended, the adversarially trained and "
        "the gradient-regularized model fool which of the three. The undefended model is fooled by examples "
        "of all; those of the adversarially trained model that fool the two defended ones overlap little; "
        "gradient-regularized examples fool all three.",
    ),
    "gradient-norms": Caption(
        "3",
        "Distributions of input-gradient norms",
        "The l2 norm of the gradient of each image’s cross-entropy, in the data set’s normalized units, in "
        "float32; norms below 1e-20 are shown there. Logarithmic scale; each histogram is as high as its "
        "fullest bin.",
        "Such distributions for each defense, on logarithmic scales. The distilled model’s norms lie at the "
        "floor for the true label and far above all others’ for the other labels; gradient-regularized "
        "models’ norms are of similar size for both.",
    ),
    "log-probabilities": Caption(
        "3",
        "Distributions of predicted log-probabilities",
        "Decimal logarithms of the softmax probabilities at temperature 1 of the test images’ labels. The "
        "scale is logarithmic beyond −0.1.",
        "Log-probabilities over all classes for each defense. The distilled model gives all classes but the "
        "predicted one extremely small probabilities, gradient-regularized models larger ones than the "
        "others do.",
    ),
    "jsma": Caption(
        "4",
        "JSMA on the first two labels",
        "The first test image of either label (blue frame), changed in at most a quarter of its pixels, two "
        "a step, until the model answers the column’s label. Orange frame: it does not.",
        "The same grids of MNIST 0s and 1s. For the distilled model scattered pixels are added; for the "
        "gradient-regularized model the changes complete the digit that the model then answers.",
    ),
    "input-gradients": Caption(
        "5",
        "Input gradients",
        "The gradient of the cross-entropy with respect to the pixels, each scaled by its own largest "
        "component: green pixels raise the loss when brightened, purple ones lower it. “0” is a gradient "
        "that is exactly zero.",
        "Input gradients of each defense for a few images. Those of undefended and distilled models look "
        "like noise, those of gradient-regularized models are smoother and follow the strokes.",
    ),
    "tgsm-grids": Caption(
        "6",
        "Iterated TGSM",
        f"The first test image of each label (rows) after {STEPS} steps of {EPSILON} towards each other "
        "label (columns). Blue frame: unmodified. Orange frame: the model does not answer the column’s label.",
        "A 10 × 10 grid for each model, as shown to the study’s participants: noise over the original for "
        "the undefended and the distilled model, shapes of the target for the gradient-regularized one.",
    ),
    "tgsm-path": Caption(
        "6",
        "Iterated TGSM, step by step",
        "The first test image of the first label on its way to the second. Below each picture stands the "
        "label that the model gives it, with a ✓ once it is the target.",
        "No figure of the paper shows the steps.",
    ),
    "tgsm-steps": Caption(
        "6",
        "Targets reached by iterated TGSM",
        "Over all pairs of the grids: the share that the model answers with the target after each step, "
        "with 95 % Wilson intervals.",
        "No figure of the paper shows the steps.",
    ),
    "cost": Caption(
        "7",
        "Cost of training",
        "Time of all trainings that a model takes, in trainings of the undefended model: medians over "
        "interleaved training steps with 95 % intervals. A distilled model takes two trainings.",
        "Given in the text: about twice for distillation, nearly three times for gradient penalties.",
    ),
}
