"""Every merging method on one tensor, in float64 and by its definition. Independent of the Rust code.

A rule takes a `Case` and returns the merged values, or (values, doubtful): `doubtful` marks the elements where a choice
hangs on rounding, which a comparison sets aside.
"""

import dataclasses

import numpy as np

import angles
import philox
import selections
from spectral import is_eligible, iso_c, iso_cts, low_rank, rank_kept, top, tsv_m


@dataclasses.dataclass
class Case:
    """What a rule sees of one tensor. Sources are widened to float32 first, as merganser does, then to float64."""

    recipe: object
    name: str
    base: np.ndarray | None
    models: list  # the fine-tunes' values, pruning not applied
    deltas: list | None  # task vectors after the stages; None without a base
    staged: bool
    whole: object = None  # gives the task vectors of every merged tensor: {name: deltas}
    margins: list = dataclasses.field(default_factory=list)  # how far the choices of decompositions were from rounding

    def shared(self, key):
        return self.recipe.shared(key, self.name)

    def per_model(self, key):
        return self.recipe.per_model(key, self.name)

    def tuned(self):
        """The fine-tunes as the stages leave them."""
        return [self.base + delta for delta in self.deltas] if self.staged else self.models


def scaled_sum(weights, arrays):
    """Σ w x, in model order."""
    return sum((w * x for w, x in zip(weights, arrays)), np.zeros_like(arrays[0]))


def averaged(case):
    """(weights, models) of who is averaged: the fine-tunes, and the base where it stands among `models`."""
    weights, models = case.per_model("weight"), case.tuned()
    if case.recipe.base_entry is not None:
        place, own = case.recipe.base_entry
        weights.insert(place, case.recipe.value("weight", case.name, [own, case.recipe.parameters]))
        models = models[:place] + [case.base] + models[place:]
    return weights, models


def average(case, weights, models):
    """Σ w θ / Σ w; after a stage as the base plus a change, so that what every task dropped is the base's value exactly."""
    total = sum(weights)
    if total == 0:
        raise ValueError(f"{case.name}: the weights sum to 0")
    if case.staged:
        return case.base + scaled_sum(weights, [model - case.base for model in models]) / total
    return scaled_sum(weights, models) / total


def linear(case):
    weights, models = averaged(case)
    recipe = case.recipe
    if recipe.base is not None and recipe.base_entry is None and "weight" in recipe.parameters:
        weights, models = weights + [case.shared("weight")], models + [case.base]
    return average(case, weights, models) if case.shared("normalize") else scaled_sum(weights, models)


def add_summed(case, deltas):
    """Task arithmetic on given task vectors."""
    weights = case.per_model("weight")
    change = scaled_sum(weights, deltas)
    if case.shared("normalize"):
        total = sum(weights)
        change = change / (1 if abs(total) < 1e-8 else total)
    return case.base + case.shared("lambda") * change


def sums_exactly(weights, deltas):
    """Where float32 computes Σ w τ without any rounding, as it often does for changes of bfloat16 models."""
    narrow, wide, exact = np.float32(0), 0.0, True
    for weight, delta in zip(weights, deltas):
        narrow = narrow + np.float32(weight) * delta.astype(np.float32)
        wide = wide + weight * delta
        exact = exact & (np.float32(weight) * delta.astype(np.float32) == weight * delta) & (narrow == wide)
    return exact


def add_elected(case, deltas):
    """The sign election and disjoint mean of TIES on given task vectors."""
    weights = case.per_model("weight")
    weighted = [w * d for w, d in zip(weights, deltas)]
    total = sum(weighted)
    size = sum(np.abs(d) for d in weighted)
    elected = np.where(total >= 0, 1.0, -1.0)
    agree = [np.sign(d) == elected for d in weighted]
    change = sum(np.where(a, d, 0.0) for a, d in zip(agree, weighted))
    if case.shared("normalize"):
        divisor = sum(np.where(a, w, 0.0) for a, w in zip(agree, weights))
        change = change / np.where(divisor == 0, 1.0, divisor)
    # Near zero, rounding decides the sign, unless float32 makes no rounding error on the way.
    doubtful = (np.abs(total) <= 1e-6 * size) & (size > 0) & ~sums_exactly(weights, deltas)
    return case.base + case.shared("lambda") * change, doubtful


def trim(delta, density):
    """Keeps the `density` largest magnitudes, and all that equal the smallest kept."""
    if density >= 1 or delta.size == 0:
        return delta
    if density <= 0:
        return np.zeros_like(delta)
    count = max(1, int(density * delta.size))
    size = np.abs(delta)
    cut = np.sort(size, axis=None)[delta.size - count]
    return np.where(size >= cut, delta, 0.0)


def restored(kept, delta, density, rescale):
    """What is kept, rescaled as `rescale` says."""
    if rescale == "l1":
        before, after = np.abs(delta).sum(), np.abs(kept).sum()
        return kept * (before / after) if before >= 1e-7 and after >= 1e-7 else kept
    return kept / density if rescale == "inverse_p" and 0 < density < 1 else kept


def rescale_of(case, truth):
    value = case.shared("rescale")
    return truth if value is True else "none" if value is False else value


def ties(case):
    trimmed = []
    for model, (delta, density) in enumerate(zip(case.deltas, case.per_model("density"))):
        if case.shared("scope") == "model":
            kept = np.where(np.abs(delta) >= selections.cut_of_model(case, model, density), delta, 0.0)
        else:
            kept = trim(delta, density)
        trimmed.append(restored(kept, delta, density, rescale_of(case, "l1")))
    return add_elected(case, trimmed)


def band(delta, density, gamma):
    """Without the `gamma` largest magnitudes and the smallest, so that `density` stays, and all that equal an end of what stays."""
    if density >= 1:
        return delta
    count, top = int(density * delta.size), int(gamma * delta.size)
    if count <= 0:
        return np.zeros_like(delta)
    below = max(0, delta.size - count - top)
    size = np.abs(delta)
    ordered = np.sort(size, axis=None)
    return np.where((size >= ordered[below]) & (size <= ordered[below + count - 1]), delta, 0.0)


def bands(case):
    """Task vectors as `breadcrumbs` leaves them."""
    shares = zip(case.deltas, case.per_model("density"), case.per_model("gamma"))
    rescale = rescale_of(case, "l1")
    return [restored(band(delta, density, gamma), delta, density, rescale) for delta, density, gamma in shares]


def ram(case, weights):
    """The mean of the task vectors that changed an element; of what one alone changed, its change times its weight."""
    least = case.shared("epsilon")
    changed = [~(np.abs(delta) <= least) for delta in case.deltas]
    # Next to epsilon, float32's rounding decides.
    doubtful = sum(np.abs(np.abs(delta) - least) <= 1e-6 * least for delta in case.deltas) > 0
    count = sum(mask.astype(float) for mask in changed)
    total = sum(np.where(mask, np.where(count == 1, w * delta, delta), 0.0) for mask, delta, w in zip(changed, case.deltas, weights(changed, count)))
    return case.base + total / np.maximum(count, 1.0), doubtful


def alone_weights(case):
    """What `ramplus_tl` multiplies a model's own changes by, from how many of its changed elements others changed too."""
    def weights(changed, count):
        out = []
        for mask in changed:
            alone, shared = float((mask & (count == 1)).sum()), float((mask & (count > 1)).sum())
            out.append(1 + case.shared("r") * min(max(shared / max(alone, case.shared("epsilon")), 0.0), case.shared("alpha")))
        return out

    return weights


def nearswap(case):
    (delta,) = case.deltas
    return case.base + delta * np.clip(case.shared("t") / np.maximum(np.abs(delta), 1e-6), 0.0, 1.0)


def dropped(case):
    """Task vectors after DARE's random dropping."""
    out = []
    for model, (delta, density) in enumerate(zip(case.deltas, case.per_model("density"))):
        keep = philox.kept(case.recipe.seed, case.name, model, delta.size, density).reshape(delta.shape)
        out.append(restored(np.where(keep, delta, 0.0), delta, density, rescale_of(case, "inverse_p")))
    return out


def magmax(case):
    best = case.deltas[0]
    for delta in case.deltas[1:]:
        best = np.where(np.abs(delta) >= np.abs(best), delta, best)
    return case.base + case.shared("lambda") * best


def slerp(case):
    t, a, b = case.shared("t"), case.base, case.models[0]
    length = lambda x: (lambda n: n if n > 1e-8 else 1.0)(float(np.sqrt((x * x).sum())))  # noqa: E731
    cosine = float(np.clip(((a / length(a)) * (b / length(b))).sum(), -1, 1))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def passthrough(case):
    scale = case.per_model("scale")[0]
    return case.models[0] if scale is None else case.models[0] * scale


def cart(case):
    weights, models = averaged(case)
    mean, total = average(case, weights, models), sum(weights)
    if not is_eligible(case, mean.shape):
        return mean
    change = np.zeros_like(mean)
    for weight, model in zip(weights, models):
        u, s, v = top(case, model - mean, lambda s: rank_kept(case, s))
        change += (weight * len(weights) / total) * ((u * s) @ v.T)
    return mean + case.shared("lambda") * change


RULES = {
    "linear": linear,
    "task_arithmetic": lambda case: add_summed(case, case.deltas),
    "ties": ties,
    "dare_linear": lambda case: add_summed(case, dropped(case)),
    "dare_ties": lambda case: add_elected(case, dropped(case)),
    "breadcrumbs": lambda case: add_summed(case, bands(case)),
    "breadcrumbs_ties": lambda case: add_elected(case, bands(case)),
    "della_linear": lambda case: add_summed(case, selections.dropped_by_rank(case)),
    "della": lambda case: add_elected(case, selections.dropped_by_rank(case)),
    "magmax": magmax,
    "ram": lambda case: ram(case, lambda changed, count: [1.0] * len(changed)),
    "ramplus_tl": lambda case: ram(case, alone_weights(case)),
    "slerp": slerp,
    "nearswap": nearswap,
    "passthrough": passthrough,
    **angles.RULES,
    **selections.RULES,
    "cart": cart,
    "low_rank": low_rank,
    "tsv_m": tsv_m,
    "iso_c": iso_c,
    "iso_cts": iso_cts,
}
