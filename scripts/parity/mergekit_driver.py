"""Runs mergekit on recipes, inside the environment that `run` makes: mergekit_driver.py [--whole] OUT RECIPE…

With --whole the tokenizer is handled too, and adapters are merged beside OUT.

Debian's torch is older than what transformers 5 and peft import. Neither takes part in a merge of a known architecture with
full checkpoints, so empty modules stand in for the parts that would not load.
"""

import ctypes
import gc
import logging
import os
import sys
import types


class Absent(types.ModuleType):
    """A module whose every name exists and does nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for module in (
    "accelerate", "peft", "transformers.conversion_mapping", "transformers.core_model_loading", "transformers.initialization",
    "transformers.modeling_utils",
):
    sys.modules[module] = Absent(module)

# Asked for by layouts whose files transformers converts: none of those that are merged here.
sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping = lambda *_, **__: None

import torch  # noqa: E402
import yaml  # noqa: E402

# `torch.dtype.itemsize` came with torch 2.1. A type written in C takes new attributes only through its own dictionary.
if not hasattr(torch.float32, "itemsize"):
    gc.get_referents(torch.dtype.__dict__)[0]["itemsize"] = property(lambda dtype: torch.empty((), dtype=dtype).element_size())
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(torch.dtype))

from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.merge import run_merge  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402


def main():
    arguments = sys.argv[1:]
    whole = arguments[0] == "--whole"
    out, *recipes = arguments[whole:]
    out = os.path.abspath(out)
    logging.disable(logging.WARNING)
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    for path in recipes:
        folder, file = os.path.split(os.path.abspath(path))
        os.chdir(folder)  # mergekit takes model paths relative to the working directory
        with open(file, encoding="utf-8") as handle:
            config = MergeConfiguration.model_validate(yaml.safe_load(handle))
        name = os.path.splitext(file)[0]
        run_merge(config, os.path.join(out, name), MergeOptions(
            copy_tokenizer=whole, write_model_card=False, quiet=True, lora_merge_cache=os.path.join(out, "adapted") if whole else None))


if __name__ == "__main__":
    main()
