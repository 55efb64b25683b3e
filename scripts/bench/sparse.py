"""Checkpoints as large as a 70 B parameter model's that take no space: headers, and holes instead of data."""

import importlib.machinery
import importlib.util
import json
import math
import os
import resource
import shutil
import subprocess

import numpy as np

from checkpoint import STORAGE, Writer, plan_shards, save, write_index

HERE = os.path.dirname(os.path.abspath(__file__))
# Vocabulary, width, MLP, blocks, keys and values: 723 tensors, 138 GB in bfloat16.
SIZES = (32000, 8192, 28672, 80, 1024)
TASKS = 3
SHARD_BYTES = 5 * 10**9
ALIGNMENT = 4096  # of data in the files that merganser writes
OPTIONS = ["--shard-size", "1TB"]  # one file, whose size follows from its header


def llama_shapes():
    loader = importlib.machinery.SourceFileLoader("make_family", os.path.join(HERE, "..", "make-family"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_family", loader))
    loader.exec_module(module)
    return module.llama_shapes(*SIZES)


def make(work, merganser):
    """(recipe, finished output, facts) of the sparse checkpoints in WORK, which are made anew."""
    shutil.rmtree(work, ignore_errors=True)
    shapes = llama_shapes()
    layout = {name: ("BF16", shape) for name, shape in shapes.items()}
    shards = plan_shards(layout, SHARD_BYTES)
    models = ["base"] + [f"task-{i}" for i in range(1, TASKS + 1)]
    for model in models:
        folder, small = os.path.join(work, "large", model), os.path.join(work, "small", model)
        os.makedirs(folder)
        os.makedirs(small)
        for file, part in shards:
            Writer(os.path.join(folder, file), part).leave_holes()
        write_index(folder, shards)
        # The same names with two elements each: its merge lends the output its manifest.
        save(os.path.join(small, "model.safetensors"), {name: ("BF16", np.zeros(2, np.uint16)) for name in shapes})
    recipes = {}
    for kind in ("large", "small"):
        recipes[kind] = os.path.join(work, f"{kind}.yaml")
        with open(recipes[kind], "w", encoding="utf-8") as handle:
            json.dump({"merge_method": "ties", "base_model": f"{kind}/base", "models": [{"model": f"{kind}/{m}"} for m in models[1:]],
                       "parameters": {"density": 0.2}}, handle)
    out = os.path.join(work, "out")
    pretend(merganser, recipes, out, layout)
    size = sum(math.prod(shape) * STORAGE[dtype].itemsize for dtype, shape in layout.values())
    return recipes["large"], out, {"tensors": len(layout), "model_bytes": size, "models": len(models), "shards": len(shards)}


def pretend(merganser, recipes, out, layout):
    """Puts at OUT what a finished merge of the large recipe would leave: its manifest, and a file of the right size.

    A merge that may not write large files notes the fingerprint of its plan and stops; a merge of the small recipe gives a
    manifest of as many tensors, which gets that fingerprint.
    """
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, 1 << 22))

    stopped = subprocess.run([merganser, "merge", recipes["large"], "-o", out, "-q", *OPTIONS], preexec_fn=small_files, stderr=subprocess.DEVNULL)
    if stopped.returncode != 3:
        raise SystemExit(f"a merge without the right to write large files ended with {stopped.returncode}, expected 3")
    partial = out + ".merganser-partial"
    with open(os.path.join(partial, "merganser.plan.json"), encoding="utf-8") as handle:
        digest = json.load(handle)["digest"]
    shutil.rmtree(partial)
    subprocess.run([merganser, "merge", recipes["small"], "-o", out, "-q", *OPTIONS], check=True)
    path = os.path.join(out, "merganser.json")
    with open(path, encoding="utf-8") as handle:
        manifest = json.load(handle)
    manifest["fingerprint"] = digest
    with open(path, "w", encoding="utf-8") as handle:
        json.dump(manifest, handle, indent=2)
    Writer(os.path.join(out, "model.safetensors"), layout, alignment=ALIGNMENT).leave_holes()
    again = subprocess.run([merganser, "merge", recipes["large"], "-o", out, "--resume", "--json", "-q", *OPTIONS], stdout=subprocess.PIPE)
    if again.returncode != 0 or not json.loads(again.stdout)["already_done"]:
        raise SystemExit("the output of the sparse merge is not taken for finished: is its header still what is expected here?")
