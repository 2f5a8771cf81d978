"""Answers summed by participant, by source image and by both: the whole numbers that the statistics stand on.

A sum over clusters of squares or products is a sum of whole numbers, so it does not hang on any order, and what one
participant adds to it can be taken away again without a trace (`app.tally`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """Answers of one participant on one source image: `count` of `n` had the outcome, 0 <= count <= n."""

    participant: int
    image: int
    count: int
    n: int


@dataclass(frozen=True)
class Sample:
    """Cells as columns of shape (cells,), each of dtype int64; `participant` and `image` are any numbers."""

    participant: Ints
    image: Ints
    count: Ints
    n: Ints

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Sample:
        """The same cells, as columns."""
        rows = [(c.participant, c.image, c.count, c.n) for c in cells]
        return cls(*np.array(rows, np.int64).reshape(-1, 4).T)

    @classmethod
    def of_answers(cls, participant: Ints, image: Ints, outcome: npt.NDArray[np.bool_]) -> Sample:
        """One cell an answer: whether it had the outcome."""
        return cls(participant, image, outcome.astype(np.int64), np.ones(outcome.size, np.int64))


@dataclass(frozen=True)
class Clusters:
    """The clusters of one kind that have answers: how many there are, and sums over them of products.

    `products` has the shape (2 k, 2 k) for k samples: of the cluster's count and n in the first sample, count and
    n in the second, ..., each with each.
    """

    number: int
    products: list[list[int]]

    def squares(self, weights: Iterable[int]) -> int:
        """The sum over the clusters of the square of their weighted sum of counts and ns."""
        pairs = [(i, w) for i, w in enumerate(weights) if w]
        return sum(v * w * self.products[i][j] for i, v in pairs for j, w in pairs)


@dataclass(frozen=True)
class Clustered:
    """Samples, summed: `totals` has count and n of each sample, one after the other."""

    totals: list[int]
    participants: Clusters
    images: Clusters
    both: Clusters  # the answers of one participant on one source image

    @classmethod
    def of(cls, *samples: Sample) -> Clustered:
        """Some samples, summed. Raises ValueError for a cell with a count outside 0..n."""
        for sample in samples:
            if np.any((sample.count < 0) | (sample.count > sample.n)):
                raise ValueError("a cell's count must lie between 0 and its n")
        width = 2 * len(samples)
        columns = np.zeros((sum(s.n.size for s in samples), width), np.int64)
        start = 0
        for k, sample in enumerate(samples):
            rows = slice(start, start := start + sample.n.size)
            columns[rows, 2 * k], columns[rows, 2 * k + 1] = sample.count, sample.n
        answered = columns.any(axis=1)  # a cell without answers must not count as a cluster
        participant, image = (
            np.unique(np.concatenate(names)[answered], return_inverse=True)[1].astype(np.int64)
            for names in ([s.participant for s in samples], [s.image for s in samples])
        )
        # Several cells of one participant on one image, in one sample or in several, are one cluster.
        both = np.unique(participant * (int(image.max(initial=0)) + 1) + image, return_inverse=True)[1]
        return cls(
            columns.sum(axis=0).tolist(),
            *(_clusters(names, columns[answered]) for names in (participant, image, both.astype(np.int64))),
        )


def _clusters(names: Ints, columns: Ints) -> Clusters:
    """The clusters 0, 1, ..., each with answers, that `names` gives each row of `columns`."""
    sums = np.zeros((int(names.max(initial=-1)) + 1, columns.shape[1]), np.int64)
    np.add.at(sums, names, columns)
    return Clusters(len(sums), products(sums))


def products(sums: Ints) -> list[list[int]]:
    """The sums over the rows of the products of any two columns; exact, however large."""
    if float(np.abs(sums).max(initial=0)) ** 2 * len(sums) >= 2**63:
        sums = sums.astype(object)
    found: list[list[int]] = (sums.T @ sums).tolist()
    return found
