"""Methods whose coefficients follow from lengths of vectors and angles between them, by their definitions, in float64.

Each works on whole vectors: the Rust code has only their products.
"""

import numpy as np


def length(x):
    return float(np.sqrt((x * x).sum()))


def is_finite(vectors):
    return all(np.isfinite(x).all() for x in vectors)


def per_vector(shape, axis, vectors, rule):
    """`rule` on whole tensors (axis None), or on each vector along an axis; a tensor of one dimension is one vector."""
    if axis is None or len(shape) < 2:
        return rule([x.ravel() for x in vectors]).reshape(shape)
    moved = [np.moveaxis(x, axis, -1) for x in vectors]
    out = np.empty_like(moved[0])
    for at in np.ndindex(out.shape[:-1]):
        out[at] = rule([x[at] for x in moved])
    return np.moveaxis(out, -1, axis)


def model_stock(case):
    def rule(deltas):
        count, cosines = len(deltas), []
        for i in range(count):
            for j in range(i + 1, count):
                norms = max(length(deltas[i]) * length(deltas[j]), 1e-6)
                cosines.append(min(1.0, max(-1.0, float((deltas[i] * deltas[j]).sum()) / norms)))
        cosine = sum(cosines) / len(cosines)
        if case.shared("clamp"):
            cosine = max(cosine, 0.0)
        divisor = 1 + (count - 1) * cosine
        t = 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor
        return t * sum(deltas) / count

    axis = -1 if case.shared("filter_wise") else None
    return case.base + per_vector(case.base.shape, axis, case.deltas, rule)


def with_base(case):
    """The models as stages leave them, and the base, which is one of them where there is one: where it is listed, or last."""
    models = list(case.tuned())
    if case.base is not None:
        entry = case.recipe.base_entry
        models.insert(len(models) if entry is None else entry[0], case.base)
    return models


def karcher(case):
    steps, least = int(case.shared("max_iter")), case.shared("tol")

    def rule(models):
        norms = [length(x) for x in models]
        units = [x / n for x, n in zip(models, norms) if n > least]
        if not units:
            return np.zeros_like(models[0])
        share = 1 / len(units)
        mean = sum(units) * share
        u = mean / length(mean) if length(mean) >= least else units[0]
        for _ in range(steps):
            tangent = np.zeros_like(u)
            for v in units:
                cosine = min(1.0, max(-1.0, float((u * v).sum())))
                # Of near vectors the arc cosine has half the digits: the angle from the part that is across.
                angle = float(np.arctan2(length(v - cosine * u), cosine))
                if angle >= least and np.sin(angle) >= 1e-7:  # there is no shortest way to the opposite
                    tangent += share * angle / np.sin(angle) * (v - np.cos(angle) * u)
            step = length(tangent)
            if step < least:
                break
            u = np.cos(step) * u + np.sin(step) * tangent / step
            u = u / length(u)
        return u * (sum(norms) / len(norms))

    models = with_base(case)
    return per_vector(models[0].shape, None, models, rule)


def multislerp(case):
    vectors = case.models if case.base is None else case.deltas
    start = 0.0 if case.base is None else case.base
    weights, eps = case.per_model("weight"), case.shared("eps")
    if case.shared("normalize_weights"):
        weights = [w / sum(weights) for w in weights]

    def rule(vectors):
        if len(vectors) == 1:
            return vectors[0]
        norms = [length(x) for x in vectors]
        mean = sum(w * x / (n + eps) for w, x, n in zip(weights, vectors, norms))
        size = length(mean)
        if size >= eps:
            return sum(w * n for w, n in zip(weights, norms)) * mean / size
        if len(vectors) == 2:
            return sum(w * x for w, x in zip(weights, vectors))
        return np.zeros_like(vectors[0])

    return start + per_vector(vectors[0].shape, None, vectors, rule)


def nuslerp(case):
    vectors = case.models if case.base is None else case.deltas
    start = 0.0 if case.base is None else case.base
    first, second = case.per_model("weight")
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)

    def rule(vectors):
        a, b = vectors
        norms = [max(length(a), 1e-7), max(length(b), 1e-7)]
        cosine = min(1.0, max(-1.0, float((a * b).sum()) / (norms[0] * norms[1])))
        sine = np.sqrt(1 - cosine * cosine)
        if sine < 1e-6:
            return (1 - t) * a + t * b
        angle = np.arctan2(sine, cosine)
        return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / sine

    axis = None if case.shared("nuslerp_flatten") else 0 if case.shared("nuslerp_row_wise") else -1
    return start + per_vector(vectors[0].shape, axis, vectors, rule)


RULES = {"model_stock": model_stock, "karcher": karcher, "multislerp": multislerp, "nuslerp": nuslerp}
