"""A benchmark's folder: the base, its fine-tunes (one for each task in domain, of its name) and the evaluation data.

`eval.safetensors` names its groups of tasks in its metadata: ID (trained on), OOD (not trained on) and perhaps COR (in-domain
tasks with corrupted inputs). Which encoder it is for is seen from what it holds. NumPy only.
"""

import os

import numpy as np

import text
import vision
from checkpoint import Checkpoint, load_floats

# Part of the key of every kept result: to be raised by who changes what an evaluation gives.
VERSION = 2

BASE = "pretrained"
GROUPS = ("ID", "OOD", "COR")
ENCODERS = {"text": (text, "{}.ids"), "vision": (vision, "{}.dev.x")}


class Benchmark:
    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self._data = Checkpoint(self.path("eval"))
        self.groups = {group: self._data.metadata[group].split(",") for group in GROUPS if group in self._data.metadata}
        self.models = self.groups["ID"]
        self.tasks = [task for tasks in self.groups.values() for task in tasks]
        fitting = [name for name, (_, shape) in ENCODERS.items() if shape.format(self.tasks[0]) in self._data]
        if len(fitting) != 1:
            raise SystemExit(f"{self.path('eval')}: neither texts (`TASK.ids`) nor images (`TASK.dev.x`) of `{self.tasks[0]}`")
        self.kind = fitting[0]
        self._examples = ENCODERS[self.kind][0].Examples(self.folder, self._data, self.tasks)
        self._labels = {task: self._examples.labels(task) for task in self.tasks}

    def path(self, name):
        return os.path.join(self.folder, name + ".safetensors")

    def data_files(self):
        """Names of the files that an evaluation reads beside the model."""
        return self._examples.FILES

    def count(self, task):
        """Examples of a task."""
        return len(self._labels[task])

    def right(self, model_path):
        """{task: a boolean for each example: is it classified rightly?} of a merged model."""
        features = self._examples.features(load_floats(model_path))
        return {task: np.argmax(features[task] @ self._data.float32(f"{task}.head").T, axis=1) == labels for task, labels in self._labels.items()}
