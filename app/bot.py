"""The bot: a pretended participant who is shown pages and answers them, knowing what hides behind each image.

It knows nothing of HTTP: `app.simulate` plays it over the API, and a test may play the same bot in a browser.

    playing = bot(first_page, pack, rates, rng)
    answer = next(playing)
    while not isinstance(answer, Remark):
        answer = playing.send(the page that came after that answer)
"""

import math
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import scipy

from app.models import NONE_PLAUSIBLE
from app.population import NO_SPREAD, Spread, intercept
from ml.pack import Pack, Stimulus

# The paper's table for MNIST (REFERENCE.md): human fooled, mistake reasonable.
PAPER_FOOLED = {"undefended": 0.02, "distilled": 0.0, "gradient_regularized": 0.164}
PAPER_REASONABLE = {"undefended": 0.26, "distilled": 0.235, "gradient_regularized": 0.418}
NONE_SHARE = 0.15  # of the reasonable answers that name another label first: how many say "none is plausible"

RT_MEDIAN_MS = 2500.0  # of labelling an image, over participants and images
JUDGING_PACE = 0.6  # a verdict is one answer, a label two
PERSON_SD, TRIAL_SD = 0.3, 0.4  # of the logarithm of a response time: between participants, and within one
PRACTICE = 0.15  # the n-th answer takes n ** -PRACTICE as long as the first: the power law of practice
TYPICAL = 12  # the answer that takes the participant's median: the geometric mean of 1 to 30
TOO_FAST_MS = 200.0  # the median of those who are too fast to have looked

Kind = Literal["attentive", "one key", "random keys", "too fast"]
BAD: tuple[Kind, ...] = ("one key", "random keys", "too fast")


@dataclass(frozen=True)
class Rates:
    """For each model the probability that a participant is fooled, and that the mistake is reasonable.

    A pack's own rate for a model goes by the name "pack/model", and before the one for all packs.
    With a spread these are the averages over participants and images, who differ on the logit scale (as in
    `app.population`): whoever, or whatever, is easier to fool makes more mistakes look reasonable, too.
    `seed` is that of the images' effects, which all participants share.
    """

    fooled: Mapping[str, float]
    reasonable: Mapping[str, float]
    spread: Spread = NO_SPREAD
    seed: int = 0

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

    def chances(self, person: int, pack: str, stimulus: Stimulus) -> tuple[float, float]:
        """That this person is fooled by this image, and finds its mistake reasonable: at least as likely."""
        model, spread = stimulus.model, self.spread
        image = (self.seed, pack, stimulus.source_index)
        effect = (
            _effect(spread.participant, person)
            + _effect(spread.participant_model, person, model)
            + _effect(spread.image, *image)
            + _effect(spread.image_model, *image, model)
            + _effect(spread.pair, *image, "to", stimulus.target_label)
            + _effect(spread.pair_model, *image, "to", stimulus.target_label, model)
        )
        fooled, reasonable = (
            float(
                scipy.special.expit(
                    _base(rates.get(f"{pack}/{model}", rates.get(model, 0.0)), spread.total) + effect
                )
            )
            for rates in (self.fooled, self.reasonable)
        )
        return fooled, reasonable


@lru_cache(maxsize=64)
def _base(rate: float, sd: float) -> float:
    return intercept(rate, sd)


def _effect(sd: float, *names: object) -> float:
    """A normal effect, in logits, that the names alone decide."""
    return random.Random("/".join(map(str, names))).gauss(0, sd) if sd else 0.0


@dataclass(frozen=True)
class Habits:
    """How one pretended participant goes about it, whatever they think of the images."""

    kind: Kind = "attentive"
    rt_median_ms: float = RT_MEDIAN_MS  # this participant's, for labels
    leaves_at: float | None = None  # the share of the session, in [0, 1), after which they are gone

    def rt_ms(self, judging: bool, n: int, rng: random.Random) -> float:
        """A response time for the n-th answer, from 1, of labelling or of judging."""
        median = self.rt_median_ms * (JUDGING_PACE if judging else 1) * (n / TYPICAL) ** -PRACTICE
        if self.kind == "too fast":
            median = TOO_FAST_MS
        return round(rng.lognormvariate(math.log(median), TRIAL_SD), 1)


ATTENTIVE = Habits()


@dataclass(frozen=True)
class Crowd:
    """Who comes: the share that leaves midway, the share that is bad (each kind alike), and how fast they are."""

    dropout: float = 0.0
    bad: float = 0.0
    rt_median_ms: float = RT_MEDIAN_MS

    def __post_init__(self) -> None:
        for name, share in (("dropout", self.dropout), ("bad", self.bad)):
            if not 0 <= share <= 1:
                raise ValueError(f"--{name} {share}: a share lies between 0 and 1")
        if not 100 <= self.rt_median_ms <= 60_000:
            raise ValueError(f"--rt-median-ms {self.rt_median_ms:g}: it lies between 100 and 60000")

    def draw(self, rng: random.Random) -> Habits:
        """One of them. The same numbers are drawn in every crowd, so that one share leaves the others' people."""
        bad, kind, leaves, place, pace = (
            rng.random(),
            rng.choice(BAD),
            rng.random(),
            rng.random(),
            rng.gauss(),
        )
        return Habits(
            kind if bad < self.bad else "attentive",
            self.rt_median_ms * math.exp(PERSON_SD * pace),
            place if leaves < self.dropout else None,
        )


_SHEETS = (
    "Sheet {} looked the least noisy to me",
    "On sheet {} some digits really could be two things",
    "I would keep sheet {}",
    "Sheet {} was the hardest to read",
    "In sheet {} the strokes themselves seem changed",
    "Hardly a difference between sheet {} and the others",
)
_IMPRESSIONS = (
    "the specks do not bother me",
    "4 and 9 were the closest",
    "it got easier with time",
    "the small images are tiring",
    "a few answers of the computer made sense",
    "most mistakes seem silly",
    "I guessed now and then",
)


def draw_remark(rng: random.Random) -> str:
    """A remark that says that it is simulated; every fourth participant leaves none."""
    sheet, impression = rng.choice(_SHEETS).format(rng.choice("ABC")), rng.choice(_IMPRESSIONS)
    return f"Simulated: {sheet}; {impression}." if rng.random() < 0.75 else ""


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


def bot(
    page: Page,
    packs: Pack | Sequence[Pack],
    rates: Rates,
    rng: random.Random,
    remark: str = "",
    habits: Habits = ATTENTIVE,
) -> Bot:
    """One participant, from their first page on: yields the answer to a page, is sent the page after it.

    The first page is the argument; the last answer is a Remark. What hides behind an image is looked up in the
    packs by the image's hash: a stimulus is answered at its model's rates, an unmodified image with its own label,
    an image that the packs do not know with any. Bad participants look at nothing. `habits.leaves_at` is for
    whoever plays the bot, who stops sending pages.
    """
    packs = [packs] if isinstance(packs, Pack) else packs
    hidden = {stimulus.sha256: (pack.name, stimulus) for pack in packs for stimulus in pack.stimuli}
    unmodified = {i.sha256: i.source_label for pack in packs for i in (*pack.originals, *pack.clean)}
    person, times = rng.getrandbits(64), random.Random(rng.getrandbits(64))
    one_key = _any_labels(page.labels, rng), rng.random() < 0.5
    asked = "runner_up" in page.questions
    reasonable: dict[int, bool] = {}
    answered = {"labelling": 0, "judging": 0}
    while page.state != "commenting":
        answered[page.state] += 1
        rt_ms = habits.rt_ms(page.state == "judging", answered[page.state], times)
        pack, stimulus = hidden.get(page.image, ("", None))
        if habits.kind == "one key":
            (label, runner_up), plausible = one_key
        elif habits.kind != "attentive":
            (label, runner_up), plausible = _any_labels(page.labels, rng), rng.random() < 0.5
        elif page.state == "judging":
            plausible = reasonable.get(page.position, False)
        else:
            source = (
                stimulus.source_label if stimulus else unmodified.get(page.image) or rng.choice(page.labels)
            )
            target = stimulus.target_label if stimulus else None
            chances = rates.chances(person, pack, stimulus) if stimulus else (0.0, 0.0)
            label, runner_up = _labels(source, target, page.labels, *chances, asked, rng)
            reasonable[page.position] = target in (label, runner_up) or label == NONE_PLAUSIBLE
        if page.state == "judging":
            page = yield Verdict(plausible, rt_ms)
        else:
            page = yield Labels(label, runner_up if asked else None, rt_ms)
    yield Remark(remark)


def _any_labels(labels: tuple[str, ...], rng: random.Random) -> tuple[str, str]:
    """(label, runner_up) of somebody who presses keys without looking."""
    first, second = rng.sample((*labels, NONE_PLAUSIBLE), 2)
    return first, NONE_PLAUSIBLE if first == NONE_PLAUSIBLE else second


def _labels(
    source: str,
    target: str | None,
    labels: tuple[str, ...],
    fooled: float,
    reasonable: float,
    asks_runner_up: bool,
    rng: random.Random,
) -> tuple[str, str]:
    """(label, runner_up) such that the two chances come out in expectation."""
    other = rng.choice([label for label in labels if label not in (source, target)] or [NONE_PLAUSIBLE])
    draw = rng.random()
    if target is None or draw >= reasonable:
        return source, other
    if draw < fooled:
        return target, source
    if rng.random() < NONE_SHARE or not asks_runner_up:  # without a second label only "none" is left
        return NONE_PLAUSIBLE, NONE_PLAUSIBLE
    return source, target
