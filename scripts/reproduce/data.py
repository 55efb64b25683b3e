"""Images, labels and heads of a task, as `run` reads them.

DATA/TASK.npz has `images`, uint8 [n, side, side, 3] as they come out of CLIP's resizing and cropping, and `labels`, [n]. A head is a
matrix [classes, width] of unit rows (their scale does not matter) in safetensors or in a file of PyTorch's; such a file is turned into
safetensors by merganser, which executes nothing.
"""

import os
import subprocess

import numpy as np

from checkpoint import Checkpoint, load_floats
from papers import Missing


def images(folder, task):
    path = os.path.join(folder, task + ".npz")
    if not os.path.exists(path):
        raise Missing(f"{path} is missing")
    with np.load(path, allow_pickle=False) as found:
        pixels, labels = found["images"], found["labels"]
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or labels.shape != pixels.shape[:1]:
        raise SystemExit(f"{path}: expected `images` uint8 [n, side, side, 3] and `labels` [n], found {pixels.dtype} {pixels.shape} and {labels.shape}")
    return pixels, labels


def head(path, merganser, work):
    """[classes, width], float32."""
    if not os.path.exists(path):
        raise Missing(f"{path} is missing")
    if not path.endswith(".safetensors"):
        recipe, out = os.path.join(work, "head.yaml"), os.path.join(work, "head-" + os.path.basename(path))
        if not os.path.exists(out):
            with open(recipe, "w", encoding="utf-8") as handle:
                handle.write(f"{{merge_method: passthrough, models: [{{model: {os.path.abspath(path)!r}}}]}}\n")
            subprocess.run([merganser, "merge", recipe, "-o", out, "-q"], check=True)
        path = os.path.join(out, "model.safetensors")
    matrices = [value for value in load_floats(path).values() if value.ndim == 2]
    if len(matrices) != 1:
        raise SystemExit(f"{path}: expected one matrix [classes, width], found {len(matrices)} among {list(Checkpoint(path))[:5]}")
    return matrices[0]


def accuracy(features, labels, rows):
    """In per cent: of what has its greatest cosine with the row of its class."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return 100 * float((np.argmax(features @ rows.T, axis=1) == labels).mean())
