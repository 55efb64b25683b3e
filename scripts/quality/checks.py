"""What the benchmark's README measured with a program of its own, and how far off merganser's merges may be."""

from settings import BASE, Setting, sweep

ALLOWED, TIES_ALLOWED = 0.5, 2.0
# The README prints tenths.
ROUNDING = 0.05


def curve(method, figures, allowed=ALLOWED, **parameters):
    return [(setting, id_mean, ood_mean, allowed)
            for setting, (id_mean, ood_mean) in zip(sweep(method, figures, **parameters), figures.values())]


# (setting, ID, OOD, allowed).
EXPECTED = [
    (Setting(None, source=BASE), 57.2, 65.4, ALLOWED),
    (Setting("linear"), 64.0, 65.4, ALLOWED),
    *curve("task_arithmetic", {0.3: (67.7, 65.4), 0.4: (69.3, 62.6), 0.5: (69.4, 59.3), 0.7: (67.1, 53.1), 1.0: (55.3, 43.8)}),
    # The README's TIES trims over the whole model, merganser tensor by tensor.
    *curve("ties", {0.75: (68.3, 65.2), 1.0: (69.6, 63.5), 1.5: (69.3, 57.8)}, TIES_ALLOWED, density=0.2),
    # What the README calls rank ratio 0.08 is rank 31 of 384, 0.08 · 384 = 30.72 rounded; merganser's `rank_ratio` rounds down.
    *curve("cart", {1.0: (69.3, 65.6), 2.0: (73.2, 63.9), 3.0: (74.2, 62.2), 4.0: (74.5, 61.4)}, rank=31),
    *curve("cart", {1.0: (67.1, 65.8), 2.0: (69.2, 66.2), 3.0: (70.7, 66.5)}, rank_ratio=0.16),
    *curve("low_rank", {0.4: (68.7, 63.0), 0.6: (68.3, 58.0)}, rank=31),
]


def expected(methods):
    """What is expected of the methods that the binary has; names only in `methods`."""
    return [row for row in EXPECTED if row[0].method is None or row[0].method in methods]


def verdict(results, methods):
    """(lines, how many are off)."""
    means = results.means(results.all_examples())
    lines, off = [], 0
    for setting, id_mean, ood_mean, allowed in expected(methods):
        place = results.settings.index(setting)
        found = [part[0, place] for part in means]
        good = all(abs(value - wanted) <= allowed + ROUNDING for value, wanted in zip(found, (id_mean, ood_mean)))
        off += not good
        lines.append(f"{setting.key:40} {found[0]:6.2f} {found[1]:6.2f}   expected {id_mean:.1f} {ood_mean:.1f} ± {allowed}  {'ok' if good else 'OFF'}")
    return lines, off
