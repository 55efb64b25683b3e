"""Methods that choose elements by an order over a tensor, a row or a model, by their definitions, in float64.

Where more than one element equals the last that is chosen, all are, but for ranks within rows, which go by position.
"""

import numpy as np

import philox

NEAR = 1e-6  # relative distance from a cut at which float32 may choose otherwise


def near(values, cut):
    """Elements that rounding may put on the other side of a cut: those close to it, but not those that equal it."""
    narrow = values.astype(np.float32)
    return (np.abs(values - cut) <= NEAR * abs(cut)) & (narrow != np.float32(cut))


def cut_of_model(case, model, density):
    """The magnitude at which TIES cuts all merged tensors of a model together."""
    sizes = np.concatenate([np.abs(deltas[model]).ravel() for deltas in case.whole().values()])
    if density <= 0 or density >= 1:
        return np.inf if density <= 0 else 0.0
    return np.sort(sizes)[sizes.size - max(1, int(density * sizes.size))]


def sums_exactly(deltas):
    """Where float32 computes Σ τ without any rounding, as it often does for changes of bfloat16 models."""
    narrow, wide, exact = np.float32(0), 0.0, True
    for delta in deltas:
        narrow = narrow + delta.astype(np.float32)
        wide = wide + delta
        exact = exact & (narrow == wide)
    return exact


def sce(case):
    deltas, share = case.deltas, case.shared("select_topk")
    doubtful = np.zeros(case.base.shape, dtype=bool)
    if share < 1:
        # Measured from the first model, so that equal ones differ by exactly nothing.
        offsets = [delta - deltas[0] for delta in deltas]
        spread = np.sqrt(sum((offset - sum(offsets) / len(offsets)) ** 2 for offset in offsets) / len(offsets))
        count = int(np.count_nonzero(spread) * share)
        if count <= 0:
            return case.base.copy()
        narrow = spread.astype(np.float32)
        cut = np.sort(narrow, axis=None)[spread.size - count]
        keep = narrow >= cut
        doubtful |= near(spread, float(cut))
        deltas = [np.where(keep, delta, 0.0) for delta in deltas]
    means = [float((delta**2).sum()) / max(1, delta.size) for delta in deltas]
    total = sum(means)
    weights = [1 / len(means)] * len(means) if abs(total) < 1e-6 else [mean / total for mean in means]
    votes = sum(deltas)
    elected = np.where(votes >= 0, 1.0, -1.0)
    agree = [np.sign(delta) == elected for delta in deltas]
    change = sum(np.where(a, w * d, 0.0) for a, w, d in zip(agree, weights, deltas))
    divisor = sum(np.where(a, w, 0.0) for a, w in zip(agree, weights))
    size = sum(np.abs(delta) for delta in deltas)
    doubtful |= (np.abs(votes) <= NEAR * size) & (size > 0) & ~sums_exactly(deltas)
    return case.base + change / np.maximum(divisor, 1e-6), doubtful


def dropped_by_rank(case):
    """Task vectors after DELLA's dropping: the smaller in its row, along the last dimension, the sooner."""
    if case.shared("rescale") in (True, False):
        rescale = "l1" if case.shared("rescale") else "none"
    else:
        rescale = case.shared("rescale")
    out = []
    shares = zip(case.deltas, case.per_model("density"), case.per_model("epsilon"))
    for model, (delta, density, epsilon) in enumerate(shares):
        if density <= 0 or density >= 1 or delta.size == 0:
            out.append(delta if density > 0 else np.zeros_like(delta))
            continue
        if not (0 < density - abs(epsilon) and density + abs(epsilon) < 1):
            raise ValueError(f"{case.name}: density {density} and epsilon {epsilon} give no probabilities")
        rows = delta.reshape(-1, delta.shape[-1]) if delta.ndim else delta.reshape(1, 1)
        count = rows.shape[1]
        ranks = np.argsort(np.argsort(np.abs(rows).astype(np.float32), axis=1, kind="stable"), axis=1, kind="stable")
        p = density - epsilon + 2 * epsilon * ranks / (count - 1) if count > 1 else np.full(rows.shape, density)
        words = philox.words(case.recipe.seed, case.name, model, delta.size).reshape(rows.shape)
        keep = words < np.floor(p * 2**32)
        kept = np.where(keep, rows / p if rescale == "inverse_p" else rows, 0.0).reshape(delta.shape)
        before, after = np.abs(delta).sum(), np.abs(kept).sum()
        out.append(kept * (before / after) if rescale == "l1" and before >= 1e-7 and after >= 1e-7 else kept)
    return out


def arcee_fusion(case):
    base, model = case.base, case.tuned()[0]
    delta = case.deltas[0]
    doubtful = np.zeros(base.shape, dtype=bool)
    if base.ndim == 0 or base.size == 0 or base.shape[-1] <= 1:
        return base + delta
    rows, theirs = base.reshape(-1, base.shape[-1]), model.reshape(-1, base.shape[-1])

    def softmax(x):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True) + 1e-8

    p, q = softmax(theirs), softmax(rows)
    divergence = np.maximum((p * np.log(p / q)).sum(axis=1, keepdims=True), 0.0)
    importance = (np.abs(delta).reshape(rows.shape) * divergence).reshape(base.shape)
    ordered = np.sort(importance, axis=None)
    first, median, third = (ordered[int(quantile * (ordered.size - 1))] for quantile in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (third - first)
    doubtful |= np.abs(importance - threshold) <= 1e-5 * abs(threshold)
    return base + np.where(importance >= threshold, delta, 0.0), doubtful & (importance > 0)


RULES = {"arcee_fusion": arcee_fusion, "sce": sce}
