"""Layers of a transformer in NumPy, float32, on rows of tokens: [texts · length, width]."""

import math

import numpy as np

# Elements of a feed-forward layer's hidden state that are worked on at once: they stay in the core's cache.
GELU_BLOCK = 1 << 15

# 1 − Φ(z) for z ≥ 0 as a polynomial in t = 1 / (1 + P·z/√2), times exp(−z²/2): Abramowitz and Stegun 7.1.26, to 10⁻⁷.
TAIL_P = np.float32(0.3275911 / math.sqrt(2))
TAIL = np.array([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592], dtype=np.float32) / 2


def gelu_in_place(x):
    """x ← x·Φ(x), which is max(x, 0) − |x|·(1 − Φ(|x|)); `x` is contiguous."""
    flat = x.reshape(-1)
    size, tail, square = (np.empty(min(GELU_BLOCK, flat.size), np.float32) for _ in range(3))
    for start in range(0, flat.size, GELU_BLOCK):
        part = flat[start : start + GELU_BLOCK]
        z, q, e = size[: part.size], tail[: part.size], square[: part.size]
        np.abs(part, out=z)
        np.multiply(z, z, out=e)
        e *= np.float32(-0.5)
        np.exp(e, out=e)
        e *= z
        z *= TAIL_P
        z += np.float32(1)
        np.reciprocal(z, out=z)
        np.multiply(z, TAIL[0], out=q)
        for coefficient in TAIL[1:]:
            q += coefficient
            q *= z
        q *= e
        np.maximum(part, np.float32(0), out=part)
        part -= q


def layer_norm(x, weights, name, epsilon):
    x = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(x.shape[-1])
    x /= np.sqrt(variance + np.float32(epsilon))
    x *= weights[name + ".weight"]
    x += weights[name + ".bias"]
    return x


def dense(x, weights, name):
    y = x @ weights[name + ".weight"].T
    y += weights[name + ".bias"]
    return y


def attention(x, length, heads, weights, names):
    """Multi-head self-attention over sequences of `length` tokens; `names` are those of query, key and value."""
    query, key, value = (dense(x, weights, name).reshape(-1, length, heads, x.shape[1] // heads).swapaxes(1, 2) for name in names)
    scores = query @ key.swapaxes(-1, -2)
    scores *= np.float32(1 / math.sqrt(query.shape[-1]))
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return (scores @ value).swapaxes(1, 2).reshape(x.shape)
