"""The text encoder: a post-LayerNorm BERT of six layers, 12 heads and width 384.

Layers 0 to 2 are frozen (`stem.safetensors`): what they make of each text is computed once and kept. Layers 3 to 5 come from
the model under test. A text's embedding is the mean of its tokens; its class is the row of the task's head with the greatest
dot product.

Texts of exactly the same length go together, whatever their task: so nothing is padded and nothing masked.
"""

import math
import os

import numpy as np

from checkpoint import load_floats
from layers import attention, dense, gelu_in_place, layer_norm

HEADS = 12
STEM_LAYERS, TUNED_LAYERS = range(3), range(3, 6)
BATCH_TOKENS = 2048
EPSILON = 1e-12


def run_layer(x, length, weights, index):
    prefix = f"encoder.layer.{index}"
    names = [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")]
    attended = attention(x, length, HEADS, weights, names)
    x = layer_norm(x + dense(attended, weights, prefix + ".attention.output.dense"), weights, prefix + ".attention.output.LayerNorm", EPSILON)
    fed = dense(x, weights, prefix + ".intermediate.dense")
    gelu_in_place(fed)
    return layer_norm(x + dense(fed, weights, prefix + ".output.dense"), weights, prefix + ".output.LayerNorm", EPSILON)


def embed(ids, weights):
    """Hidden states [texts · length, width] of token numbers [texts, length]."""
    prefix = "embeddings."
    x = weights[prefix + "word_embeddings.weight"][ids] + weights[prefix + "position_embeddings.weight"][: ids.shape[1]]
    x += weights[prefix + "token_type_embeddings.weight"][0]
    return layer_norm(x.reshape(-1, x.shape[-1]), weights, prefix + "LayerNorm", EPSILON)


class Examples:
    """All texts of all tasks, in batches of one length. The stem's work is done before the first evaluation, and not at all if there is none."""

    FILES = ("eval", "stem")

    def __init__(self, folder, data, tasks):
        self._folder, self._data, self._tasks = folder, data, tasks
        self._batches = None

    def labels(self, task):
        return self._part(task, "label")

    def _part(self, task, name):
        return np.asarray(self._data.raw(f"{task}.{name}")).astype(np.int64)

    def _prepare(self):
        """Batches of (their places among all texts, length, hidden states after the stem)."""
        stem = load_floats(os.path.join(self._folder, "stem.safetensors"))
        lengths = np.concatenate([self._part(task, "len") for task in self._tasks])
        ids = np.concatenate([self._part(task, "ids") for task in self._tasks])
        self._batches = []
        for length in np.unique(lengths):
            alike = np.flatnonzero(lengths == length)
            for places in np.array_split(alike, math.ceil(len(alike) * length / BATCH_TOKENS)):
                x = embed(ids[places, :length], stem)
                for index in STEM_LAYERS:
                    x = run_layer(x, length, stem, index)
                self._batches.append((places, length, x))

    def features(self, weights):
        """{task: what its head sees of each example [examples, width]}; scale does not matter."""
        if self._batches is None:
            self._prepare()
        pooled = {}
        for places, length, x in self._batches:
            for index in TUNED_LAYERS:
                x = run_layer(x, length, weights, index)
            # The mean over tokens and the length of the embedding scale all classes alike: the sum will do.
            pooled.update(zip(places, x.reshape(len(places), length, -1).sum(axis=1)))
        pooled = np.stack([pooled[place] for place in range(len(pooled))])
        ends = np.cumsum([len(self.labels(task)) for task in self._tasks])
        return dict(zip(self._tasks, np.split(pooled, ends[:-1])))
