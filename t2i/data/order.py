"""Which sample stands at a position of the endless training stream: pure functions of (seed, position).

The whole state of a data loader is then one integer, exact on any number of processes and after any resume.
"""

from collections.abc import Sequence

from t2i.core.seed import mix


def permute(index: int, length: int, seed: int) -> int:
    """Where `index` of {0 … length-1} goes in a random permutation, without building it.

    A Feistel network on the next even number of bits, walked until it lands inside (Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains"): four rounds, O(1) memory.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(4):
            left, right = right, left ^ (mix(seed, number, right) & mask)
        index = left << half | right
        if index < length:
            return index


class Mixture:
    """Interleaves several sources by weight, so that the n-th draw of each is known without counting from the start.

    A pattern of `slots` positions repeats; it holds every source in proportion to its weight, at least once, in a
    seeded order.

    Args:
        weights: share of the samples of each source, any positive scale.
    """

    def __init__(self, weights: Sequence[float], seed: int, slots: int = 1000) -> None:
        total = sum(weights)
        shares = [w / total * slots for w in weights]
        counts = [max(1, int(s)) for s in shares]
        for i in sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])[: max(0, slots - sum(counts))]:
            counts[i] += 1
        ordered = [i for i, count in enumerate(counts) for _ in range(count)]
        length = len(ordered)  # a little more than `slots` where many sources have less than one of them
        self.pattern = [ordered[permute(i, length, mix(seed, "mixture"))] for i in range(length)]
        self.counts = counts
        seen = [0] * len(weights)
        self.before = []
        for source in self.pattern:
            self.before.append(seen[source])
            seen[source] += 1

    def at(self, position: int) -> tuple[int, int]:
        """(source, how many times it was drawn before) at a position."""
        rounds, slot = divmod(position, len(self.pattern))
        source = self.pattern[slot]
        return source, rounds * self.counts[source] + self.before[slot]
