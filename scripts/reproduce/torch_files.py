"""Files as `torch.save(module)` writes them, without torch: a zip archive of a pickle and raw storages.

The classes that the pickle names exist nowhere: a reader that imports what it finds would fail, as it would on any machine without
the authors' program.
"""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage"}


def stub(module, name, **members):
    """A class of that name in a module of that name, importable while it is pickled."""
    for end in [at for at, letter in enumerate(module) if letter == "."] + [len(module)]:
        sys.modules.setdefault(module[:end], types.ModuleType(module[:end]))
    parent = sys.modules[module]
    if not hasattr(parent, name):
        setattr(parent, name, type(name, (), {"__module__": module, **members}))
    return getattr(parent, name)


def rebuild_tensor(*_):
    raise RuntimeError("only named in pickles")


class Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class Tensor:
    """Pickled as a torch.nn.Parameter."""

    def __init__(self, storage):
        self.storage = storage

    def __reduce__(self):
        array = self.storage.array
        strides = tuple(step // array.itemsize for step in array.strides)
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (self.storage, 0, array.shape, strides, False, collections.OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return "storage", getattr(sys.modules["torch"], STORAGES[value.array.dtype.name]), value.key, "cpu", value.array.size
        return None


def modules_of(tensors, name):
    """Nested modules from dotted names, each with `_parameters`, `_buffers` and `_modules`; `name` is the outermost class's (module, name)."""
    module = stub(*name)()
    module.training = False
    module._parameters, module._buffers, module._modules = collections.OrderedDict(), collections.OrderedDict(), collections.OrderedDict()
    below = {}
    for path, tensor in tensors.items():
        first, _, rest = path.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = tensor
        else:
            module._parameters[first] = tensor
    for first, inner in below.items():
        module._modules[first] = modules_of(inner, ("open_clip.model", first.title().replace("_", "") if not first.isdigit() else "Block"))
    return module


def save_module(path, tensors, name):
    """{dotted name: float array} as a module whose class is `name`, a pair of module and class."""
    before = dict(sys.modules)
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    rebuild_tensor.__module__, rebuild_tensor.__qualname__, rebuild_tensor.__name__ = "torch._utils", "_rebuild_tensor_v2", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild_tensor
    for storage in STORAGES.values():
        setattr(torch, storage, type(storage, (), {"__module__": "torch"}))
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        storages = [Storage(str(number), np.ascontiguousarray(array)) for number, array in enumerate(tensors.values())]
        text = io.BytesIO()
        Pickler(text, protocol=2).dump(modules_of(dict(zip(tensors, map(Tensor, storages))), name))
    finally:
        for key in set(sys.modules) - set(before):
            del sys.modules[key]
        sys.modules.update(before)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", text.getvalue())
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
        archive.writestr("archive/version", "3\n")
