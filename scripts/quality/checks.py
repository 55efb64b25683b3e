"""What each benchmark's README measured with a program of its own, and how far off merganser's merges may be."""

from benchmark import BASE
from settings import Setting, sweep

ALLOWED, TIES_ALLOWED = 0.5, 2.0
# The READMEs print tenths.
ROUNDING = 0.05


def curve(method, figures, allowed=ALLOWED, **parameters):
    return [(setting, means, allowed) for setting, means in zip(sweep(method, figures, **parameters), figures.values())]


# (setting, means by group, allowed).
EXPECTED = {
    "text": [
        (Setting(None, source=BASE), (57.2, 65.4), ALLOWED),
        (Setting("linear"), (64.0, 65.4), ALLOWED),
        *curve("task_arithmetic", {0.3: (67.7, 65.4), 0.4: (69.3, 62.6), 0.5: (69.4, 59.3), 0.7: (67.1, 53.1), 1.0: (55.3, 43.8)}),
        # The README's TIES trims over the whole model, merganser tensor by tensor.
        *curve("ties", {0.75: (68.3, 65.2), 1.0: (69.6, 63.5), 1.5: (69.3, 57.8)}, TIES_ALLOWED, density=0.2),
        # What the README calls rank ratio 0.08 is rank 31 of 384, 0.08 · 384 = 30.72 rounded; merganser's `rank_ratio` rounds down.
        *curve("cart", {1.0: (69.3, 65.6), 2.0: (73.2, 63.9), 3.0: (74.2, 62.2), 4.0: (74.5, 61.4)}, rank=31),
        *curve("cart", {1.0: (67.1, 65.8), 2.0: (69.2, 66.2), 3.0: (70.7, 66.5)}, rank_ratio=0.16),
        *curve("low_rank", {0.4: (68.7, 63.0), 0.6: (68.3, 58.0)}, rank=31),
    ],
    # Merged by merganser too, but evaluated by another program.
    "vision": [
        (Setting(None, source=BASE), (63.1, 78.8, 47.2), ALLOWED),
        (Setting("linear"), (64.6, 77.9, 49.0), ALLOWED),
        *curve("task_arithmetic", {0.1: (64.4, 78.4, 48.8), 0.3: (62.2, 69.8, 44.7), 0.5: (50.8, 53.9, 33.8)}),
        *curve("ties", {0.5: (64.4, 75.6, 47.0), 1.0: (59.7, 64.9, 39.5)}, density=0.2),
        *curve("cart", {1.0: (66.3, 76.6, 48.8), 2.0: (65.3, 72.2, 46.6)}, rank_ratio=0.08),
        *curve("cart", {2.0: (67.8, 76.5, 50.0)}, rank_ratio=0.16),
        *curve("iso_c", {1.0: (67.1, 75.5, 49.8)}),
        *curve("tsv_m", {1.0: (66.7, 74.6, 48.2)}),
    ],
}


def expected(kind, methods):
    """What is expected of the methods that the binary has; names only in `methods`."""
    return [row for row in EXPECTED[kind] if row[0].method is None or row[0].method in methods]


def verdict(kind, results, methods):
    """(lines, how many are off)."""
    means = results.per_task(results.all_examples())
    lines, off = [], 0
    for setting, wanted, allowed in expected(kind, methods):
        place = results.settings.index(setting)
        found = [sum(means[task][0, place] for task in tasks) / len(tasks) for tasks in results.groups.values()]
        good = len(found) == len(wanted) and all(abs(value - other) <= allowed + ROUNDING for value, other in zip(found, wanted))
        off += not good
        figures = " ".join(f"{value:6.2f}" for value in found)
        lines.append(f"{setting.key:40} {figures}   expected {' '.join(map(str, wanted))} ± {allowed}  {'ok' if good else 'OFF'}")
    return lines, off
