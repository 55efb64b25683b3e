"""What is merged and measured: single merges, the sweeps over each method, and the search in front of three of them."""

import json
import os
from dataclasses import dataclass

BASE = "pretrained"
TASKS = ("ng20", "r8", "debian", "wnnoun", "movie", "foldoc")


@dataclass(frozen=True)
class Setting:
    """One merge: a method, its parameters, perhaps the pruning stage, perhaps task vectors pruned at random beforehand.

    `method` is None for a model that is evaluated as it is, `source`. `stage` is None for no stage and () for the stage
    with the binary's own defaults. `random` is (granularity, share kept, seed).
    """

    method: str | None
    parameters: tuple = ()
    stage: tuple | None = None
    random: tuple | None = None
    source: str | None = None

    @property
    def key(self):
        """A name that says everything: what the results are listed under."""
        if self.method is None:
            return self.source
        words = [self.method] + [f"{name}={value}" for name, value in self.parameters]
        if self.stage is not None:
            words += ["| lwptv"] + ([f"{name}={value}" for name, value in self.stage] or ["defaults"])
        if self.random is not None:
            words += ["| random granularity={} keep={} seed={}".format(*self.random)]
        return " ".join(words)

    @property
    def curve(self):
        """The setting without its λ: settings that share this are points of one curve."""
        rest = tuple(pair for pair in self.parameters if pair[0] != "lambda")
        return Setting(self.method, rest, self.stage, self.random, self.source)

    @property
    def scale(self):
        """λ, or None."""
        return dict(self.parameters).get("lambda")

    def recipe(self, folder, models):
        """The recipe's text. `models` are the fine-tunes' paths."""
        lines = [f"merge_method: {self.method}", f"base_model: {json.dumps(os.path.join(folder, BASE + '.safetensors'))}", "models:"]
        lines += [f"  - model: {json.dumps(model)}" for model in models]
        if self.parameters:
            lines += ["parameters:"] + [f"  {name}: {value}" for name, value in self.parameters]
        if self.stage is not None:
            lines += ["task_vector_stages:", "  - stage: lwptv"]
            lines += ["    parameters:"] * bool(self.stage) + [f"      {name}: {value}" for name, value in self.stage]
        return "\n".join(lines) + "\n"


def sweep(method, scales, stage=None, random=None, **parameters):
    """One curve: the settings of `method` over λ."""
    return [Setting(method, tuple(parameters.items()) + (("lambda", scale),), stage, random) for scale in scales]


def prune(score, granularity, keep, order="keep_salient", rescale="none"):
    """The stage, with every parameter named."""
    return (("score", score), ("granularity", granularity), ("keep", keep), ("order", order), ("rescale", rescale))


SCORES = ("deviation", "magnitude", "relative", "agreement", "tall")
SEEDS = (1, 2, 3)

UNMERGED = [Setting(None, source=name) for name in (BASE, *TASKS)]

# The plain methods' curves: a base of every comparison, so the finest sweeps.
PLAIN = {
    "task_arithmetic": sweep("task_arithmetic", (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 1.0)),
    "ties": sweep("ties", (0.5, 0.75, 1.0, 1.25, 1.5), density=0.2),
    "cart": sweep("cart", (1.0, 1.5, 2.0, 2.5, 3.0, 4.0), rank_ratio=0.08),
}

# The rank ratio × λ map.
MAP_RATIOS, MAP_SCALES = (0.04, 0.08, 0.16, 0.32), (1.0, 2.0, 3.0, 4.0)
CART_MAP = [setting for ratio in MAP_RATIOS for setting in sweep("cart", MAP_SCALES, rank_ratio=ratio)]

# Every other method: its λs, and the parameters that its defaults leave without effect. A method that is not listed here is
# run with its defaults over GENERIC_SCALES, or once if it has no `lambda`.
OTHERS = {
    "linear": ((), {}),
    "dare_linear": ((0.3, 0.4), {"density": 0.5}),
    "dare_ties": ((0.3, 0.4, 0.5), {"density": 0.5}),
    "magmax": ((0.5, 0.75, 1.0), {}),
    "iso_c": ((1.0, 1.5, 2.0, 3.0), {}),
    "iso_cts": ((1.0, 1.5, 2.0, 3.0), {}),
    "low_rank": ((0.3, 0.4, 0.6), {"rank_ratio": 0.08}),
}
GENERIC_SCALES = (0.5, 1.0, 1.5)

# The stage with the binary's own defaults.
STAGED = {
    "task_arithmetic": sweep("task_arithmetic", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0), stage=()),
    "ties": sweep("ties", (0.75, 1.0, 1.25, 1.5), stage=(), density=0.2),
    "cart": sweep("cart", (1.0, 2.0, 3.0, 4.0), stage=(), rank_ratio=0.08),
}

# What the search finds best on this benchmark, which is not what the binary's defaults are.
FOUND = {
    "task_arithmetic": prune("deviation", "column", 0.6),
    "ties": prune("deviation", "column", 0.6),
    "cart": prune("deviation", "element", 0.6),
}


def by_method(methods):
    """{method: settings} for what `merganser methods --json` offers, and {method: why} for what cannot merge six models."""
    chosen, left_out = {}, {}
    for entry in methods:
        name = entry["name"]
        if entry["role"] != "method":
            continue
        if not entry["models"]["min"] <= len(TASKS) <= entry["models"]["max"]:
            left_out[name] = "merges {min} to {max} models, not ".format(**entry["models"]) + str(len(TASKS)) if entry["models"]["max"] > 1 else "takes one model"
        elif name in PLAIN:
            chosen[name] = PLAIN[name] + STAGED[name] + (CART_MAP if name == "cart" else [])
        else:
            has_scale = any(parameter["name"] == "lambda" for parameter in entry["parameters"])
            scales, parameters = OTHERS.get(name, (GENERIC_SCALES if has_scale else (), {}))
            chosen[name] = sweep(name, scales, **parameters) if scales else [Setting(name, tuple(parameters.items()))]
    return chosen, left_out


def search():
    """The search over the stage's parameters: coarse over everything, finer near the front, and the random controls."""
    settings = []

    def add(method, scales, *stages, random=None):
        fixed = dict(PLAIN[method][0].curve.parameters)
        for stage in stages or (None,):
            settings.extend(sweep(method, scales, stage, random, **fixed))

    for sweeps in PLAIN.values():
        settings.extend(sweeps)

    # Near the best of the coarse search: the share kept.
    for keep, scales in ((0.3, (0.7, 0.9, 1.1)), (0.45, (0.5, 0.6, 0.7, 0.8, 1.0)), (0.6, (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)),
                         (0.75, (0.4, 0.5, 0.6, 0.7, 0.8)), (0.9, (0.4, 0.5, 0.6))):
        add("task_arithmetic", scales, prune("deviation", "column", keep))
    add("task_arithmetic", (0.6,), prune("deviation", "layer", 0.67))
    # Restored norms, and the lowest scores instead of the highest.
    add("task_arithmetic", (0.4, 0.5), *(prune("deviation", "column", 0.6, rescale=norm) for norm in ("l1", "l2")))
    add("task_arithmetic", (0.5, 0.8), *(prune("deviation", granularity, 0.6, order="keep_redundant") for granularity in ("column", "element")))

    # Whole tensors by magnitude, as the defaults have it, and what is kept of them.
    whole = prune("magnitude", "tensor", 0.5)
    for method, scales in STAGED.items():
        add(method, [setting.scale for setting in scales], whole)
    add("task_arithmetic", (0.4, 0.6), prune("magnitude", "tensor", 0.5, order="keep_redundant"))
    add("task_arithmetic", (0.4, 0.5, 0.7), *(prune("magnitude", "tensor", keep) for keep in (0.35, 0.7)))

    # The control: as many columns, elements or tensors, drawn at random.
    for seed in SEEDS:
        add("task_arithmetic", (0.5, 0.7), random=("column", 0.6, seed))
        add("task_arithmetic", (0.4, 0.5, 0.6), random=("tensor", 0.5, seed))
    add("task_arithmetic", (0.5, 0.7), random=("element", 0.6, SEEDS[0]))

    # In front of the two other methods.
    add("ties", (0.75, 1.0, 1.25, 1.5), prune("deviation", "column", 0.6))
    add("ties", (1.0, 1.25), prune("deviation", "column", 0.75), prune("deviation", "element", 0.6))
    add("ties", (1.0, 1.25), random=("column", 0.6, SEEDS[0]))
    add("cart", (1.0, 2.0, 3.0, 4.0), prune("deviation", "column", 0.6))
    add("cart", (2.0, 3.0), prune("deviation", "column", 0.9))
    add("cart", (2.0, 3.0, 4.0), prune("deviation", "element", 0.6))
    add("cart", (2.0, 3.0), random=("column", 0.6, SEEDS[0]))

    # Every score by column and by element; by row, tensor and layer (a task has three, of which two are kept) the two scores
    # that did best.
    for granularity in ("column", "element", "row", "tensor", "layer"):
        keep = 0.67 if granularity == "layer" else 0.6
        scores = SCORES if granularity in ("column", "element") else SCORES[:2]
        add("task_arithmetic", (0.5, 0.7), *(prune(score, granularity, keep) for score in scores))
    return list(dict.fromkeys(settings))
