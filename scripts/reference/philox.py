"""Random masks: Philox4x32-10 (Salmon et al., SC 2011), keyed so that a mask depends on nothing but what it is for."""

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
DOMAIN = 0x44415245  # "DARE": keeps these streams apart from any other use of the generator
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(key, counter):
    """Four 32-bit words for each counter: ten rounds. `counter` holds four arrays (or numbers) of 32-bit values."""
    words = [np.asarray(word, dtype=np.uint64) for word in counter]
    key = list(key)
    for _ in range(10):
        first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
        words = [
            (second >> HALF) ^ words[1] ^ np.uint64(key[0]),
            second & LOW,
            (first >> HALF) ^ words[3] ^ np.uint64(key[1]),
            first & LOW,
        ]
        key = [(word + step) & 0xFFFFFFFF for word, step in zip(key, WEYL)]
    return words


def fnv1a(text):
    """FNV-1a, 64 bits, of a text's UTF-8 bytes."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def split(value):
    return value & 0xFFFFFFFF, value >> 32


def words(seed, tensor, model, count):
    """The random words of a flattened tensor's elements."""
    stream = philox(split(seed), (*split(fnv1a(tensor)), model, DOMAIN))
    key = [int(word) for word in stream[:2]]
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    found = philox(key, (blocks & LOW, blocks >> HALF, np.zeros_like(blocks), np.zeros_like(blocks)))
    return np.stack(found, axis=-1).reshape(-1)[:count]


def kept(seed, tensor, model, count, density):
    """Which of a flattened tensor's elements DARE keeps, as booleans."""
    if density >= 1:
        return np.ones(count, dtype=bool)
    return words(seed, tensor, model, count) < int(density * 2**32)
