"""Which matrices are decomposed, and the four low-rank methods on task vectors: float64, `numpy.linalg.svd`, by definition.

Singular values of a task vector, or of a sum of them, at or below max(rows, columns) · 2⁻⁵² · σ₁ are null: their directions
are rounding noise, and are left out. In what is computed from decompositions (directions side by side, what lies outside a
subspace) the noise is larger: singular vectors are known to 2⁻⁵² over the gaps of their spectrum. There half the digits count.
A result hangs on rounding where a kept singular value nearly equals the next one, or where a direction that a polar factor
makes as long as the others was nearly null. `case.margins` collects how far each choice was from that, relative to σ₁.
"""

import re

import numpy as np

PROJECTIONS = {
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "qkv_proj", "out_proj", "in_proj",
    "in_proj_weight", "query", "key", "value", "query_key_value", "fc1", "fc2", "c_attn", "c_fc", "c_proj",
}
NOT_IN_BLOCKS = {"lm_head", "head", "classifier", "score"}


def in_block(name):
    """Whether a matrix of this name is decomposed by default: attention, feed-forward part or projection of a block."""
    segments = name.lower().split(".")
    contains = lambda *words: any(word in segment for segment in segments for word in words)  # noqa: E731
    if contains("embed", "norm", "bias") or NOT_IN_BLOCKS.intersection(segments):
        return False
    pairs = set(zip(segments, segments[1:]))
    return (
        contains("attn", "attention", "mlp")
        or bool(PROJECTIONS.intersection(segments))
        or bool(pairs & {("intermediate", "dense"), ("output", "dense")})
    )


def is_eligible(case, shape):
    """Whether a tensor of this shape is decomposed: by name (the default rule, or the patterns of `eligible`), 2-D, not empty."""
    patterns = case.recipe.parameters.get("eligible")
    if patterns is None:
        chosen = in_block(case.name)
    else:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        chosen = any(re.search(pattern, case.name) for pattern in patterns)
    return chosen and len(shape) == 2 and 0 not in shape


def rank_kept(case, singular_values):
    """How many singular triples are kept."""
    ways = {key: case.shared(key) for key in ("rank_ratio", "energy", "rank")}
    given = [key for key, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"give at most one of rank_ratio, energy and rank, not {given}")
    most = len(singular_values)
    if given == ["energy"]:
        gathered = np.cumsum(singular_values**2)
        if gathered[-1] > 0:
            case.margins.append(float(np.min(np.abs(gathered / gathered[-1] - ways["energy"]))) if ways["energy"] < 1 else 1.0)
        # The last term is the total itself, so this always finds one; a total of 0 gives rank 1.
        return int(np.argmax(gathered >= ways["energy"] * gathered[-1])) + 1
    if given == ["rank"]:
        return min(int(ways["rank"]), most)
    ratio = ways["rank_ratio"] if given else 0.08
    return max(1, int(ratio * most))


DERIVED = 2.0**-26  # null in what is computed from decompositions, relative to what it was computed from
NOISE = 2.0**-40  # what is null there should be far below that; else the choice hangs on rounding


def is_null(case, matrix, s, derived_from=None):
    """Which singular values of a matrix are rounding noise. `derived_from`: size of what a derived matrix was computed from."""
    if derived_from is None:
        return s <= max(matrix.shape) * 2.0**-52 * s[0]
    null = s <= DERIVED * derived_from
    if (s[null] > NOISE * derived_from).any():
        case.margins.append(0.0)
    return null


def top(case, matrix, k, derived_from=None):
    """(U_k, σ_k, V_k) of the k largest singular values; a null one has zero columns. `k`: a number, or a function of σ."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    k = k(s) if callable(k) else k
    largest = s[0] if derived_from is None else derived_from
    null = is_null(case, matrix, s, derived_from)
    if 0 < k < len(s) and not null[k - 1]:
        case.margins.append(float((s[k - 1] - s[k]) / largest))
    u, s, vt = np.where(null, 0.0, u), np.where(null, 0.0, s), np.where(null[:, None], 0.0, vt)
    return u[:, :k], s[:k], vt[:k].T


def directions(case, matrix, k, derived_from=None):
    """As `top`, for what a polar factor makes orthonormal: there a small singular value counts as much as a large one."""
    u, s, v = top(case, matrix, k, derived_from)
    if s.any():
        case.margins.append(float(s[s > 0][-1] / (s[0] if derived_from is None else derived_from)))
    return u, s, v


def polar(case, matrix, derived=True):
    """(P Qᵀ over the singular values that are not null, all the singular values) of a matrix P S Qᵀ."""
    p, s, qt = np.linalg.svd(matrix, full_matrices=False)
    kept = ~is_null(case, matrix, s, s[0] if derived else None)
    if kept.any():
        case.margins.append(float(s[kept][-1] / s[0]))
    return p[:, kept] @ qt[kept], s


def scaled(weights, arrays):
    return [w * x for w, x in zip(weights, arrays)]


def add(case, merge):
    """θ₀ + λ · the weighted mean of the task vectors, or of an eligible matrix θ₀ + λ · merge(the weighted task vectors).

    The weights are scaled to mean 1. `merge` returns None for a matrix that is too small for it.
    """
    weights = case.per_model("weight")
    total = sum(weights)
    if total == 0:
        raise ValueError(f"{case.name}: the weights sum to 0")
    change = None
    if is_eligible(case, case.base.shape):
        change = merge(scaled([w * len(weights) / total for w in weights], case.deltas))
    if change is None:
        change = sum(scaled(weights, case.deltas), np.zeros_like(case.base)) / total
    return case.base + case.shared("lambda") * change


def low_rank(case):
    def merge(tasks):
        parts = [top(case, task, lambda s: rank_kept(case, s)) for task in tasks]
        return sum((u * s) @ v.T for u, s, v in parts)

    return add(case, merge)


def tsv_m(case):
    def merge(tasks):
        k = min(tasks[0].shape) // len(tasks)
        if k == 0:
            return None
        u, s, v = (np.concatenate(parts, axis=-1) for parts in zip(*(directions(case, task, k) for task in tasks)))
        return (polar(case, u)[0] * s) @ polar(case, v)[0].T

    return add(case, merge)


def iso_c(case):
    def merge(tasks):
        flat, s = polar(case, sum(tasks), derived=False)
        return s.mean() * flat

    return add(case, merge)


def iso_cts(case):
    def merge(tasks):
        r, t = min(tasks[0].shape), len(tasks)
        n = min(round((r - int(r * case.shared("common_space_fraction"))) / t), r // t)
        common = directions(case, sum(tasks), r - n * t)
        parts = []
        for task in tasks:
            rest = task - common[0] @ (common[0].T @ task)
            parts.append(directions(case, rest, n, derived_from=np.linalg.norm(task, 2)))
        u, s, v = (np.concatenate(columns, axis=-1) for columns in zip(*parts, common))
        return s.mean() * (polar(case, u)[0] @ polar(case, v)[0].T)

    return add(case, merge)
