"""Families for timing, and how like real fine-tunes they are."""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
import numpy as np  # noqa: E402

from checkpoint import Checkpoint  # noqa: E402

# What was seen in real bfloat16 fine-tunes: unchanged elements, and elements exactly at the top-20 % cut over k.
SEEN = {"zeros": 0.14, "tied": 1 / 3}
DENSITY = 0.2
LARGEST_ELEMS = 1 << 25  # of tensors that are looked at
TENSORS = 24  # looked at


class Family:
    """A base and fine-tunes: folders `base`, `task-1` … `task-T`."""

    def __init__(self, folder, tasks):
        self.folder, self.tasks = folder, tasks
        self.base = os.path.join(folder, "base")
        self.models = [os.path.join(folder, f"task-{i}") for i in range(1, tasks + 1)]

    def weights(self, tasks=None):
        """Weight files of the base and of that many fine-tunes."""
        folders = [self.base, *self.models[:tasks]]
        return [file for folder in folders for file in weights_of(folder)]


def weights_of(folder):
    return sorted(os.path.join(folder, file) for file in os.listdir(folder) if file.endswith(".safetensors"))


def size_of(files):
    return sum(map(os.path.getsize, files))


def make(work, shape, params, tasks):
    """The family of this shape, size and number of tasks in the work folder; made unless it is there."""
    folder = os.path.join(work, f"{shape}-{params:.0f}-{tasks}")
    if not os.path.isdir(folder):
        partial = folder + ".partial"
        subprocess.run(["rm", "-rf", partial], check=True)
        command = [sys.executable, os.path.join(HERE, "..", "make-family"), partial, "--preset", shape, "--params", str(params),
                   "--dtype", "bf16", "--tasks", str(tasks)]
        subprocess.run(command, check=True)
        os.rename(partial, folder)
    return Family(folder, tasks)


def figures(family):
    """Shares over a sample of matrices, weighted by their elements: {"zeros": …, "tied": …}, of the first fine-tune.

    zeros: elements that the fine-tune left as they were. tied: elements whose |change| equals the k-th largest of the tensor,
    over k, for k a fifth of its elements.
    """
    base, tuned = Checkpoint(family.base), Checkpoint(family.models[0])
    names = [n for n in base if len(base.shape(n)) > 1 and np.prod(base.shape(n)) <= LARGEST_ELEMS]
    names = [names[round(i * (len(names) - 1) / max(1, TENSORS - 1))] for i in range(min(TENSORS, len(names)))]
    zeros = tied = elems = ranks = 0
    for name in names:
        size = np.abs(tuned.float32(name) - base.float32(name)).reshape(-1)
        rank = max(1, int(DENSITY * size.size))
        cut = np.partition(size, size.size - rank)[size.size - rank]
        zeros, tied = zeros + int((size == 0).sum()), tied + int((size == cut).sum())
        elems, ranks = elems + size.size, ranks + rank
    return {"tensors": len(names), "elems": elems, "zeros": zeros / elems, "tied": tied / ranks}
