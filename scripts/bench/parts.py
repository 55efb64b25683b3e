"""The parts of a benchmark run. Each takes a Run and adds samples and facts to its session."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time

import sparse
from cases import MERGES, Merge, operations, watched
from family import SEEN, figures, size_of
from machine import cat, copy, dd, dd_beside_a_write, dd_to_disk, forget, timed

COLD = ("task_arithmetic", "ties")
MANY = ("task_arithmetic", "ties")
MANY_TASKS = 16
MEMORY = "/dev/shm"
STARTS = 20  # of a program that only prints


def family(run):
    """What the generator gives beside what was seen in real fine-tunes."""
    found = figures(run.family())
    run.fact("family", found | {"seen": SEEN})
    print(f"  changes of the first fine-tune: {found['zeros']:.1%} zero (seen: {SEEN['zeros']:.0%}); {found['tied']:.2f} k exactly at the cut of "
          f"the k largest, k a fifth (seen: {SEEN['tied']:.2f}); over {found['elems']:,} elements of {found['tensors']} matrices")


def limits(run):
    """What `merganser bench` measures: the machine's limits and the merge's paths in memory."""
    import json

    command = [run.merganser, "bench", "--json", "-q", "--dir", run.scratch, "--runs", str(run.runs), *run.thread_options()]
    document = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    run.fact("bench", {key: value for key, value in document.items() if key != "dir"})
    for row in document["rows"]:
        unit, share = ("GB/s" if row["unit"] == "bytes" else "GFLOP/s"), row["of_limit"]
        beside = f", {share:.0%} of {row['limit']}" if share else ""
        print(f"  {row['name']}, {row['threads']} threads: {row['rate'] / 1e9:.2f} {unit}{beside}")


def yardsticks(run, files, written):
    """Moving the same bytes without a merge: actions by name. `written` has the size of the output."""
    target = os.path.join(run.scratch, "copied")
    return {
        "cat": lambda: {"seconds": timed(lambda: cat(files)), "read_bytes": size_of(files)},
        "cp": lambda: {"seconds": timed(lambda: copy(written, target)), "read_bytes": size_of(written)},
        "cp+sync": lambda: {"seconds": timed(lambda: copy(written, target, sync=True)), "read_bytes": size_of(written)},
    }


def merges(run):
    """Merges by merganser and mergekit, beside cat and cp of the same bytes, taking turns."""
    family = run.family()
    names = [name for name in MERGES if name != "cart"]
    ours = [name for name in names if run.wants(name)]
    theirs = [name for name in names if MERGES[name][2] and run.wants("mergekit:" + name)] if run.mergekit_runs else []
    if not ours and not theirs:
        return
    actions = yardsticks(run, family.weights(), family.weights(0))
    for name in ours:
        merge = Merge(name, family, run.scratch)
        actions[name] = lambda merge=merge: merge.merganser(run.merganser, run.merge_options()) | {"read_bytes": merge.read_bytes}
    if theirs:
        python = run.mergekit()
        for name in theirs:
            merge = Merge(name, family, run.scratch)
            actions["mergekit:" + name] = lambda merge=merge: merge.mergekit(python) | {"read_bytes": merge.read_bytes}
    with in_memory(family.weights(0), room=2) as source:
        if source:
            # What a merge, which makes its output durable, cannot be faster than; and the same without a disk.
            actions["dd to disk"] = lambda: {"seconds": timed(lambda: dd_to_disk(source, os.path.join(run.scratch, "copied")))}
            actions |= into_memory(run, family, ours, os.path.dirname(source))
        cat(family.weights())  # warms the cache
        run.turns("merges", actions, most={"mergekit:" + name: run.mergekit_runs for name in theirs})


def into_memory(run, family, names, memory):
    """Merges whose outputs are in memory, and a copy that is: actions by name."""
    written, target = family.weights(0), os.path.join(memory, "copied")
    actions = {"cp, to memory": lambda: {"seconds": timed(lambda: copy(written, target)), "read_bytes": size_of(written), "out": target}}
    for name in names:
        merge = Merge(name, family, run.scratch, out=memory)
        actions[f"{name}, to memory"] = lambda merge=merge: (
            merge.merganser(run.merganser, run.merge_options()) | {"read_bytes": merge.read_bytes, "out": merge.out})
    return actions


def cart(run):
    """CART of a smaller family: bound by matrix products, not by bytes."""
    family = run.family(shape="vit", params=run.params / 10)
    merge = Merge("cart", family, run.scratch)
    cat(family.weights())
    run.fact("cart", {"operations": operations(run.merganser, merge.recipe), "params": run.params / 10, "shape": "vit"})
    run.turns("cart", {"cart": lambda: merge.merganser(run.merganser, run.merge_options())})


def many(run):
    """16 fine-tunes instead of 3, of a quarter of the size: time should grow as the bytes do."""
    family = run.family(params=run.params / 4, tasks=MANY_TASKS)
    cat(family.weights())
    actions = {}
    for tasks in (3, MANY_TASKS):
        for name, action in yardsticks(run, family.weights(tasks), family.weights(0)).items():
            actions[f"{name} of {tasks}"] = action
        for name in MANY:
            merge = Merge(name, family, run.scratch, tasks)
            actions[f"{name} of {tasks}"] = lambda merge=merge: merge.merganser(run.merganser, run.merge_options())
    run.fact("many", {"params": run.params / 4, "read_bytes": {tasks: size_of(family.weights(tasks)) for tasks in (3, MANY_TASKS)},
                      "written_bytes": size_of(family.weights(0))})
    run.turns("many", actions)


def cold(run):
    """Merges that begin with an empty page cache, beside reading the same files from the disk one after the other.

    A disk that reads and writes at the same time does both slower: so merges write into memory, which shows how well they overlap reading
    and computing, and to the disk that they read from, which is compared with `dd` beside a write of as many bytes.
    """
    family = run.family()
    files, written = family.weights(), family.weights(0)

    def after_forgetting(action):
        forget(files)
        return action()

    actions = {"dd": lambda: {"seconds": timed(lambda: dd(files))}, "dd, direct": lambda: {"seconds": timed(lambda: dd(files, direct=True))}}
    with in_memory(written, room=2) as source:
        memory = source and os.path.dirname(source)
        if source:
            actions["dd beside a write"] = lambda: {"seconds": timed(lambda: dd_beside_a_write(files, source, os.path.join(run.scratch, "copied")))}
        else:
            print("  memory has no room for outputs: merges write to the disk alone")
        for name in COLD:
            places = {f"{name}, to memory": memory, name: run.scratch} if memory else {name: run.scratch}
            for case, out in places.items():
                merge = Merge(name, family, run.scratch, out=out)
                actions[case] = lambda merge=merge: merge.merganser(run.merganser, run.merge_options()) | {"out": merge.out}
        run.fact("cold", {"read_bytes": size_of(files), "written_bytes": size_of(written)})
        run.turns("cold", {name: (lambda action=action: after_forgetting(action)) for name, action in actions.items()})


@contextlib.contextmanager
def in_memory(files, room=1):
    """A copy of files in a folder of a file system in memory, which has room for so many; None where it has not."""
    if not os.path.isdir(MEMORY) or shutil.disk_usage(MEMORY).free < (room + 0.1) * size_of(files):
        yield None
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="merganser-bench-") as folder:
        source = os.path.join(folder, "written")
        with open(source, "wb") as handle:
            subprocess.run(["cat", *files], stdout=handle, check=True)
        yield source


def startup(run):
    """The time from starting a process to its end, beside that of a program that does nothing."""
    for name, command in {"true": ["true"], "merganser --help": [run.merganser, "--help"], "merganser --version": [run.merganser, "--version"]}.items():
        for turn in range(STARTS):
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            run.sample("startup", name, turn, {"seconds": time.perf_counter() - started})


def plan(run):
    """Opening, planning and resuming nothing: four checkpoints of 700 tensors and 138 GB each, as sparse files."""
    recipe, out, facts = sparse.make(os.path.join(run.work, "sparse"), run.merganser)
    run.fact("plan", facts)
    plan = [run.merganser, "plan", recipe]
    resume = [run.merganser, "merge", recipe, "-o", out, "--resume", "-q", *sparse.OPTIONS]
    run.turns("plan", {"plan": lambda: watched(plan), "no-op resume": lambda: watched(resume)})


PARTS = {"family": family, "limits": limits, "merges": merges, "cart": cart, "many": many, "cold": cold, "startup": startup, "plan": plan}
