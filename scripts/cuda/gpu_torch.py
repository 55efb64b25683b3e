"""The same merges by PyTorch, for `gpu-bench`: as a program that uses it plainly would do them, on one device.

    gpu_torch.py elementwise --elems N --tensor N [--device cuda]
    gpu_torch.py cart --shapes vit-l-14|llama-8b|small --seconds S [--device cuda]

elementwise: a base and three bfloat16 fine-tunes, tensor by tensor, by task arithmetic, TIES and DARE with TIES (density 0.2): on data
that lies on the device (`resident`), and from page-locked memory to the device and back (`streamed`). Rates count what merganser's count.

cart: torch.linalg.svd of every centred matrix, as CART's authors do, in float32 without TF32. Each shape is measured for its share of
S seconds, at least once; what is not measured is taken to last as long as the median of its shape. The sum is of all matrices.

Prints a JSON object.
"""

import argparse
import json
import statistics
import time

import torch

MODELS = 3
DENSITY = 0.2
RANK_RATIO = 0.08
LAMBDA = 1.0
ROUNDS = 5
BASE, CHANGE = 0.03, 0.0128  # deviation of elements, and of a change over it

# By name: fine-tunes, and how many matrices a model has of each shape.
SHAPES = {
    "small": (3, {(64, 64): 4, (256, 64): 1, (64, 256): 1}),
    "vit-l-14": (8, {(1024, 1024): 4 * 24, (4096, 1024): 24, (1024, 4096): 24}),
    "llama-8b": (3, {(4096, 4096): 2 * 3, (1024, 4096): 2 * 3, (14336, 4096): 2 * 3, (4096, 14336): 3}),
}


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def task_arithmetic(base, models):
    total = sum(model.float() - base for model in models)
    return base + 0.5 * total


def cut(change):
    """The k-th largest magnitude, k a fifth of all."""
    magnitudes = change.abs().flatten()
    kept = max(1, int(DENSITY * magnitudes.numel()))
    return torch.kthvalue(magnitudes, magnitudes.numel() - kept + 1).values


def elected(base, changes):
    """The mean of the changes that have the sign of their sum."""
    sign = torch.sign(sum(changes))
    total = torch.zeros_like(base)
    count = torch.zeros_like(base)
    for change in changes:
        agrees = (torch.sign(change) == sign) & (change != 0)
        total += torch.where(agrees, change, torch.zeros_like(change))
        count += agrees
    return base + total / count.clamp(min=1)


def ties(base, models):
    changes = []
    for model in models:
        change = model.float() - base
        changes.append(torch.where(change.abs() >= cut(change), change, torch.zeros_like(change)))
    return elected(base, changes)


def dare_ties(base, models):
    changes = []
    for model in models:
        change = model.float() - base
        changes.append(change * (torch.rand_like(change) < DENSITY) / DENSITY)
    return elected(base, changes)


METHODS = {"task_arithmetic": task_arithmetic, "ties, density 0.2": ties, "dare_ties, density 0.2": dare_ties}


def family(elems, device):
    base = (torch.randn(elems, device=device) * BASE).bfloat16()
    return [base] + [(base.float() + torch.randn(elems, device=device) * BASE * CHANGE).bfloat16() for _ in range(MODELS)]


def merged(method, sources):
    return method(sources[0].float(), sources[1:]).bfloat16()


def median_seconds(action, device):
    action()
    seconds = []
    for _ in range(ROUNDS):
        synchronise(device)
        started = time.perf_counter()
        action()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def elementwise(options, device):
    tensor = min(options.tensor, options.elems)
    count = max(1, options.elems // tensor)
    tensors = [family(tensor, device) for _ in range(count)]
    held = [[source.cpu().pin_memory() if device.type == "cuda" else source.cpu() for source in sources] for sources in tensors]
    back = [torch.empty_like(sources[0]) for sources in held]
    if device.type == "cuda":
        back = [result.pin_memory() for result in back]
    source_bytes = (MODELS + 1) * tensor * 2 * count
    found = {}
    for name, method in METHODS.items():
        def resident():
            for sources in tensors:
                merged(method, sources)

        def streamed():
            for sources, result in zip(held, back):
                result.copy_(merged(method, [source.to(device, non_blocking=True) for source in sources]), non_blocking=True)

        on_device, whole = median_seconds(resident, device), median_seconds(streamed, device)
        found[name] = {"resident": source_bytes * (MODELS + 2) / (MODELS + 1) / on_device, "streamed": source_bytes / whole}
    return found


def cart(options, device):
    torch.backends.cuda.matmul.allow_tf32 = False
    models, shapes = SHAPES[options.shapes]
    per_task = {shape: shape[0] * shape[1] * min(shape) for shape in shapes}
    weight = sum(per_task[shape] * count for shape, count in shapes.items())
    total = 0.0
    measured = matrices = 0
    for shape, count in shapes.items():
        share = options.seconds * per_task[shape] * count / weight
        weights = [torch.randn(shape, device=device) * BASE * CHANGE for _ in range(min(models, 3))]
        average = sum(weights) / len(weights)
        rank = max(1, int(RANK_RATIO * min(shape)))
        result = average.clone()
        seconds, started = [], time.perf_counter()
        while len(seconds) < models * count and (not seconds or time.perf_counter() - started < share):
            synchronise(device)
            before = time.perf_counter()
            u, s, v = torch.linalg.svd(weights[len(seconds) % len(weights)] - average, full_matrices=False)
            result += LAMBDA * (u[:, :rank] * s[:rank]) @ v[:rank]
            synchronise(device)
            seconds.append(time.perf_counter() - before)
        # The first holds what the library prepares once.
        typical = statistics.median(seconds[1:] or seconds)
        total += typical * models * count
        measured += len(seconds)
        matrices += models * count
    return {"seconds": total, "measured": measured, "matrices": matrices}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["elementwise", "cart"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--elems", type=int, default=1 << 27)
    parser.add_argument("--tensor", type=int, default=1 << 24)
    parser.add_argument("--shapes", choices=SHAPES, default="small")
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device")
    torch.manual_seed(0)
    found = {"elementwise": elementwise, "cart": cart}[options.what](options, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(json.dumps({"torch": torch.__version__, "device": name, "found": found}))


if __name__ == "__main__":
    main()
