"""A published table: which models, which merges, which figures. One JSON file each, beside this one."""

import json
import os
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))


def offered():
    return sorted(name.removesuffix(".json") for name in os.listdir(HERE) if name.endswith(".json"))


@dataclass(frozen=True)
class Setting:
    """One row. `recipe` is what a merge's recipe says beside models; None: the base as it is."""

    name: str
    tasks: tuple
    recipe: dict | None
    published: float
    tolerance: float


class Paper:
    def __init__(self, name):
        if name not in offered():
            raise SystemExit(f"no table `{name}`: there are {', '.join(offered())}")
        with open(os.path.join(HERE, name + ".json"), encoding="utf-8") as handle:
            said = json.load(handle)
        self.name, self.title, self.source, self.names = name, said["title"], said["source"], said["names"]
        self.tasks, self._layout, self._eligible = said["tasks"], said["layout"], said["eligible"]
        # What the base stores and no fine-tune does: it is not merged.
        self.only_in_base = said.get("only_in_base", [])
        self.settings = [Setting(row["name"], tuple(self.tasks[: row["tasks"]]), row["recipe"], row["published"], row["tolerance"])
                         for row in said["settings"]]

    def path(self, models, what, task=""):
        """The file or folder of a `model`, the `base` or a `head` below the folder `models`, or else the id as it is."""
        relative = self._layout[what].format(task=task)
        local = os.path.join(models, relative)
        return local if os.path.exists(local) or what == "head" else relative

    def local(self, models, what, task=""):
        """Where a stand-in goes."""
        return os.path.join(models, self._layout[what].format(task=task))

    def recipe(self, setting, models, methods):
        """The setting's recipe. `methods`: what `merganser methods --json` offers, by name."""
        method = methods.get(setting.recipe["merge_method"])
        if method is None:
            raise Missing(f"this merganser has no `{setting.recipe['merge_method']}`")
        known = {parameter["name"] for parameter in method["parameters"]}
        unknown = set(setting.recipe.get("parameters", {})) - known
        if unknown:
            raise Missing(f"`{method['name']}` has no {', '.join(f'`{name}`' for name in sorted(unknown))} in this merganser")
        parameters = dict(setting.recipe.get("parameters", {}))
        if "eligible" in known:
            parameters["eligible"] = self._eligible
        recipe = {"merge_method": method["name"], "models": [{"model": self.path(models, "model", task)} for task in setting.tasks]}
        if method["base_model"] == "required":
            recipe["base_model"] = self.path(models, "base")
            if self.only_in_base:
                recipe["copy"] = self.only_in_base
        return recipe | ({"parameters": parameters} if parameters else {})


class Missing(Exception):
    """What a row needs and is not there: the row is left out by name."""
