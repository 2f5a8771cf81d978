"""Which (source image, target) pairs are attacked, and what the attack made of them for every model."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

from ml import attacks, distributed, pack, train
from ml.datasets import Dataset, to_float
from ml.models import Network

SOURCES = 5  # test images of each label that are attacked at first: 45 pairs with 9 targets
FEWER_SOURCES = {"digits": 3}  # the set to try the whole chain with
ENOUGH_PAIRS, ENOUGH_SOURCES = 9, 3  # of each label; below, further test images follow
MOST_SOURCES = 40  # of each label, so that a model that cannot be fooled does not take forever


class PairsError(Exception):
    """Too few images fool every model; the message is one line."""


@dataclass(frozen=True)
class Attacked:
    """What the attack on one model made of P (source image, target) pairs, in 8 bits a pixel.

    `success` is the attack's own result; `predictions` and `probabilities` (of the target) are measured on the
    PNG as read back.
    """

    pixels: npt.NDArray[np.uint8]  # (P, 1, H, W)
    predictions: npt.NDArray[np.int64]  # (P,)
    probabilities: npt.NDArray[np.float64]  # (P,)
    iterations: npt.NDArray[np.int64]  # (P,)
    success: npt.NDArray[np.bool_]  # (P,)


@dataclass(frozen=True)
class Attempts:
    """All pairs attacked: source image, target and, by model, the outcome."""

    sources: npt.NDArray[np.int64]  # (P,), positions in the test images
    targets: npt.NDArray[np.int64]  # (P,)
    attacked: dict[str, Attacked]

    @property
    def survivors(self) -> npt.NDArray[np.bool_]:
        """(P,), the pairs whose image fools every model."""
        fooled = [attacked.predictions == self.targets for attacked in self.attacked.values()]
        return np.asarray(np.stack(fooled).all(0))


class Right(Protocol):
    """Whether every model is right about a test image, unmodified, by the image's position."""

    def __getitem__(self, index: int) -> bool | np.bool_: ...


class RightAnswers:
    """`Right` from the networks, which read a block of images when first asked about one of it: a pack needs some
    hundred test images, not all."""

    BLOCK = 250

    def __init__(self, dataset: Dataset, networks: Mapping[str, nn.Module]) -> None:
        self._dataset, self._networks = dataset, networks
        self._blocks: dict[int, npt.NDArray[np.bool_]] = {}

    def __getitem__(self, index: int) -> np.bool_:
        start = index - index % self.BLOCK
        if start not in self._blocks:
            block = slice(start, start + self.BLOCK)
            images, labels = self._dataset.test_images[block], self._dataset.test_labels[block]
            answers = [
                train.predict(network, images).argmax(1).numpy() for network in self._networks.values()
            ]
            self._blocks[start] = np.asarray((np.stack(answers) == labels).all(0))
        return np.bool_(self._blocks[start][index - start])


def attack_enough(
    dataset: Dataset, networks: Mapping[str, nn.Module], attack: str, right: Right
) -> tuple[Attempts, list[dict[str, Any]]]:
    """Attacks the first SOURCES (or FEWER_SOURCES) test images of every label, then, while a label has too few
    surviving pairs or source images, its next ones.

    An image that a model misreads unmodified is passed over: no attack is needed there, and nothing could be said
    about one. So is one whose very pixels came before. Returns the attempts and the images passed over. Raises
    PairsError.
    """
    queues = {
        label: list(np.flatnonzero(dataset.test_labels == label)) for label in range(len(dataset.labels))
    }
    used: dict[int, int] = dict.fromkeys(queues, 0)
    seen: set[bytes] = set()
    skipped: list[dict[str, Any]] = []
    rounds: list[Attempts] = []
    wanted = dict.fromkeys(queues, FEWER_SOURCES.get(dataset.name, SOURCES))
    while wanted:
        sources = []
        for label, count in wanted.items():
            while count and queues[label]:
                index = int(queues[label].pop(0))
                pixels = dataset.test_images[index].tobytes()
                if right[index] and pixels not in seen:
                    sources.append(index)
                    seen.add(pixels)
                    used[label], count = used[label] + 1, count - 1
                else:
                    reason = "misclassified unmodified by at least one model"
                    if right[index]:
                        reason = "the same pixels as an earlier image"
                    record = {"source_index": index, "source_label": dataset.labels[label], "reason": reason}
                    skipped.append(record)
        if sources:
            rounds.append(_attack_round(dataset, networks, attack, sources, len(rounds)))
        attempts = _joined(rounds) if rounds else None
        wanted = {}
        for label in queues:
            survivors = np.zeros(0, dtype=np.int64)
            if attempts is not None:
                of_label = dataset.test_labels[attempts.sources] == label
                survivors = attempts.sources[attempts.survivors & of_label]
            if len(survivors) < ENOUGH_PAIRS or len(set(survivors)) < ENOUGH_SOURCES:
                if used[label] >= MOST_SOURCES or not queues[label]:
                    passed = sum(record["source_label"] == dataset.labels[label] for record in skipped)
                    raise PairsError(
                        f"label {dataset.labels[label]}: only {len(survivors)} pairs from {len(set(survivors))} of "
                        f"{used[label]} images fool every model ({passed} more were passed over, most as misread "
                        f"unmodified); train for longer, take another seed or, for models of your own, other ones"
                    )
                wanted[label] = 1
    assert attempts is not None
    return attempts, skipped


def _attack_round(
    dataset: Dataset, networks: Mapping[str, nn.Module], attack: str, sources: Iterable[int], number: int
) -> Attempts:
    pairs = np.array(
        [
            (source, target)
            for source in sources
            for target in range(len(dataset.labels))
            if target != dataset.test_labels[source]
        ]
    )
    function, parameters = attacks.ATTACKS[attack]
    attacked = {}
    for name, network in networks.items():
        further = f", further images {number}" if number else ""
        with tqdm(
            total=len(pairs),
            desc=f"{attack} on {name}{further}",
            unit="pair",
            disable=not distributed.first(),
        ) as bar:
            attacked[name] = attack_pairs(
                network, dataset.test_images[pairs[:, 0]], pairs[:, 1], function, parameters, bar.update
            )
    return Attempts(pairs[:, 0], pairs[:, 1], attacked)


def attack_pairs(
    network: nn.Module,
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    function: Callable[..., attacks.AttackResult],
    parameters: dict[str, Any],
    on_progress: Callable[[int], object],
) -> Attacked:
    """Attacks images (P, 1, H, W) towards targets (P,), rounds to 8 bits and asks the network again.

    Several processes share the chunks that one process would attack one after the other: the bytes are the same.
    """
    starts = range(0, len(images), attacks.CHUNK)[distributed.rank() :: distributed.processes()]
    mine = {}
    for start in starts:
        part = slice(start, start + attacks.CHUNK)
        mine[start] = _attack_chunk(network, images[part], targets[part], function, parameters, on_progress)
    parts = {start: chunk for share in distributed.everyones(mine) for start, chunk in share.items()}
    return _concatenated([parts[start] for start in sorted(parts)])


def _attack_chunk(
    network: nn.Module,
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    function: Callable[..., attacks.AttackResult],
    parameters: dict[str, Any],
    on_progress: Callable[[int], object],
) -> Attacked:
    device = train.device_of(network)
    x = torch.from_numpy(to_float(images)).to(device)
    aim = torch.from_numpy(targets).to(device)
    accepted = inspect.signature(function).parameters
    if isinstance(network, Network) and "units" in accepted:
        parameters = {**parameters, "units": network.units(x)}
    if "on_progress" in accepted:
        result = function(network, x, aim, **parameters, on_progress=on_progress)
    else:
        result = function(network, x, aim, **parameters)
        on_progress(len(x))
    pixels = np.rint(result.images.cpu().numpy() * 255).astype(np.uint8)
    stored = np.stack([pack.decode_png(pack.encode_png(image[0])) for image in pixels])[:, None]
    logits = train.predict(network, stored).double()
    return Attacked(
        pixels=stored,
        predictions=logits.argmax(1).numpy(),
        probabilities=logits.softmax(1).gather(1, torch.from_numpy(targets)[:, None])[:, 0].numpy(),
        iterations=result.iterations.cpu().numpy(),
        success=result.success.cpu().numpy(),
    )


def _joined(rounds: list[Attempts]) -> Attempts:
    return Attempts(
        np.concatenate([attempts.sources for attempts in rounds]),
        np.concatenate([attempts.targets for attempts in rounds]),
        {
            name: _concatenated([attempts.attacked[name] for attempts in rounds])
            for name in rounds[0].attacked
        },
    )


def _concatenated(parts: list[Attacked]) -> Attacked:
    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Attacked)
    }
    return Attacked(**arrays)
