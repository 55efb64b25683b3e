"""Which examples of the benchmark a merged encoder classifies rightly. NumPy only.

The model is a post-LayerNorm BERT of six layers, 12 heads and width 384. Layers 0 to 2 are frozen (`stem.safetensors`): what
they make of each text is computed once and kept. Layers 3 to 5 come from the model under test. A text's embedding is the
mean of its tokens; its class is the row of the task's head with the greatest dot product.

Texts of exactly the same length go together, whatever their task: so nothing is padded and nothing masked.
"""

import math
import os

import numpy as np

from checkpoint import Checkpoint

# Part of the key of every kept result: to be raised by who changes what an evaluation gives.
VERSION = 1

HEADS = 12
STEM_LAYERS, TUNED_LAYERS = range(3), range(3, 6)
BATCH_TOKENS = 2048
# Elements of a feed-forward layer's hidden state that are worked on at once: they stay in the core's cache.
GELU_BLOCK = 1 << 15
LAYER_NORM_EPSILON = np.float32(1e-12)

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


def layer_norm(x, weights, name):
    x = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(x.shape[-1])
    x /= np.sqrt(variance + LAYER_NORM_EPSILON)
    x *= weights[name + ".weight"]
    x += weights[name + ".bias"]
    return x


def dense(x, weights, name):
    y = x @ weights[name + ".weight"].T
    y += weights[name + ".bias"]
    return y


def attention(x, length, weights, name):
    """Multi-head self-attention over texts of `length` tokens; `x` is [texts · length, width]."""
    query, key, value = (dense(x, weights, f"{name}.{part}").reshape(-1, length, HEADS, x.shape[1] // HEADS).swapaxes(1, 2)
                         for part in ("query", "key", "value"))
    scores = query @ key.swapaxes(-1, -2)
    scores *= np.float32(1 / math.sqrt(query.shape[-1]))
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return (scores @ value).swapaxes(1, 2).reshape(x.shape)


def run_layer(x, length, weights, index):
    prefix = f"encoder.layer.{index}"
    attended = attention(x, length, weights, prefix + ".attention.self")
    x = layer_norm(x + dense(attended, weights, prefix + ".attention.output.dense"), weights, prefix + ".attention.output.LayerNorm")
    fed = dense(x, weights, prefix + ".intermediate.dense")
    gelu_in_place(fed)
    return layer_norm(x + dense(fed, weights, prefix + ".output.dense"), weights, prefix + ".output.LayerNorm")


def embed(ids, weights):
    """Hidden states [texts · length, width] of token numbers [texts, length]."""
    prefix = "embeddings."
    x = weights[prefix + "word_embeddings.weight"][ids] + weights[prefix + "position_embeddings.weight"][: ids.shape[1]]
    x += weights[prefix + "token_type_embeddings.weight"][0]
    return layer_norm(x.reshape(-1, x.shape[-1]), weights, prefix + "LayerNorm")


def load_weights(path):
    checkpoint = Checkpoint(path)
    return {name: checkpoint.float32(name) for name in checkpoint if checkpoint.is_float(name)}


class Benchmark:
    """The evaluation data. The stem's work is done before the first evaluation, and not at all if there is none."""

    def __init__(self, folder):
        self._folder = folder
        self._data = Checkpoint(os.path.join(folder, "eval.safetensors"))
        self.id_tasks, self.ood_tasks = (self._data.metadata[kind].split(",") for kind in ("ID", "OOD"))
        self.tasks = self.id_tasks + self.ood_tasks
        self._labels = {task: self._part(task, "label") for task in self.tasks}
        self._batches = None

    def _part(self, task, name):
        return np.asarray(self._data.raw(f"{task}.{name}")).astype(np.int64)

    def examples(self, task):
        return len(self._labels[task])

    def _prepare(self):
        """Batches of (their places among all texts, length, hidden states after the stem)."""
        stem = load_weights(os.path.join(self._folder, "stem.safetensors"))
        lengths = np.concatenate([self._part(task, "len") for task in self.tasks])
        ids = np.concatenate([self._part(task, "ids") for task in self.tasks])
        self._batches = []
        for length in np.unique(lengths):
            alike = np.flatnonzero(lengths == length)
            for places in np.array_split(alike, math.ceil(len(alike) * length / BATCH_TOKENS)):
                x = embed(ids[places, :length], stem)
                for index in STEM_LAYERS:
                    x = run_layer(x, length, stem, index)
                self._batches.append((places, length, x))

    def right(self, model_path):
        """{task: a boolean for each example} of a merged model."""
        if self._batches is None:
            self._prepare()
        weights = load_weights(model_path)
        pooled = {}
        for places, length, x in self._batches:
            for index in TUNED_LAYERS:
                x = run_layer(x, length, weights, index)
            # The mean over tokens and the length of the embedding scale all classes alike: the sum will do.
            pooled.update(zip(places, x.reshape(len(places), length, -1).sum(axis=1)))
        pooled = np.stack([pooled[place] for place in range(len(pooled))])
        right, start = {}, 0
        for task, labels in self._labels.items():
            scores = pooled[start : start + len(labels)] @ self._data.float32(f"{task}.head").T
            right[task] = np.argmax(scores, axis=1) == labels
            start += len(labels)
        return right
