"""The vision encoder: a pre-LayerNorm ViT in the names of a CLIP vision tower: grey images, a class token, heads of width 32.

An image's embedding is the class token after the last LayerNorm; its class is the row of the task's head with the greatest
dot product. All layers come from the model under test.
"""

import itertools

import numpy as np

from layers import attention, dense, gelu_in_place, layer_norm

HEAD_WIDTH = 32
BATCH_IMAGES = 100
EPSILON = 1e-5
PREFIX = "vision_model."


def patches(images, size):
    """uint8 [images, side, side] → values from −1 to 1 [images, patches, size²], patches row by row."""
    count, side = len(images), images.shape[-1] // size
    x = images.astype(np.float32) * np.float32(2 / 255) - np.float32(1)
    return x.reshape(count, side, size, side, size).swapaxes(2, 3).reshape(count, side * side, size * size)


def run_layer(x, length, weights, prefix):
    normed = layer_norm(x, weights, prefix + ".layer_norm1", EPSILON)
    names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
    x = x + dense(attention(normed, length, x.shape[1] // HEAD_WIDTH, weights, names), weights, prefix + ".self_attn.out_proj")
    fed = dense(layer_norm(x, weights, prefix + ".layer_norm2", EPSILON), weights, prefix + ".mlp.fc1")
    gelu_in_place(fed)
    return x + dense(fed, weights, prefix + ".mlp.fc2")


def encode(images, weights):
    """[images, width]."""
    embedding = weights[PREFIX + "embeddings.patch_embedding.weight"]
    width, size = embedding.shape[0], embedding.shape[-1]
    x = patches(images, size) @ embedding.reshape(width, -1).T
    first = np.broadcast_to(weights[PREFIX + "embeddings.class_embedding"], (len(images), 1, width))
    x = np.concatenate([first, x], axis=1) + weights[PREFIX + "embeddings.position_embedding.weight"]
    length = x.shape[1]
    x = layer_norm(x.reshape(-1, width), weights, PREFIX + "pre_layrnorm", EPSILON)  # CLIP spells it so
    for index in itertools.count():
        prefix = f"{PREFIX}encoder.layers.{index}"
        if prefix + ".mlp.fc1.weight" not in weights:
            break
        x = run_layer(x, length, weights, prefix)
    return layer_norm(x.reshape(len(images), length, width)[:, 0], weights, PREFIX + "post_layernorm", EPSILON)


class Examples:
    """All images of all tasks."""

    FILES = ("eval",)

    def __init__(self, _folder, data, tasks):
        self._data, self._tasks = data, tasks

    def labels(self, task):
        return np.asarray(self._data.raw(f"{task}.dev.y")).astype(np.int64)

    def features(self, weights):
        """{task: what its head sees of each example [examples, width]}; scale does not matter."""
        found = {}
        for task in self._tasks:
            images = np.asarray(self._data.raw(f"{task}.dev.x"))
            found[task] = np.concatenate([encode(images[at : at + BATCH_IMAGES], weights) for at in range(0, len(images), BATCH_IMAGES)])
        return found
