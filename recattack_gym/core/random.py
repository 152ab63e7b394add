"""From one NumPy generator to every other source of randomness, and counter-based draws.

A *counter-based* draw is a pure function of (seed, stream, counter): no state, so equal arguments
give equal draws in any order, in any batch and on any thread. That is what makes "the same clicks
give the same reward" hold for every code path. The mixing function is the finaliser of SplitMix64
(Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**63
"""Seeds lie in `[0, MAX_SEED)`, so that they fit a signed 64-bit integer everywhere."""


def draw_seed(rng: np.random.Generator) -> int:
    """Draw an integer seed in `[0, MAX_SEED)`."""
    return int(rng.integers(MAX_SEED))


def torch_generator(rng: np.random.Generator, device: str = "cpu") -> "torch.Generator":
    """Return a torch generator seeded from `rng`; the only bridge from NumPy to torch randomness."""
    import torch

    return torch.Generator(device=device).manual_seed(draw_seed(rng))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words; a bijection. Any shape."""
    z = values.astype(np.uint64, copy=True)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def counter_words(seed: int, stream: int, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return one random 64-bit word per counter.

    Args:
        seed: In `[0, MAX_SEED)`.
        stream: Which use of the seed this is; different streams are independent.
        counters: Non-negative, any shape.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key = mix(np.array([seed], dtype=np.uint64) + np.uint64(stream) * golden)[0]
        return mix(key + (counters.astype(np.uint64) + np.uint64(1)) * golden)


def counter_integers(
    seed: int, stream: int, counters: NDArray[np.int64], below: int
) -> NDArray[np.int64]:
    """Return one integer in `[0, below)` per counter; `below` at most `2**31`."""
    high = counter_words(seed, stream, counters) >> np.uint64(32)
    return ((high * np.uint64(below)) >> np.uint64(32)).astype(np.int64)


def counter_permutation(seed: int, stream: int, n: int) -> NDArray[np.int64]:
    """Return a permutation of `range(n)` that depends on (seed, stream) alone."""
    return np.argsort(counter_words(seed, stream, np.arange(n)), kind="stable").astype(np.int64)


def counter_normal(seed: int, stream: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return standard normal draws of `shape` that depend on (seed, stream) alone (Box-Muller)."""
    n = int(np.prod(shape))
    words = counter_words(seed, stream, np.arange(2 * n)) >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53
    normal = np.sqrt(-2.0 * np.log(uniform[:n])) * np.cos(2.0 * np.pi * uniform[n:])
    return normal.reshape(shape).astype(np.float32)
