"""Merge model checkpoints: streamed, exact, bounded in memory.

    import merganser

    merged = merganser.merge(
        {"merge_method": "ties", "base_model": "base", "models": [{"model": "math"}, {"model": "code"}],
         "parameters": {"density": 0.2}},
        "merged",
    )
    print(merged.totals.elements, merged.timings.seconds)

Every function runs the command of its name of the program `merganser`, which comes with this package, and returns what
the command prints with `--json` as a dataclass. A recipe is a path (`str` or path-like), or a mapping with the recipe's keys
(a list of them: its documents), whose relative paths start at the current folder. Options are the command's, with `_` for `-`. A failure raises
a subclass of `MerganserError`; Ctrl-C stops a merge after the tensors in hand, and `resume=True` goes on with it.
"""

from __future__ import annotations

import json
import os
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple, Union, overload

from ._documents import *
from ._documents import __all__ as _documents_all
from ._errors import (
    AccessError,
    BusyError,
    CheckpointError,
    DeviceError,
    InternalError,
    IoError,
    MerganserError,
    NoSpaceError,
    OutOfMemoryError,
    RecipeError,
    StoppedError,
    UsageError,
)
from ._program import Progress, find_program, run as _run
from ._read import read as _read

Path = Union[str, "os.PathLike[str]"]
Recipe = Union[Path, Mapping[str, Any], Sequence[Mapping[str, Any]]]
Size = Union[int, str]
OnProgress = Callable[[Progress], Any]

__all__ = [
    "AccessError",
    "BusyError",
    "CheckpointError",
    "DeviceError",
    "InternalError",
    "IoError",
    "MerganserError",
    "NoSpaceError",
    "OutOfMemoryError",
    "Progress",
    "RecipeError",
    "StoppedError",
    "UsageError",
    "compare",
    "devices",
    "explain",
    "extract",
    "extract_lora",
    "find_program",
    "inspect",
    "merge",
    "methods",
    "plan",
    "saliency",
    "sweep",
    "verify",
    *_documents_all,
]


@overload
def merge(
    recipe: Recipe,
    out: Path,
    *,
    part: None = None,
    device: Optional[str] = None,
    device_memory: Optional[Size] = None,
    audit: Union[int, str, None] = None,
    threads: Optional[int] = None,
    memory_budget: Optional[Size] = None,
    seed: Optional[int] = None,
    shard_size: Optional[Size] = None,
    strict: bool = False,
    download: bool = False,
    moe_layout: Optional[str] = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Optional[OnProgress] = None,
) -> Merged: ...


@overload
def merge(recipe: Recipe, out: Path, *, part: str, **options: Any) -> Union[Merged, PartDone]: ...


def merge(
    recipe: Recipe,
    out: Path,
    *,
    part: Optional[str] = None,
    device: Optional[str] = None,
    device_memory: Optional[Size] = None,
    audit: Union[int, str, None] = None,
    threads: Optional[int] = None,
    memory_budget: Optional[Size] = None,
    seed: Optional[int] = None,
    shard_size: Optional[Size] = None,
    strict: bool = False,
    download: bool = False,
    moe_layout: Optional[str] = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Optional[OnProgress] = None,
) -> Union[Merged, PartDone]:
    """Merges checkpoints as the recipe says into the folder `out`, which must not exist or be empty.

    `device` is `auto`, `cpu`, `cuda` or `cuda:N`; sizes are bytes or texts such as "8GiB". `resume` goes on with an
    interrupted merge, `overwrite` replaces an output once the new one is complete, `strict` takes remarks on the recipe for errors.
    `download` fetches models of the Hub that are not in its cache; `moe_layout` (`packed` or `old`) says how a mixture of experts is
    stored. `audit` is how many segments that devices merged the CPU merges again, or `none`. `progress` is called from this thread:
    with nothing done first, about four times a second, and with all of it done at the end; what it raises stops
    the merge, which can be resumed, and is raised here.

    `part` is `I/N`, or `auto/N` in an array's task: this process does the I-th of N parts of the merge. The one that is done
    last finishes `out` and gets the whole's document; the others get a `PartDone`.
    """
    source, stdin = _recipe(recipe)
    options = _options(
        out=_path(out),
        part=part,
        device=device,
        device_memory=device_memory,
        audit=audit,
        threads=threads,
        memory_budget=memory_budget,
        seed=seed,
        shard_size=shard_size,
        strict=strict,
        download=download,
        moe_layout=moe_layout,
        resume=resume,
        overwrite=overwrite,
    )
    done = _run("merge", [*options, "--", source], stdin=stdin, progress=progress, shows_progress=True)
    return _read(PartDone, done) if "part" in done else _read(Merged, done)


def sweep(
    recipe: Recipe,
    out: Path,
    *,
    set: Mapping[str, Union[str, Sequence[Any]]],
    eval: Optional[str] = None,
    minimize: bool = False,
    device: Optional[str] = None,
    device_memory: Optional[Size] = None,
    threads: Optional[int] = None,
    memory_budget: Optional[Size] = None,
    seed: Optional[int] = None,
    shard_size: Optional[Size] = None,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Optional[OnProgress] = None,
) -> Swept:
    """Merges a recipe with many values of its settings, from one reading of the sources, into folders in `out`.

    `set` gives places in the recipe, such as `parameters.lambda` or `models.0.parameters.weight`, a list of values or a text "A:B:STEP";
    several make every combination. Each point of what is returned has its values and its `out`. `eval` is a command of the shell that prints
    a number for the folder that it is given: the best output is kept then.
    """
    source, stdin = _recipe(recipe)
    options = _options(
        out=_path(out),
        eval=eval,
        minimize=minimize,
        device=device,
        device_memory=device_memory,
        threads=threads,
        memory_budget=memory_budget,
        seed=seed,
        shard_size=shard_size,
        strict=strict,
        resume=resume,
        overwrite=overwrite,
    )
    options += [f"--set={key}={_values(values)}" for key, values in set.items()]
    done = _run("sweep", [*options, "--", source], stdin=stdin, progress=progress, shows_progress=True)
    return _read(Swept, done)


def plan(
    recipe: Recipe,
    *,
    device: Optional[str] = None,
    device_memory: Optional[Size] = None,
    card: Optional[str] = None,
    threads: Optional[int] = None,
    memory_budget: Optional[Size] = None,
    seed: Optional[int] = None,
    shard_size: Optional[Size] = None,
    strict: bool = False,
    download: bool = False,
    moe_layout: Optional[str] = None,
) -> Plan:
    """What a merge would do: tensors, bytes, memory; with `card`, such as `h100-sxm`, seconds on one.

    Reads headers only, and with `download` fetches no more of the Hub's models.
    """
    source, stdin = _recipe(recipe)
    options = _options(
        device=device,
        device_memory=device_memory,
        card=card,
        threads=threads,
        memory_budget=memory_budget,
        seed=seed,
        shard_size=shard_size,
        strict=strict,
        download=download,
        moe_layout=moe_layout,
    )
    return _read(Plan, _run("plan", [*options, "--", source], stdin=stdin))


def explain(
    recipe: Recipe,
    tensor: str,
    index: Optional[Union[int, Sequence[int]]] = None,
    *,
    device: Optional[str] = None,
    device_memory: Optional[Size] = None,
    threads: Optional[int] = None,
    memory_budget: Optional[Size] = None,
    seed: Optional[int] = None,
    shard_size: Optional[Size] = None,
    strict: bool = False,
) -> Explained:
    """Where a tensor of the output comes from and how it is made; with an `index` (an element's number, or its place along
    each dimension, from 0) also what becomes of that element, step by step."""
    source, stdin = _recipe(recipe)
    options = _options(
        device=device,
        device_memory=device_memory,
        threads=threads,
        memory_budget=memory_budget,
        seed=seed,
        shard_size=shard_size,
        strict=strict,
    )
    places = [] if index is None else [index] if isinstance(index, int) else list(index)
    element = [] if index is None else [",".join(str(int(place)) for place in places)]
    return _read(Explained, _run("explain", [*options, "--", source, tensor, *element], stdin=stdin))


def extract(
    merged: Path,
    out: Path,
    *,
    task: str,
    lambda_: Optional[float] = None,
    threads: Optional[int] = None,
    memory_budget: Optional[Size] = None,
    shard_size: Optional[Size] = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Optional[OnProgress] = None,
) -> Extracted:
    """One task's model again, into `out`, from a merge with `output: factors`."""
    options = _options(
        out=_path(out),
        task=task,
        lambda_=lambda_,
        threads=threads,
        memory_budget=memory_budget,
        shard_size=shard_size,
        resume=resume,
        overwrite=overwrite,
    )
    arguments = [*options, "--", _path(merged)]
    return _read(Extracted, _run("extract", arguments, progress=progress, shows_progress=True))


def extract_lora(
    base: Path,
    tuned: Path,
    out: Path,
    *,
    rank: Optional[int] = None,
    energy: Optional[float] = None,
    epsilon: Optional[float] = None,
    threads: Optional[int] = None,
    memory_budget: Optional[Size] = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Optional[OnProgress] = None,
) -> Adapter:
    """The LoRA adapter that makes `tuned` of `base`, into `out`: `rank` bounds each matrix's rank (128), `energy` keeps the share
    of its change, `epsilon` the singular values above it."""
    options = _options(
        lora=True,
        out=_path(out),
        rank=rank,
        energy=energy,
        epsilon=epsilon,
        threads=threads,
        memory_budget=memory_budget,
        resume=resume,
        overwrite=overwrite,
    )
    arguments = [*options, "--", _path(base), _path(tuned)]
    return _read(Adapter, _run("extract", arguments, progress=progress, shows_progress=True))


def saliency(
    recipe: Recipe,
    out: Path,
    *,
    keep: Sequence[float] = (),
    threads: Optional[int] = None,
    memory_budget: Optional[Size] = None,
    overwrite: bool = False,
    progress: Optional[OnProgress] = None,
) -> Saliency:
    """Where task vectors are salient, how they agree, and what pruning would drop: a page (`.html`) or document (`.json`)
    in `out`, and the whole report returned."""
    source, stdin = _recipe(recipe)
    options = _options(
        out=_path(out),
        keep=",".join(map(repr, map(float, keep))) or None,
        threads=threads,
        memory_budget=memory_budget,
        overwrite=overwrite,
    )
    arguments = [*options, "--", source]
    return _read(Saliency, _run("saliency", arguments, stdin=stdin, progress=progress, shows_progress=True))


def inspect(checkpoint: Path) -> Inspection:
    """What is in a checkpoint: tensors, shapes, element types, bytes, files."""
    return _read(Inspection, _run("inspect", ["--", _path(checkpoint)]))


def compare(
    a: Path, b: Path, *, threads: Optional[int] = None, progress: Optional[OnProgress] = None
) -> Comparison:
    """How far two checkpoints are apart; also where their tensors differ in name or shape, which is no failure."""
    arguments = [*_options(threads=threads), "--", _path(a), _path(b)]
    return _read(Comparison, _run("compare", arguments, progress=progress, shows_progress=True))


def verify(out: Path, *, threads: Optional[int] = None, progress: Optional[OnProgress] = None) -> Verification:
    """Checks an output against its manifest; `ok` and `problems` say what was found."""
    arguments = [*_options(threads=threads), "--", _path(out)]
    return _read(Verification, _run("verify", arguments, progress=progress, shows_progress=True))


def methods(name: Optional[str] = None) -> List[KnownMethod]:
    """The merging methods and task-vector stages, or the one of this name, with their parameters."""
    return _read(Methods, _run("methods", [] if name is None else ["--", name])).methods


def devices(*, check: bool = False) -> Devices:
    """What this machine computes on, and what a job may use of it by default. `check` compares every operation of each GPU with the CPU."""
    return _read(Devices, _run("devices", _options(check=check)))


def _path(path: Path) -> str:
    path = os.fspath(path)
    if not isinstance(path, str):
        raise TypeError(f"a path is a str or path-like, not {type(path).__name__}")
    return path


def _recipe(recipe: Recipe) -> Tuple[str, Optional[str]]:
    """The argument that names a recipe, and what the program reads from its standard input."""
    if isinstance(recipe, Mapping):
        recipe = [recipe]
    if isinstance(recipe, (list, tuple)):
        # JSON is YAML, but for the escapes of characters beyond the first 65536, which are written as they are.
        documents = [json.dumps(one, ensure_ascii=False, allow_nan=False, default=_plain) for one in recipe]
        return "-", "\n---\n".join(documents) + "\n"
    path = _path(recipe)
    return (os.path.join(".", path) if path == "-" else path), None


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a recipe holds texts, numbers, truth values, lists and mappings, not {type(value).__name__}")


def _values(values: Union[str, Sequence[Any]]) -> str:
    """The values of a setting as the command line writes them."""
    if isinstance(values, str):
        return values
    written = [json.dumps(one) if isinstance(one, (bool, int, float)) else one for one in values]
    if not written or not all(isinstance(one, str) and "," not in one and ":" not in one for one in written):
        raise TypeError("a setting's values are numbers, truth values and words without commas or colons")
    return ",".join(written)


def _options(**given: Any) -> List[str]:
    """The command line's options: those that are None or False are left out."""
    arguments: List[str] = []
    for name, value in given.items():
        option = "--" + name.rstrip("_").replace("_", "-")
        if value is True:
            arguments.append(option)
        elif value is not None and value is not False:
            arguments.append(f"{option}={value}")
    return arguments
