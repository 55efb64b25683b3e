"""Recipes for the reference: YAML, and the value of a parameter for one tensor. Checks only what the reference needs."""

import os
import re

import yaml

from checkpoint import RECIPE_NAMES, Checkpoint

# Parameters of each method and stage with their defaults, as `src/methods` declares them. `...`: required.
DEFAULTS = {
    "linear": {"weight": 1.0, "normalize": True},
    "task_arithmetic": {"weight": 1.0, "lambda": 1.0, "normalize": False, "int8_mask": False},
    "ties": {"weight": 1.0, "density": 1.0, "lambda": 1.0, "normalize": True, "rescale": False, "scope": "tensor", "int8_mask": False},
    "dare_linear": {"weight": 1.0, "density": 1.0, "lambda": 1.0, "normalize": False, "rescale": True, "int8_mask": False},
    "dare_ties": {"weight": 1.0, "density": 1.0, "lambda": 1.0, "normalize": False, "rescale": True, "int8_mask": False},
    "breadcrumbs": {"weight": 1.0, "density": 1.0, "gamma": 0.01, "lambda": 1.0, "normalize": False, "rescale": False, "int8_mask": False},
    "breadcrumbs_ties": {"weight": 1.0, "density": 1.0, "gamma": 0.01, "lambda": 1.0, "normalize": False, "rescale": False, "int8_mask": False},
    "magmax": {"lambda": 1.0},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
    "slerp": {"t": ...},
    "nearswap": {"t": ...},
    "della_linear": {"weight": 1.0, "density": 1.0, "epsilon": 0.15, "lambda": 1.0, "normalize": False, "rescale": True, "int8_mask": False},
    "della": {"weight": 1.0, "density": 1.0, "epsilon": 0.15, "lambda": 1.0, "normalize": True, "rescale": True, "int8_mask": False},
    "arcee_fusion": {},
    "sce": {"select_topk": 1.0, "int8_mask": False},
    "model_stock": {"filter_wise": False, "clamp": False},
    "karcher": {"max_iter": 10.0, "tol": 1e-5},
    "multislerp": {"weight": ..., "normalize_weights": True, "eps": 1e-8},
    "nuslerp": {"weight": ..., "nuslerp_row_wise": False, "nuslerp_flatten": True},
    "passthrough": {"scale": None},
    "cart": {"weight": 1.0, "lambda": 2.0, "rank_ratio": None, "energy": None, "rank": None, "eligible": None},
    "low_rank": {"weight": 1.0, "lambda": 0.4, "rank_ratio": None, "energy": None, "rank": None, "eligible": None},
    "tsv_m": {"weight": 1.0, "lambda": 1.0, "eligible": None},
    "iso_c": {"weight": 1.0, "lambda": 1.0, "eligible": None},
    "iso_cts": {"weight": 1.0, "lambda": 1.0, "common_space_fraction": 0.8, "eligible": None},
    "lwptv": {"score": "magnitude", "granularity": "tensor", "keep": 0.5, "order": "keep_salient", "rescale": "none"},
}
NEEDS_BASE = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "magmax", "ram", "ramplus_tl", "slerp", "arcee_fusion", "sce", "della_linear", "della", "nearswap", "model_stock", "low_rank", "tsv_m", "iso_c", "iso_cts")
# How near merganser comes to the reference, relative to the size of the change: methods that keep a part of a spectrum
# depend on its gap.
TOLERANCES = {"cart": 1e-4, "low_rank": 1e-4}


def block_of(name):
    """(prefix, index) of the transformer block that a tensor is in: its first all-digit segment with others around it."""
    segments = name.split(".")
    for i in range(1, len(segments) - 1):
        if segments[i].isascii() and segments[i].isdigit():
            return ".".join(segments[:i]), int(segments[i])
    return None


def layer_of(name):
    """The layer that a tensor is pruned with: its block, or else its module."""
    block = block_of(name)
    return f"{block[0]}.{block[1]}" if block else name.rpartition(".")[0] if "." in name else name


def is_scalar(value):
    return isinstance(value, (bool, int, float, str))


def evaluate(setting, tensor, t, number):
    """A setting's value for one tensor: first matching filter, then the gradient; None where nothing applies."""
    if isinstance(setting, dict):
        setting = [setting]
    if is_scalar(setting):
        return float(setting) if number else setting
    if all(is_scalar(value) for value in setting):
        if not setting:
            return None
        place = t * (len(setting) - 1)
        low = int(place)
        if not number:
            return setting[low]
        high, part = min(low + 1, len(setting) - 1), place - low
        return (1 - part) * float(setting[low]) + part * float(setting[high])
    for rule in setting:
        if rule.get("filter") in (None, "*") or rule["filter"] in tensor:
            return evaluate(rule["value"], tensor, t, number)
    return None


class Recipe:
    def __init__(self, path, seed=0):
        with open(path, encoding="utf-8") as handle:
            data = yaml.safe_load(handle)
        folder = os.path.dirname(os.path.abspath(path))
        self.seed = seed
        self.method = data["merge_method"]
        if self.method not in DEFAULTS or self.method == "lwptv":
            raise ValueError(f"unknown merge_method {self.method}")
        locate = lambda written: os.path.normpath(os.path.join(folder, written))  # noqa: E731
        base_path = locate(data["base_model"]) if data.get("base_model") else None
        self.parameters = data.get("parameters") or {}
        self.base = Checkpoint(base_path) if base_path else None
        self.models, self.model_parameters = [], []
        self.base_entry = None  # (place, parameters) of the base where it stands in `models`
        for place, entry in enumerate(data["models"]):
            own = entry.get("parameters") or {}
            if locate(entry["model"]) == base_path:
                self.base_entry = (place, own)
                continue
            self.models.append(Checkpoint(locate(entry["model"])))
            self.model_parameters.append(own)
        self.stages = [(stage["stage"], stage.get("parameters") or {}) for stage in data.get("task_vector_stages") or []]
        copy = data.get("copy") or []
        self.copy = [re.compile(pattern) for pattern in ([copy] if isinstance(copy, str) else copy)]
        stored = data.get("out_dtype") or data.get("dtype")
        self.out_dtype = RECIPE_NAMES[stored] if stored else None
        if (self.method in NEEDS_BASE or self.stages) and self.base is None:
            raise ValueError("this recipe needs a base_model")
        if self.method == "passthrough" and not self.models:
            self.models, self.model_parameters = [self.base], [self.base_entry[1]]
        if self.method in ("slerp", "nearswap", "arcee_fusion", "passthrough") and len(self.models) != 1:
            raise ValueError(f"{self.method} takes one model besides the base")
        self.tolerance = TOLERANCES.get(self.method, 1e-5)
        self.depth = {}  # blocks under each prefix, counted as the highest index plus one
        for name in self.lead:
            if block := block_of(name):
                self.depth[block[0]] = max(self.depth.get(block[0], 0), block[1] + 1)

    @property
    def lead(self):
        """The checkpoint that says which tensors there are: the base, or else the first model."""
        return self.base if self.base is not None else self.models[0]

    def place_of(self, tensor):
        """How far through its layers a tensor stands: 0 for the first and for what is in none, 1 for the last."""
        block = block_of(tensor)
        if not block:
            return 0.0
        depth = self.depth[block[0]]
        return block[1] / (depth - 1) if depth > 1 else 1.0

    def value(self, key, tensor, sources, owner=None):
        """A parameter for one tensor, from the first of `sources` that gives it, or else the default."""
        default = DEFAULTS[owner or self.method][key]
        number = isinstance(default, float) or key in ("t", "weight", "scale", "rank_ratio", "energy", "rank")
        for source in sources:
            if source.get(key) is not None:
                value = evaluate(source[key], tensor, self.place_of(tensor), number)
                if value is not None:
                    return value
        if default is ...:
            raise ValueError(f"{self.method} needs `{key}` (for {tensor})")
        return default

    def shared(self, key, tensor):
        return self.value(key, tensor, [self.parameters])

    def per_model(self, key, tensor):
        return [self.value(key, tensor, [own, self.parameters]) for own in self.model_parameters]

    def staged(self, stage, key, tensor):
        return self.value(key, tensor, [stage[1]], owner=stage[0])

    def copied(self, name):
        """Whether the lead's bytes are taken as they are."""
        return not self.lead.is_float(name) or any(pattern.fullmatch(name) for pattern in self.copy)
