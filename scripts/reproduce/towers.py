"""Features of images by a CLIP image encoder: in NumPy, by OpenCLIP or by Transformers.

All take images as they come out of CLIP's resizing and cropping, uint8 [images, side, side, 3], and give [images, width].
"""

import itertools
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from checkpoint import load_floats  # noqa: E402

# Of the pixels that CLIP was trained on.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
EPSILON = np.float32(1e-5)
HEAD_WIDTH = 64
BATCH = 64


def normalised(images):
    """float32 [images, 3, side, side]."""
    return ((images.astype(np.float32) / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2)


def in_batches(encode):
    return lambda images: np.concatenate([encode(normalised(images[at : at + BATCH])) for at in range(0, len(images), BATCH)])


# Where each naming keeps the parts of a tower. `packed`: query, key and value are one matrix.
NAMES = {
    "open_clip": {
        "root": "model.visual.", "patch": "conv1.weight", "class": "class_embedding", "position": "positional_embedding", "before": "ln_pre",
        "block": "transformer.resblocks.{}.", "first": "ln_1", "packed": "attn.in_proj", "out": "attn.out_proj", "second": "ln_2",
        "up": "mlp.c_fc", "down": "mlp.c_proj", "after": "ln_post", "projection": ("proj", False),
    },
    "transformers": {
        "root": "vision_model.", "patch": "embeddings.patch_embedding.weight", "class": "embeddings.class_embedding",
        "position": "embeddings.position_embedding.weight", "before": "pre_layrnorm", "block": "encoder.layers.{}.", "first": "layer_norm1",
        "apart": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "out": "self_attn.out_proj", "second": "layer_norm2",
        "up": "mlp.fc1", "down": "mlp.fc2", "after": "post_layernorm", "projection": ("visual_projection.weight", True),
    },
}


class Tower:
    """A CLIP image encoder in NumPy, float32; quick GELU, as OpenAI's weights want it."""

    def __init__(self, weights, names):
        self.names = NAMES[names]
        self.weights, self.root = weights, self.names["root"]

    def _get(self, part):
        return self.weights[self.root + part]

    def _norm(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON) * self._get(name + ".weight") + self._get(name + ".bias")

    def _dense(self, x, name):
        return x @ self._get(name + ".weight").T + self._get(name + ".bias")

    def _attention(self, x, block):
        texts, length, width = x.shape
        if "packed" in self.names:
            weight, bias = self._get(block + self.names["packed"] + "_weight"), self._get(block + self.names["packed"] + "_bias")
            parts = np.split(x @ weight.T + bias, 3, axis=-1)
        else:
            parts = [self._dense(x, block + name) for name in self.names["apart"]]
        heads = max(1, width // HEAD_WIDTH)
        query, key, value = (part.reshape(texts, length, heads, -1).swapaxes(1, 2) for part in parts)
        scores = query @ key.swapaxes(-1, -2) * np.float32(query.shape[-1] ** -0.5)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return self._dense((scores @ value).swapaxes(1, 2).reshape(texts, length, width), block + self.names["out"])

    def encode(self, pixels):
        patch = self._get(self.names["patch"])
        width, size, count = patch.shape[0], patch.shape[-1], pixels.shape[-1] // patch.shape[-1]
        x = pixels.reshape(len(pixels), 3, count, size, count, size).transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), count * count, -1)
        x = x @ patch.reshape(width, -1).T
        first = np.broadcast_to(self._get(self.names["class"]).reshape(1, 1, width), (len(x), 1, width))
        x = self._norm(np.concatenate([first, x], axis=1) + self._get(self.names["position"]), self.names["before"])
        for index in itertools.count():
            block = self.names["block"].format(index)
            if self.root + block + self.names["up"] + ".weight" not in self.weights:
                break
            x = x + self._attention(self._norm(x, block + self.names["first"]), block)
            hidden = self._dense(self._norm(x, block + self.names["second"]), block + self.names["up"])
            x = x + self._dense(hidden / (1 + np.exp(np.float32(-1.702) * hidden)), block + self.names["down"])
        pooled = self._norm(x[:, 0], self.names["after"])
        name, transposed = self.names["projection"]
        # Transformers keeps the projection beside the vision model, and its fine-tunes of the vision model lack it.
        projection = self.weights.get(self.root + name, self.weights.get(name))
        return pooled if projection is None else pooled @ (projection.T if transposed else projection)


def projection_of(path):
    """The matrix [embedding, width] that Transformers keeps beside the vision model, or None."""
    return load_floats(path).get("visual_projection.weight") if path else None


def in_numpy(path, names, _architecture, base):
    weights = load_floats(path)
    if names == "transformers" and "visual_projection.weight" not in weights and projection_of(base) is not None:
        weights["visual_projection.weight"] = projection_of(base)
    return in_batches(Tower(weights, names).encode)


def by_open_clip(path, _names, architecture, _base):
    import open_clip
    import torch

    architecture = architecture or "ViT-B-32-quickgelu"
    if architecture.endswith(".json"):
        open_clip.add_model_config(architecture)
        architecture = os.path.splitext(os.path.basename(architecture))[0]
    net = open_clip.create_model(architecture, pretrained=None)
    state = {name.removeprefix("model."): torch.from_numpy(value) for name, value in load_floats(path).items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    lacking = [name for name in missing if name.startswith("visual.")]
    if lacking or unexpected:
        raise SystemExit(f"{path} does not fit {architecture}: it lacks {lacking[:3]}, and {unexpected[:3]} have no place")
    return in_batches(lambda pixels: net.eval().encode_image(torch.from_numpy(pixels)).detach().numpy())


def by_transformers(path, _names, _architecture, base):
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    net = CLIPVisionModel.from_pretrained(path, config=CLIPVisionConfig.from_pretrained(path)).eval()
    projection = next((found for found in (projection_of(path), projection_of(base)) if found is not None), None)

    def encode(pixels):
        with torch.no_grad():
            pooled = net(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()
        return pooled if projection is None else pooled @ projection.T

    return in_batches(encode)


EVALUATORS = {"numpy": in_numpy, "open_clip": by_open_clip, "transformers": by_transformers}
