"""Which samples a run takes, in order: a function of the seed and of how many were taken before."""

import hashlib

import numpy as np


class Sampler:
    """Passes over sources in random order, reshuffled every epoch: a function of the seed and of how many have been
    taken, so that a resumed run takes exactly what the uninterrupted one would have."""

    def __init__(self, seed: int, sizes: dict[str, int]):
        self.seed, self.sizes = seed, sizes
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def take(self, source: str, taken: int, count: int) -> list[tuple[int, int]]:
        """(index, epoch) of the `count` that follow the first `taken` of a source."""
        return [self.at(source, place) for place in range(taken, taken + count)]

    def at(self, source: str, place: int) -> tuple[int, int]:
        """(index, epoch) of the one that follows the first `place` of a source."""
        epoch, place = divmod(place, self.sizes[source])
        if self._orders.get(source, (None,))[0] != epoch:
            rng = np.random.default_rng([self.seed, 2, epoch, sorted(self.sizes).index(source)])
            self._orders[source] = (epoch, rng.permutation(self.sizes[source]))
        return int(self._orders[source][1][place]), epoch


def sample_rng(seed: int, sample_id: str, epoch: int, use: int = 3) -> np.random.Generator:
    """The random generator of one sample in one epoch, independent of its batch."""
    number = int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest())
    return np.random.default_rng([seed, use, number, epoch])
