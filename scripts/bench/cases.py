"""Merges that are timed, as data, and how each program runs them."""

import json
import os
import subprocess

import binary
from family import size_of

HERE = os.path.dirname(os.path.abspath(__file__))
DRIVER = os.path.join(HERE, "..", "parity", "mergekit_driver.py")

# By column, whatever the stage's defaults are: what earlier runs measured, and work for every element of every task.
PRUNED = [{"stage": "lwptv", "parameters": {"score": "deviation", "granularity": "column", "keep": 0.6}}]
SUM = {"merge_method": "task_arithmetic", "parameters": {"weight": 1.0, "lambda": 0.5}}

# name: (recipe without its models, fine-tunes or None for all, whether mergekit has it)
MERGES = {
    "linear": ({"merge_method": "linear", "parameters": {"weight": 1.0}, "base": False}, None, True),
    "task_arithmetic": (SUM, None, True),
    "ties": ({"merge_method": "ties", "parameters": {"weight": 1.0, "density": 0.2, "lambda": 1.0}}, None, True),
    "dare_ties": ({"merge_method": "dare_ties", "parameters": {"weight": 1.0, "density": 0.2, "lambda": 1.0}}, None, True),
    "lwptv": (SUM | {"task_vector_stages": PRUNED}, None, False),
    "slerp": ({"merge_method": "slerp", "parameters": {"t": 0.4}}, 1, True),
    "cart": ({"merge_method": "cart", "parameters": {"rank_ratio": 0.08, "lambda": 2.0}}, None, False),
}

# Goals of the project: merganser's time over cat + cp, and mergekit's over merganser's.
GOALS = {"linear": (0.9, 8), "task_arithmetic": (0.9, 8), "ties": (1.6, 40), "dare_ties": (1.6, 40), "lwptv": (1.6, None)}


class Merge:
    """One merge of a family."""

    def __init__(self, name, family, scratch, tasks=None, out=None):
        data, most, self.has_mergekit = MERGES[name]
        tasks = most or tasks or family.tasks
        self.name, self.out = name, os.path.join(out or scratch, "out")
        files = family.weights(tasks)
        if not data.get("base", True):
            files = [file for file in files if not file.startswith(family.base + os.sep)]
        self.files, self.read_bytes = files, size_of(files)
        self.recipe = os.path.join(scratch, f"{name}-{tasks}.yaml")
        recipe = {key: value for key, value in data.items() if key != "base"} | {"dtype": "bfloat16"}
        if data.get("base", True):
            recipe["base_model"] = family.base
        recipe["models"] = [{"model": model} for model in family.models[:tasks]]
        with open(self.recipe, "w", encoding="utf-8") as handle:
            json.dump(recipe, handle, indent=1)  # JSON is YAML

    def merganser(self, program, options):
        """A sample of a merge: seconds and peaks of memory."""
        return watched([program, "merge", self.recipe, "-o", self.out, "-q", *options])

    def mergekit(self, python):
        """The same by mergekit, into the same place: seconds from the start of its process, imports and all."""
        # One recipe, which mergekit_driver puts into OUT/NAME of the recipe.
        return watched([python, DRIVER, self.out, self.recipe], env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"})


def watched(command, **options):
    code, seconds, peak, anonymous = binary.run_watched(command, **options)
    if code != 0:
        raise SystemExit(f"{' '.join(command)}: exit {code}")
    return {"seconds": seconds, "peak_bytes": peak, "anonymous_bytes": anonymous}


def operations(program, recipe):
    """Floating-point operations that a merge plans."""
    plan = subprocess.run([program, "plan", recipe, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(plan.stdout)["totals"]["operations"]


