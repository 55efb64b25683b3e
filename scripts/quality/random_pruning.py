"""The control: task vectors pruned at random, written as checkpoints of their own that merganser then merges.

Not a stage of the product. Columns and elements are drawn anew for every tensor and model, of a vector elements; whole
tensors are drawn anew for every model.
"""

import os
import zlib

import numpy as np

from checkpoint import STORAGE, Checkpoint, save


def draw(count, keep, generator):
    """A mask of `count`, of which a share `keep` is kept, as near as whole ones allow."""
    mask = np.zeros(count, dtype=bool)
    mask[generator.permutation(count)[: round(keep * count)]] = True
    return mask


def kept(shape, granularity, keep, generator):
    """The mask of one tensor's elements."""
    drawn = shape[-1:] if granularity == "column" else shape
    return np.broadcast_to(draw(int(np.prod(drawn)), keep, generator).reshape(drawn), shape)


def prune(base_path, models, granularity, keep, seed, folder):
    """Writes every model with the base's numbers where its change is dropped; their paths, in order."""
    base, paths = Checkpoint(base_path), []
    for task, path in models.items():
        model, tensors = Checkpoint(path), {}
        names, of_task = list(model), [seed, zlib.crc32(task.encode())]
        whole = dict(zip(names, draw(len(names), keep, np.random.default_rng(of_task))))
        for name in names:
            generator = np.random.default_rng([*of_task, zlib.crc32(name.encode())])
            mask = whole[name] if granularity == "tensor" else kept(model.shape(name), granularity, keep, generator)
            dtype = model.dtype(name)
            tensors[name] = (dtype, np.where(mask, model.raw(name), base.raw(name)).astype(STORAGE[dtype]))
        paths.append(os.path.join(folder, task + ".safetensors"))
        save(paths[-1], tensors)
    return paths
