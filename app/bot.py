"""The bot: a pretended participant who is shown pages and answers them, knowing what hides behind each image.

It knows nothing of HTTP: `app.simulate` plays it over the API, and a test may play the same bot in a browser.

    playing = bot(first_page, pack, rates, rng)
    answer = next(playing)
    while not isinstance(answer, Remark):
        answer = playing.send(the page that came after that answer)
"""

import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal

from app.models import NONE_PLAUSIBLE
from ml.pack import Pack

# The paper's table for MNIST (REFERENCE.md): human fooled, mistake reasonable.
PAPER_FOOLED = {"undefended": 0.02, "distilled": 0.0, "gradient_regularized": 0.164}
PAPER_REASONABLE = {"undefended": 0.26, "distilled": 0.235, "gradient_regularized": 0.418}
NONE_SHARE = 0.15  # of the reasonable answers that name another label first: how many say "none is plausible"


@dataclass(frozen=True)
class Rates:
    """For each model the probability that a participant is fooled, and that the mistake is reasonable."""

    fooled: Mapping[str, float]
    reasonable: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, rates in (("fooled", self.fooled), ("reasonable", self.reasonable)):
            for model, rate in rates.items():
                if not 0 <= rate <= 1:
                    raise ValueError(f"--{name} {model}={rate}: a rate lies between 0 and 1")
        for model, fooled in self.fooled.items():
            if fooled > self.reasonable.get(model, 0):
                raise ValueError(
                    f"{model}: fooled {fooled} is more than reasonable {self.reasonable.get(model, 0)}, "
                    "but every fooled answer is a reasonable one"
                )


@dataclass(frozen=True)
class Page:
    """What a participant has before them; the page of comments shows no image."""

    state: Literal["labelling", "judging", "commenting"]
    labels: tuple[str, ...]
    questions: tuple[str, ...]  # the study's, in order: "label", "runner_up", "plausibility"
    position: int = 0
    image: str = ""  # the sha256 that names the image
    prediction: str | None = None  # the network's answer; None before it may be known
    practice: bool = False


@dataclass(frozen=True)
class Labels:
    """The answer in labelling; `runner_up` is None where the study does not ask for it."""

    label: str
    runner_up: str | None
    rt_ms: float


@dataclass(frozen=True)
class Verdict:
    """The answer in judging."""

    plausible: bool
    rt_ms: float


@dataclass(frozen=True)
class Remark:
    """The free text of the last page; the session ends with it."""

    text: str


Answer = Labels | Verdict | Remark
Bot = Generator[Answer, Page, None]


def bot(page: Page, pack: Pack, rates: Rates, rng: random.Random, remark: str = "") -> Bot:
    """One participant, from their first page on: yields the answer to a page, is sent the page after it.

    The first page is the argument; the last answer is a Remark. What hides behind an image is looked up in the pack
    by the image's hash: a stimulus is answered at its model's rates, an unmodified image with its own label, an
    image that the pack does not know with any.
    """
    hidden = {stimulus.sha256: stimulus for stimulus in pack.stimuli}
    unmodified = {image.sha256: image.source_label for image in (*pack.originals, *pack.clean)}
    reasonable: dict[int, bool] = {}
    while page.state != "commenting":
        stimulus = hidden.get(page.image)
        if page.state == "judging":
            page = yield Verdict(reasonable.get(page.position, False), _rt_ms(rng))
            continue
        source = stimulus.source_label if stimulus else unmodified.get(page.image) or rng.choice(page.labels)
        target, model = (stimulus.target_label, stimulus.model) if stimulus else (None, "")
        asked = "runner_up" in page.questions
        label, runner_up = _labels(source, target, page.labels, model, rates, asked, rng)
        reasonable[page.position] = target in (label, runner_up) or label == NONE_PLAUSIBLE
        page = yield Labels(label, runner_up if asked else None, _rt_ms(rng))
    yield Remark(remark)


def _rt_ms(rng: random.Random) -> float:
    return round(rng.lognormvariate(7.6, 0.4), 1)


def _labels(
    source: str,
    target: str | None,
    labels: tuple[str, ...],
    model: str,
    rates: Rates,
    asks_runner_up: bool,
    rng: random.Random,
) -> tuple[str, str]:
    """(label, runner_up) such that the model's two rates come out in expectation."""
    fooled, reasonable = rates.fooled.get(model, 0.0), rates.reasonable.get(model, 0.0)
    other = rng.choice([label for label in labels if label not in (source, target)] or [NONE_PLAUSIBLE])
    draw = rng.random()
    if target is None or draw >= reasonable:
        return source, other
    if draw < fooled:
        return target, source
    if rng.random() < NONE_SHARE or not asks_runner_up:  # without a second label only "none" is left
        return NONE_PLAUSIBLE, NONE_PLAUSIBLE
    return source, target
