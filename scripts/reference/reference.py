"""Runs a recipe in float64: one `Merged` for every tensor of the output."""

import dataclasses
import functools
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import numpy as np  # noqa: E402

import lwptv  # noqa: E402
from recipe import Recipe  # noqa: E402
from rules import RULES, Case  # noqa: E402

__all__ = ["Merged", "Recipe", "merge"]

SURE = 1e-7  # below this margin a decomposition may keep other directions in another arithmetic: the tensor is set aside


@dataclasses.dataclass
class Merged:
    name: str
    dtype: str  # what the output stores
    copied: np.ndarray | None = None  # the stored numbers of a tensor that is copied
    value: np.ndarray | None = None  # the merged values, float64
    start: np.ndarray | None = None  # what the change is measured from: the base, or else the first model
    doubtful: np.ndarray | None = None  # elements where a choice hangs on rounding
    margin: float = 1.0  # how far the choices of decompositions were from rounding, relative to the largest singular value


def load(recipe, name):
    """(base, models, task vectors) of a tensor. Task vectors are subtracted in float32, as merganser does."""
    models = [model.float32(name) for model in recipe.models]
    base = recipe.base.float32(name) if recipe.base is not None else None
    for model, values in zip(recipe.models, models):
        if values.shape != recipe.lead.shape(name):
            raise ValueError(f"{model.path}: {name} has shape {values.shape}, not {recipe.lead.shape(name)}")
    deltas = None if base is None else [(values - base).astype(np.float64) for values in models]
    return (None if base is None else base.astype(np.float64)), [m.astype(np.float64) for m in models], deltas


def run_stages(recipe, names):
    """Task vectors of every merged tensor after all stages, and the doubtful elements."""
    bases, deltas = {}, {}
    for name in names:
        bases[name], _, deltas[name] = load(recipe, name)
    doubtful = {name: np.zeros(base.shape, dtype=bool) for name, base in bases.items()}
    for stage in recipe.stages:
        if stage[0] != "lwptv":
            raise ValueError(f"unknown stage {stage[0]}")
        # keep = 1 for everything: the stage is as if it were not there.
        if all(recipe.staged(stage, "keep", name) == 1 for name in names):
            continue
        deltas, unsure = lwptv.apply(lambda key, name: recipe.staged(stage, key, name), deltas, bases)
        for name in names:
            doubtful[name] |= unsure[name]
    return deltas, doubtful


def merge(recipe):
    """Yields every tensor of the output, in the lead's order."""
    names = [name for name in recipe.lead if not recipe.copied(name)]
    staged, unsure = run_stages(recipe, names) if recipe.stages else ({}, {})
    whole = functools.cache(lambda: staged if recipe.stages else {name: load(recipe, name)[2] for name in names})
    for name in recipe.lead:
        dtype = recipe.lead.dtype(name)
        if recipe.copied(name):
            yield Merged(name, dtype, copied=recipe.lead.raw(name))
            continue
        base, models, deltas = load(recipe, name)
        case = Case(recipe, name, base, models, staged.get(name, deltas), staged=bool(recipe.stages), whole=whole)
        result = RULES[recipe.method](case)
        value, doubtful = result if isinstance(result, tuple) else (result, np.zeros(result.shape, dtype=bool))
        if name in unsure:
            doubtful = doubtful | unsure[name]
        margin = min(case.margins, default=1.0)
        if margin < SURE:
            doubtful = np.ones(value.shape, dtype=bool)
        start = base if base is not None else models[0]
        yield Merged(name, recipe.out_dtype or dtype, value=np.asarray(value), start=start, doubtful=doubtful, margin=margin)
