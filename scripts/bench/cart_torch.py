"""CART as its authors compute it, with torch.linalg.svd of every centred matrix: for `bench/cart`.

    cart_torch.py OUT RANK_RATIO LAMBDA THREADS MODEL.safetensors …

Writes the merged matrices and averages to OUT, and prints a JSON object: seconds of the arithmetic in all and of the SVDs alone.
"""

import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import torch  # noqa: E402

from checkpoint import Checkpoint, save  # noqa: E402


def main():
    out, ratio, scale, threads = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    models = [Checkpoint(path) for path in sys.argv[5:]]
    merged = {}
    seconds = svd_seconds = 0.0
    matrices = 0
    for name in models[0]:
        weights = [torch.from_numpy(model.float32(name).copy()) for model in models]
        started = time.perf_counter()
        average = sum(weights) / len(weights)
        total = average.clone()
        if average.ndim == 2:
            rank = max(1, int(ratio * min(average.shape)))
            for weight in weights:
                before = time.perf_counter()
                u, s, v = torch.linalg.svd(weight - average, full_matrices=False)
                svd_seconds += time.perf_counter() - before
                total += scale * (u[:, :rank] * s[:rank]) @ v[:rank]
                matrices += 1
        seconds += time.perf_counter() - started
        merged[name] = ("F32", total.numpy())
    save(out, merged)
    print(json.dumps({"seconds": seconds, "svd_seconds": svd_seconds, "matrices": matrices, "version": torch.__version__}))


if __name__ == "__main__":
    main()
