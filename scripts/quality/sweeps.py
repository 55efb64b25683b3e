"""What is measured on each benchmark: every method over λ, the map of `cart`, and the search for the stage `lwptv`.

λ is swept around what suits each benchmark: eight fine-tunes that interfere want smaller ones than six.
"""

from dataclasses import dataclass, field

from benchmark import BASE
from settings import Setting, prune, sweep

SEEDS = (1, 2, 3)
MAP_RATIOS = (0.04, 0.08, 0.16, 0.32)

# The parameters without which a method would prune nothing, and those of every curve of `cart`, `ties` and `low_rank`.
FIXED = {
    "breadcrumbs": {"density": 0.8, "gamma": 0.02},
    "breadcrumbs_ties": {"density": 0.8, "gamma": 0.02},
    "cart": {"rank_ratio": 0.08},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5},
    "della_linear": {"density": 0.5},
    "low_rank": {"rank_ratio": 0.08},
    "sce": {"select_topk": 0.5},
    "ties": {"density": 0.2},
}


@dataclass(frozen=True)
class Sweeps:
    """The settings of one benchmark."""

    plain: dict  # of the three methods that stages are put in front of, λs
    staged: dict  # of the same with the stage's defaults
    map_scales: tuple  # λs of the map over rank ratios of `cart`
    others: dict  # λs of the other methods
    generic: tuple  # λs of a method that is not named here
    found: dict  # the stage that a search found best here, which need not be the default
    common_id: float  # an ID accuracy at which methods are compared: about the best of the weakest of them
    search: tuple = field(repr=False, default=())  # (method, λs, stage or None, random pruning or None)

    def curve(self, method, scales, stage=None, random=None, **parameters):
        return sweep(method, scales, stage, random, **(FIXED.get(method, {}) | parameters))

    def plain_of(self, method):
        return self.curve(method, self.plain[method])

    def staged_of(self, method):
        return self.curve(method, self.staged[method], stage=())

    def map(self):
        return [setting for ratio in MAP_RATIOS for setting in self.curve("cart", self.map_scales, rank_ratio=ratio)]

    def by_method(self, methods, models):
        """{method: settings} for what `merganser methods --json` offers, and {method: why} for what cannot merge so many models."""
        chosen, left_out = {}, {}
        for entry in methods:
            name, bounds = entry["name"], entry["models"]
            if entry["role"] != "method":
                continue
            if not bounds["min"] <= models <= bounds["max"]:
                left_out[name] = "takes one model" if bounds["max"] == 1 else f"merges {bounds['min']} to {bounds['max']} models, not {models}"
            elif name in self.plain:
                chosen[name] = self.plain_of(name) + self.staged_of(name) + (self.map() if name == "cart" else [])
            elif any(parameter["required"] and parameter["name"] != "weight" for parameter in entry["parameters"]):
                left_out[name] = "needs a parameter without a default"
            else:
                has_scale = any(parameter["name"] == "lambda" for parameter in entry["parameters"])
                needed = {parameter["name"]: 1.0 for parameter in entry["parameters"] if parameter["required"]} | FIXED.get(name, {})
                scales = self.others.get(name, self.generic)
                chosen[name] = sweep(name, scales, **needed) if has_scale else [Setting(name, tuple(needed.items()))]
        return chosen, left_out

    def searched(self):
        """The search over the stage's parameters and the random controls, with the plain curves that they are held against."""
        settings = [setting for method in self.plain for setting in self.plain_of(method)]
        for method, scales, stage, random in self.search:
            settings += self.curve(method, scales, stage, random)
        return list(dict.fromkeys(settings))


def unmerged(models):
    return [Setting(None, source=name) for name in (BASE, *models)]


def stages(method, scales, *parameters):
    return [(method, scales, stage, None) for stage in parameters]


def at_random(method, scales, granularity, keep, seeds=SEEDS):
    return [(method, scales, None, (granularity, keep, seed)) for seed in seeds]


SCORES = ("deviation", "magnitude", "relative", "agreement", "tall")
WHOLE = prune("magnitude", "tensor", 0.5)

TEXT_STAGED = {"task_arithmetic": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "ties": (0.75, 1.0, 1.25, 1.5), "cart": (1.0, 2.0, 3.0, 4.0)}

TEXT = Sweeps(
    plain={"task_arithmetic": (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 1.0), "ties": (0.5, 0.75, 1.0, 1.25, 1.5),
           "cart": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)},
    staged=TEXT_STAGED,
    map_scales=(1.0, 2.0, 3.0, 4.0),
    others={"breadcrumbs": (0.2, 0.3, 0.4, 0.5), "breadcrumbs_ties": (0.3, 0.5, 0.7), "dare_linear": (0.3, 0.4, 0.5), "dare_ties": (0.3, 0.4, 0.5),
            "della": (0.5, 1.0, 1.5), "della_linear": (0.3, 0.4, 0.5), "magmax": (0.5, 0.75, 1.0, 1.25), "iso_c": (1.0, 1.5, 2.0, 3.0, 4.0),
            "iso_cts": (1.0, 1.5, 2.0, 3.0, 4.0), "low_rank": (0.3, 0.4, 0.6)},
    generic=(0.5, 1.0, 1.5),
    found={"task_arithmetic": prune("deviation", "column", 0.6), "ties": prune("deviation", "column", 0.6),
           "cart": prune("deviation", "element", 0.6)},
    common_id=69.0,
    search=(
        # By column, and the share kept.
        *stages("task_arithmetic", (0.7, 0.9, 1.1), prune("deviation", "column", 0.3)),
        *stages("task_arithmetic", (0.5, 0.6, 0.7, 0.8, 1.0), prune("deviation", "column", 0.45)),
        *stages("task_arithmetic", (0.4, 0.5, 0.6, 0.7, 0.8, 1.0), prune("deviation", "column", 0.6)),
        *stages("task_arithmetic", (0.4, 0.5, 0.6, 0.7, 0.8), prune("deviation", "column", 0.75)),
        *stages("task_arithmetic", (0.4, 0.5, 0.6), prune("deviation", "column", 0.9)),
        *stages("task_arithmetic", (0.6,), prune("deviation", "layer", 0.67)),
        # Restored norms, and the lowest scores instead of the highest.
        *stages("task_arithmetic", (0.4, 0.5), *(prune("deviation", "column", 0.6, rescale=norm) for norm in ("l1", "l2"))),
        *stages("task_arithmetic", (0.5, 0.8), *(prune("deviation", granularity, 0.6, order="keep_redundant") for granularity in ("column", "element"))),
        # Whole tensors by magnitude, as the defaults have it, and what is kept of them.
        *(entry for method, scales in TEXT_STAGED.items() for entry in stages(method, scales, WHOLE)),
        *stages("task_arithmetic", (0.4, 0.6), prune("magnitude", "tensor", 0.5, order="keep_redundant")),
        *stages("task_arithmetic", (0.4, 0.5, 0.7), *(prune("magnitude", "tensor", keep) for keep in (0.35, 0.7))),
        # The control: as many columns, elements or tensors, drawn at random.
        *at_random("task_arithmetic", (0.5, 0.7), "column", 0.6),
        *at_random("task_arithmetic", (0.4, 0.5, 0.6), "tensor", 0.5),
        *at_random("task_arithmetic", (0.5, 0.7), "element", 0.6, SEEDS[:1]),
        # In front of the two other methods.
        *stages("ties", (0.75, 1.0, 1.25, 1.5), prune("deviation", "column", 0.6)),
        *stages("ties", (1.0, 1.25), prune("deviation", "column", 0.75), prune("deviation", "element", 0.6)),
        *at_random("ties", (1.0, 1.25), "column", 0.6, SEEDS[:1]),
        *stages("cart", (1.0, 2.0, 3.0, 4.0), prune("deviation", "column", 0.6)),
        *stages("cart", (2.0, 3.0), prune("deviation", "column", 0.9)),
        *stages("cart", (2.0, 3.0, 4.0), prune("deviation", "element", 0.6)),
        *at_random("cart", (2.0, 3.0), "column", 0.6, SEEDS[:1]),
        # Every score by column and by element; by row, tensor and layer (a task has three, of which two are kept) two of them.
        *(entry for granularity in ("column", "element") for entry in stages("task_arithmetic", (0.5, 0.7), *(prune(score, granularity, 0.6) for score in SCORES))),
        *(entry for granularity in ("row", "tensor") for entry in stages("task_arithmetic", (0.5, 0.7), *(prune(score, granularity, 0.6) for score in SCORES[:2]))),
        *stages("task_arithmetic", (0.5, 0.7), *(prune(score, "layer", 0.67) for score in SCORES[:2])),
    ),
)

VISION_STAGED = {"task_arithmetic": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4), "ties": (0.25, 0.5, 0.75, 1.0), "cart": (0.5, 1.0, 1.5, 2.0, 3.0)}

VISION = Sweeps(
    plain={"task_arithmetic": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4), "ties": (0.25, 0.5, 0.75, 1.0), "cart": (0.5, 1.0, 1.5, 2.0, 3.0)},
    staged=VISION_STAGED,
    map_scales=(1.0, 2.0, 3.0, 4.0),
    others={"breadcrumbs": (0.05, 0.1, 0.15, 0.2), "breadcrumbs_ties": (0.1, 0.2, 0.3), "dare_linear": (0.1, 0.15, 0.2),
            "dare_ties": (0.1, 0.15, 0.2, 0.3), "della": (0.25, 0.5, 1.0), "della_linear": (0.1, 0.15, 0.2), "magmax": (0.25, 0.5, 0.75),
            "iso_c": (0.5, 0.75, 1.0, 1.5), "iso_cts": (0.5, 0.75, 1.0, 1.5), "low_rank": (0.1, 0.15, 0.2, 0.3), "tsv_m": (0.25, 0.5, 0.75, 1.0)},
    generic=(0.25, 0.5, 1.0),
    found={method: WHOLE for method in VISION_STAGED},
    common_id=65.0,
    search=(
        *stages("task_arithmetic", (0.2, 0.3, 0.4), *(prune("magnitude", "tensor", keep) for keep in (0.25, 0.35, 0.7))),
        *stages("task_arithmetic", (0.2, 0.3, 0.4), *(prune("magnitude", "layer", keep) for keep in (0.35, 0.5, 0.7))),
        *stages("task_arithmetic", (0.1, 0.2, 0.3), prune("magnitude", "tensor", 0.5, order="keep_redundant")),
        *stages("task_arithmetic", (0.1, 0.15, 0.2, 0.3), prune("deviation", "column", 0.6)),
        *stages("task_arithmetic", (0.15, 0.2, 0.3), prune("deviation", "tensor", 0.5)),
        *at_random("task_arithmetic", (0.1, 0.2, 0.3), "tensor", 0.5),
        *stages("ties", (0.25, 0.5, 1.0), prune("magnitude", "layer", 0.5), prune("deviation", "column", 0.6)),
        *at_random("ties", (0.25, 0.5, 0.75), "tensor", 0.5, SEEDS[:1]),
        *stages("cart", (1.0, 2.0, 3.0), prune("deviation", "element", 0.6)),
        *at_random("cart", (1.0, 1.5, 2.0), "tensor", 0.5, SEEDS[:1]),
    ),
)

OF_KIND = {"text": TEXT, "vision": VISION}
