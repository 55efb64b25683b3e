"""Merging with merganser, evaluating, and keeping what was found.

A result (which examples are classified rightly) is kept under the merged file's digest; and under the recipe, the digests
of its sources and of the binary is kept which file a merge gave, so that what was measured once is not even merged again.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

import random_pruning
from benchmark import BASE, VERSION


def digest(path):
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()[:32]


def digest_text(*parts):
    return hashlib.blake2b("\0".join(parts).encode()).hexdigest()[:32]


def write_whole(path, text):
    """Writes a file that is there as a whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as handle:
        handle.write(text)
    os.replace(path + ".new", path)


def read_if_there(path):
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


class Measurer:
    """Measures settings on a benchmark, keeping results in `cache`."""

    def __init__(self, benchmark, cache, merganser, log=sys.stderr):
        self.benchmark, self.cache, self.merganser, self.log = benchmark, cache, merganser, log
        self._binary = digest(merganser)
        self._sources = {name: digest(benchmark.path(name)) for name in (BASE, *benchmark.models)}
        self._evaluator = digest_text(str(VERSION), *(digest(benchmark.path(name)) for name in benchmark.data_files()))
        self.evaluated = 0

    def right(self, setting, place=""):
        """{task: a boolean for each example} of the setting's merged model. `place` leads the line that is logged."""
        if setting.method is None:
            return self._evaluated(setting, place, self._sources[setting.source], self.benchmark.path(setting.source))
        # The recipe names what was measured; where it lay does not matter.
        names = self.benchmark.models if setting.random is None else [f"{task} {setting.random}" for task in self.benchmark.models]
        wanted = digest_text(setting.recipe(BASE, names), self._binary, *self._sources.values())
        note = os.path.join(self.cache, "merges", wanted)
        merged = read_if_there(note)
        if merged is not None:
            found = self._kept(merged)
            if found is not None:
                return found
        with tempfile.TemporaryDirectory() as work:
            path = self._merge(setting, work)
            merged = digest(path)
            write_whole(note, merged)
            return self._evaluated(setting, place, merged, path)

    def _merge(self, setting, work):
        models = [self.benchmark.path(task) for task in self.benchmark.models]
        if setting.random is not None:
            models = random_pruning.prune(self.benchmark.path(BASE), dict(zip(self.benchmark.models, models)), *setting.random, work)
        recipe, out = os.path.join(work, "recipe.yaml"), os.path.join(work, "merged")
        with open(recipe, "w", encoding="utf-8") as handle:
            handle.write(setting.recipe(self.benchmark.path(BASE), models))
        done = subprocess.run([self.merganser, "merge", recipe, "-o", out, "-q", "--threads", "1"], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise SystemExit(f"merganser ended with {done.returncode} on `{setting.key}`")
        return os.path.join(out, "model.safetensors")

    def _result_path(self, merged):
        return os.path.join(self.cache, "results", f"{merged}-{self._evaluator}.json")

    def _kept(self, merged):
        text = read_if_there(self._result_path(merged))
        if text is None:
            return None
        count = self.benchmark.count
        return {task: np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=count(task)).astype(bool)
                for task, bits in json.loads(text).items()}

    def _evaluated(self, setting, place, merged, path):
        right = self._kept(merged)
        if right is None:
            started = time.time()
            right = self.benchmark.right(path)
            self.evaluated += 1
            write_whole(self._result_path(merged), json.dumps({task: np.packbits(bits).tobytes().hex() for task, bits in right.items()}))
            means = "".join(f"{100 * np.mean([right[task].mean() for task in tasks]):7.2f}" for tasks in self.benchmark.groups.values())
            print(f"{place:>8}{means}  {setting.key}  ({time.time() - started:.0f} s)", file=self.log, flush=True)
        return right
