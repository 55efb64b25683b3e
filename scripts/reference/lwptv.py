"""The stage `lwptv`: saliency scores, masks, rescaling, in float64 and by the definitions in their plainest form."""

import numpy as np

from recipe import layer_of

EPSILON = 1e-6  # in the element form of `relative`
F32 = 2.0**-24  # half a unit in the last place of float32, relative
COMPARES_MODELS = ("deviation", "agreement", "tall")


def kept_count(keep, units):
    """How many of so many units are kept."""
    if keep <= 0 or units == 0:
        return 0
    return units if keep >= 1 else max(1, int(keep * units))


def divide(numerator, denominator, otherwise):
    """Element-wise quotient, with `otherwise` where the denominator is 0."""
    zero = denominator == 0
    return np.where(zero, otherwise, numerator / np.where(zero, 1, denominator))


def element_scores(score, task, deltas, base):
    """Scores of a task's elements, and how far float32 arithmetic may be off each."""
    own, others = deltas[task], [d for s, d in enumerate(deltas) if s != task]
    size = np.abs(own)
    if score == "magnitude":
        return size, np.zeros_like(size)
    if score == "relative":
        value = size / (np.abs(base) + EPSILON)
        return value, 4 * F32 * value
    if score == "deviation":
        # The mean is a sum of rounded parts, so its error grows with the parts, not with the difference.
        mean = sum(deltas) / len(deltas)
        return np.abs(own - mean), 4 * F32 * (size + sum(np.abs(d) for d in deltas) / len(deltas))
    rest = sum(others)
    total = sum(np.abs(d) for d in others)
    if score == "agreement":
        return (1 + np.sign(own) * divide(rest, total, 0.0)) / 2, np.full_like(size, 4 * F32)
    if score == "tall":
        value = divide(size, size + np.abs(rest), 0.0)
        return value, 4 * F32 * divide(size + total, size + np.abs(rest), 0.0)
    raise ValueError(f"unknown score {score}")


def group_score(score, task, parts):
    """The score of several tensors as one unit; `parts` holds (deltas of every task, base) of each."""
    norm = lambda arrays: np.sqrt(sum(float((a * a).sum()) for a in arrays))  # noqa: E731
    own = norm(deltas[task] for deltas, _ in parts)
    base = norm(base for _, base in parts)

    def over_base(value):
        return value / base if base > 0 else (np.inf if value > 0 else 0.0)

    if score == "magnitude":
        count = sum(base.size for _, base in parts)
        return own / np.sqrt(count) if count else 0.0
    if score == "relative":
        return over_base(own)
    if score == "deviation":
        return over_base(norm(deltas[task] - sum(deltas) / len(deltas) for deltas, _ in parts))
    rest = [sum(d for s, d in enumerate(deltas) if s != task) for deltas, _ in parts]
    if score == "agreement":
        length = own * norm(rest)
        dot = sum(float((deltas[task] * other).sum()) for (deltas, _), other in zip(parts, rest))
        return (1 + dot / length) / 2 if length > 0 else 0.5
    if score == "tall":
        total = own + norm(rest)
        return own / total if total > 0 else 0.0
    raise ValueError(f"unknown score {score}")


def choose(scores, noise, keep, order, all_ties, exact):
    """(mask, doubtful) over units: the best `keep` of them. Doubtful: another rounding might choose otherwise."""
    count = kept_count(keep, scores.size)
    mask, doubtful = np.zeros(scores.size, dtype=bool), np.zeros(scores.size, dtype=bool)
    if count in (0, scores.size):
        mask[:] = count > 0
        return mask, doubtful
    signed = scores if order == "keep_salient" else -scores
    ranking = np.argsort(-signed, kind="stable")  # stable: of equal scores the lower index comes first
    cut = signed[ranking[count - 1]]
    if all_ties:
        mask[:] = signed >= cut
    else:
        mask[ranking[:count]] = True
    with np.errstate(invalid="ignore"):
        near = np.abs(signed - cut) <= noise + noise[ranking[count - 1]]
    if exact or cut in (0, -np.inf, np.inf):
        near &= signed != cut  # equal here means equal in any arithmetic
    crosses = (near & mask).any() and (near & ~mask).any()
    # Equal at the cut here, perhaps not elsewhere: only a matter where more than one element stands there.
    equal = all_ties and near.sum() > 1
    return mask, near if crosses or equal else doubtful


def inside_tensor(score, granularity, order, task, deltas, base, keep):
    """Mask of one tensor's elements, for the granularities that choose within a tensor."""
    value, noise = element_scores(score, task, deltas, base)
    exact = score in ("magnitude", "agreement")
    shape = base.shape
    if granularity == "element" or base.ndim < 2:
        mask, doubtful = choose(value.ravel(), noise.ravel(), keep, order, granularity == "element", exact)
        return mask.reshape(shape), doubtful.reshape(shape)
    axis = 0 if granularity == "row" else 1
    if base.size == 0:
        return np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    rest = tuple(i for i in range(base.ndim) if i != axis)
    scores = value.mean(axis=rest)
    # Sums may be ordered differently even where each term is exact.
    mask, doubtful = choose(scores, noise.mean(axis=rest) + 1e-12 * scores, keep, order, False, exact)
    along = [1] * base.ndim
    along[axis] = -1
    return np.broadcast_to(mask.reshape(along), shape), np.broadcast_to(doubtful.reshape(along), shape)


def across_tensors(score, order, task, keep, units, deltas, base):
    """{unit: (kept, doubtful)} for units of whole tensors, in order."""
    names = list(units)
    scores = np.array([group_score(score, task, [(deltas[n], base[n]) for n in units[u]]) for u in names])
    noise = 1e-6 * np.where(np.isfinite(scores), np.abs(scores), 0)
    if score == "deviation":  # again the error goes with the parts
        noise = noise + 1e-7
    mask, doubtful = choose(scores, noise, keep, order, False, score == "agreement")
    return {u: (bool(m), bool(d)) for u, m, d in zip(names, mask, doubtful)}


def apply(setting, deltas, base):
    """Prunes task vectors. `deltas`: {tensor: [one array a task]}, `base`: {tensor: array}, both in file order.

    `setting(key, tensor)` gives the stage's parameters. A tensor with keep = 1 is left alone, by rescaling too. Returns
    (pruned deltas, {tensor: doubtful elements}).
    """
    tasks = len(next(iter(deltas.values()), []))
    first = next(iter(deltas), "")
    score, granularity, order, rescale = (setting(k, first) for k in ("score", "granularity", "order", "rescale"))
    if score in COMPARES_MODELS and tasks < 2:
        raise ValueError(f"lwptv: score {score} compares models, and there is only one")
    keeps = {name: setting("keep", name) for name in deltas}
    if granularity in ("layer", "tensor") and len(set(keeps.values())) > 1:
        raise ValueError(f"lwptv: keep must be one number with granularity {granularity}")
    layers = {}
    for name in deltas:
        layers.setdefault(layer_of(name), []).append(name)
    units = layers if granularity == "layer" else {name: [name] for name in deltas}
    pruned = {name: list(arrays) for name, arrays in deltas.items()}
    doubtful = {name: np.zeros(array.shape, dtype=bool) for name, array in base.items()}
    for task in range(tasks):
        if granularity in ("layer", "tensor"):
            chosen = across_tensors(score, order, task, keeps[first], units, deltas, base) if keeps else {}
            masks = {n: chosen[u] for u, members in units.items() for n in members}
        else:
            masks = {n: inside_tensor(score, granularity, order, task, deltas[n], base[n], keeps[n]) for n in deltas}
        for name, (mask, unsure) in masks.items():
            doubtful[name] |= unsure
            pruned[name][task] = np.where(mask, deltas[name][task], 0.0)
        if rescale != "none":
            power = 1 if rescale == "l1" else 2
            for layer in layers.values():
                members = [name for name in layer if keeps[name] < 1]
                before = sum(float((np.abs(deltas[n][task]) ** power).sum()) for n in members)
                after = sum(float((np.abs(pruned[n][task]) ** power).sum()) for n in members)
                if after > 0 and after != before:
                    factor = (before / after) ** (1 / power)
                    for n in members:
                        pruned[n][task] = pruned[n][task] * factor
    return pruned, doubtful
