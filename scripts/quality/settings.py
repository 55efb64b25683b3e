"""What one merge is: a method, its parameters, perhaps a pruning stage; and curves of such over λ."""

import json
from dataclasses import dataclass


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

    def recipe(self, base, models):
        """The recipe's text. `base` and `models` are paths."""
        lines = [f"merge_method: {self.method}", f"base_model: {json.dumps(base)}", "models:"]
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
