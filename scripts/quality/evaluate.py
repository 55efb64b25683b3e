"""Accuracy of a merged encoder on the benchmark's tasks. NumPy only.

The model is a post-LayerNorm BERT of six layers, 12 heads and width 384. Layers 0 to 2 are frozen (`stem.safetensors`): what
they make of each text is computed once and kept. Layers 3 to 5 come from the model under test. A text's embedding is the
mean of its tokens; its class is the row of the task's head with the greatest dot product.
"""

import math
import os

import numpy as np

from checkpoint import Checkpoint

HEADS = 12
STEM_LAYERS, TUNED_LAYERS = range(3), range(3, 6)
BATCH = 64
LAYER_NORM_EPSILON = np.float32(1e-12)

# The normal distribution function on a grid: gelu(x) = x · Φ(x), interpolated to about 10⁻⁷.
GRID_PER_UNIT, GRID_END = 1024, 6
PHI = np.array([0.5 * (1 + math.erf((i / GRID_PER_UNIT - GRID_END) / math.sqrt(2))) for i in range(2 * GRID_END * GRID_PER_UNIT + 2)],
               dtype=np.float32)
PHI_STEP = np.diff(PHI, append=PHI[-1:])


def gelu(x):
    place = (np.clip(x, -GRID_END, GRID_END) + GRID_END) * GRID_PER_UNIT
    cell = place.astype(np.int32)
    place -= cell
    place *= PHI_STEP[cell]
    place += PHI[cell]
    place *= x
    return place


def layer_norm(x, weights, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", centred, centred)[..., None] / np.float32(x.shape[-1])
    return centred / np.sqrt(variance + LAYER_NORM_EPSILON) * weights[name + ".weight"] + weights[name + ".bias"]


def dense(x, weights, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def attention(x, real, weights, name):
    """Multi-head self-attention; `real` [texts, tokens] says which tokens are not padding."""
    texts, tokens, width = x.shape
    split = lambda y: y.reshape(texts, tokens, HEADS, -1).swapaxes(1, 2)  # noqa: E731
    query, key, value = (split(dense(x, weights, f"{name}.{part}")) for part in ("query", "key", "value"))
    scores = query @ key.swapaxes(-1, -2) / np.float32(math.sqrt(width // HEADS))
    scores = np.where(real[:, None, None, :], scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    return mixed.swapaxes(1, 2).reshape(texts, tokens, width)


def run_layer(x, real, weights, index):
    prefix = f"encoder.layer.{index}"
    attended = dense(attention(x, real, weights, prefix + ".attention.self"), weights, prefix + ".attention.output.dense")
    x = layer_norm(x + attended, weights, prefix + ".attention.output.LayerNorm")
    fed = dense(gelu(dense(x, weights, prefix + ".intermediate.dense")), weights, prefix + ".output.dense")
    return layer_norm(x + fed, weights, prefix + ".output.LayerNorm")


def embed(ids, weights):
    prefix = "embeddings."
    x = weights[prefix + "word_embeddings.weight"][ids] + weights[prefix + "position_embeddings.weight"][: ids.shape[1]]
    return layer_norm(x + weights[prefix + "token_type_embeddings.weight"][0], weights, prefix + "LayerNorm")


def load_weights(path):
    checkpoint = Checkpoint(path)
    return {name: checkpoint.float32(name) for name in checkpoint if checkpoint.is_float(name)}


class Benchmark:
    """The evaluation data, with the stem's work done."""

    def __init__(self, folder):
        data = Checkpoint(os.path.join(folder, "eval.safetensors"))
        self.id_tasks, self.ood_tasks = (data.metadata[kind].split(",") for kind in ("ID", "OOD"))
        stem = load_weights(os.path.join(folder, "stem.safetensors"))
        self.tasks = {task: self._prepare(data, task, stem) for task in self.id_tasks + self.ood_tasks}

    @staticmethod
    def _prepare(data, task, stem):
        """(head, batches of (hidden states after the stem, real tokens, labels)); texts of like length go together."""
        ids, lengths, labels = (np.asarray(data.raw(f"{task}.{part}")).astype(np.int64) for part in ("ids", "len", "label"))
        order = np.argsort(lengths)
        batches = []
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            longest = lengths[chosen].max()
            real = np.arange(longest) < lengths[chosen, None]
            x = embed(ids[chosen, :longest], stem)
            for index in STEM_LAYERS:
                x = run_layer(x, real, stem, index)
            batches.append((x, real, labels[chosen]))
        return data.float32(f"{task}.head"), batches

    def accuracies(self, model_path):
        """{task: accuracy in percent} of a merged model."""
        weights = load_weights(model_path)
        return {task: self._accuracy(weights, *prepared) for task, prepared in self.tasks.items()}

    @staticmethod
    def _accuracy(weights, head, batches):
        right = total = 0
        for x, real, labels in batches:
            for index in TUNED_LAYERS:
                x = run_layer(x, real, weights, index)
            # The mean over tokens and the length of the embedding scale all classes alike: the sum will do.
            pooled = (x * real[..., None]).sum(axis=1)
            right += int((np.argmax(pooled @ head.T, axis=1) == labels).sum())
            total += len(labels)
        return 100 * right / total
