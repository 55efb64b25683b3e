"""The control: task vectors pruned at random, written as checkpoints of their own that merganser then merges.

Not a stage of the product. Columns are drawn anew for every tensor and model; of a vector, elements are drawn.
"""

import os
import zlib

import numpy as np

from checkpoint import STORAGE, Checkpoint, save


def kept(shape, granularity, keep, generator):
    """The mask: a share `keep`, as near as whole columns or elements allow."""
    drawn = shape[-1:] if granularity == "column" else shape
    count = int(np.prod(drawn))
    mask = np.zeros(count, dtype=bool)
    mask[generator.permutation(count)[: round(keep * count)]] = True
    return np.broadcast_to(mask.reshape(drawn), shape)


def prune(base_path, models, granularity, keep, seed, folder):
    """Writes every model with the base's numbers where its change is dropped; their paths, in order."""
    base, paths = Checkpoint(base_path), []
    for task, path in models.items():
        model, tensors = Checkpoint(path), {}
        for name in model:
            generator = np.random.default_rng([seed, zlib.crc32(task.encode()), zlib.crc32(name.encode())])
            mask = kept(model.shape(name), granularity, keep, generator)
            dtype = model.dtype(name)
            tensors[name] = (dtype, np.where(mask, model.raw(name), base.raw(name)).astype(STORAGE[dtype]))
        paths.append(os.path.join(folder, task + ".safetensors"))
        save(paths[-1], tensors)
    return paths
