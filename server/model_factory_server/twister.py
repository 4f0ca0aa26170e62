"""Where torch's generator of random numbers will be many draws later, without the draws.

On the CPU that is a Mersenne Twister, MT19937 (Matsumoto and Nishimura, 1998), which is linear over GF(2): the words
that it makes n draws later are sums of those it makes next, by the coefficients of x^n modulo its characteristic
polynomial (Haramoto, Matsumoto, Nishimura, Panneton and L'Ecuyer, "Efficient jump ahead for F2-linear random number
generators", 2008). Polynomials over GF(2) are integers here, the coefficient of x^i their bit i.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[np.uint32]
Bits = npt.NDArray[np.uint8]

_WORDS, _MIDDLE, _BITS, _LOWER_BITS, _TWIST = 624, 397, 32, 31, 0x9908B0DF  # n, m, w, r and a of MT19937
_DEGREE = _WORDS * _BITS - _LOWER_BITS
_DOUBLINGS = 10

STEP = _WORDS << _DOUBLINGS
"""Draws; to get any number of steps ahead takes about as long as to draw one. A state's words come in turn, so after
a step the same one is next."""

_TEMPERING = (
    (np.right_shift, 11, 0xFFFFFFFF),
    (np.left_shift, 7, 0x9D2C5680),
    (np.left_shift, 15, 0xEFC60000),
    (np.right_shift, 18, 0xFFFFFFFF),
)
# Of the bytes that torch gives for a generator: which word is next, and all of them, 8 bytes each.
_NEXT, _STATE = slice(16, 24), slice(24, 24 + 8 * _WORDS)
_GROUP = 4  # words that are neighbours
_ROWS = 256  # of words that are summed at once, to stay in the processor's cache


def later(state: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the state of a generator, as torch gives it, ``steps`` times ``STEP`` draws on."""
    if not steps:
        return state
    ahead = state.numpy().copy()
    following, words = ahead[_NEXT].view(np.uint64), ahead[_STATE].view(np.uint64)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words.astype(np.uint32), "pos": 0}}
    drawn = twister.random_raw(_DEGREE + _WORDS).astype(np.uint32)
    if not following[0]:  # of a generator that never drew, whose first word is in no relation to the others
        drawn[0] = np.bitwise_xor.reduce(drawn[_characteristic()[1:]])
        following[0] = _WORDS
    words[:] = _untempered(_sums(drawn, _bits(jump(steps))))
    return torch.from_numpy(ahead)


def _sums(words: Words, coefficients: Bits) -> Words:
    """Sums of the words that ``coefficients`` choose, of those that follow each of them, and so on."""
    # Sums of neighbours are made once, so that fewer are left to add up.
    neighbours = np.zeros((1 << _GROUP, len(words)), np.uint32)
    for choice in range(1, len(neighbours)):
        last = choice.bit_length() - 1
        neighbours[choice] = neighbours[choice ^ 1 << last]
        neighbours[choice, : len(words) - last] ^= words[last:]
    choices = coefficients.reshape(-1, _GROUP) @ (1 << np.arange(_GROUP))
    starts = (choices * len(words) + np.arange(0, len(coefficients), _GROUP))[choices > 0]
    rows = np.lib.stride_tricks.sliding_window_view(neighbours.reshape(-1), _WORDS)
    total = np.zeros(_WORDS, np.uint32)
    for first in range(0, len(starts), _ROWS):
        total ^= np.bitwise_xor.reduce(rows[starts[first : first + _ROWS]], axis=0)
    return total


def _untempered(drawn: Words) -> Words:
    """The words of a state that are drawn as these."""
    for shift, by, mask in reversed(_TEMPERING):
        words = drawn
        for _ in range(_BITS // by):
            words = drawn ^ (shift(words, np.uint32(by)) & np.uint32(mask))
        drawn = words
    return drawn


@functools.cache
def jump(steps: int) -> int:
    """x^n modulo the characteristic polynomial, for so many steps of n: a few milliseconds for each, once."""
    if steps == 1:
        power = 1 << (_WORDS << 4)  # x^n itself, for an n below the degree
        for _ in range(4, _DOUBLINGS):
            power = _remainder(_product(power, power))
        return power
    return _remainder(_product(jump(steps - 1), jump(1)))


@functools.cache
def _characteristic() -> list[int]:
    """The terms of the characteristic polynomial."""
    total = 1
    for bit in range(_LOWER_BITS):
        total = total << (_WORDS - 1) ^ total << (_MIDDLE - 1) ^ (_TWIST >> bit & 1)
    return _terms(total << _WORDS ^ total << _MIDDLE ^ (_TWIST >> _LOWER_BITS & 1))


def _bits(polynomial: int) -> Bits:
    size = polynomial.bit_length() // 8 + 1
    return np.unpackbits(np.frombuffer(polynomial.to_bytes(size, "little"), np.uint8), bitorder="little")


def _terms(polynomial: int) -> list[int]:
    exponents: list[int] = np.flatnonzero(_bits(polynomial)).tolist()
    return exponents


def _product(left: int, right: int) -> int:
    size = 2 * _DEGREE + 126  # 40,000, for which the transform is fast
    sums = np.fft.irfft(np.fft.rfft(_bits(left), size) * np.fft.rfft(_bits(right), size), size)
    odd = np.rint(sums).astype(np.int64).astype(np.uint8) & 1
    return int.from_bytes(np.packbits(odd, bitorder="little").tobytes(), "little")


def _remainder(polynomial: int) -> int:
    *_, second, first = terms = _characteristic()
    while (size := polynomial.bit_length()) > first:
        low = max(first, size - (first - second))
        high = polynomial >> low
        for term in terms:
            polynomial ^= high << (low - first + term)
    return polynomial
