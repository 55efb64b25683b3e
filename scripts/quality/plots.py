"""The plots, with matplotlib (scripts/requirements-plots.txt; nothing else needs it)."""

import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

import analysis  # noqa: E402
import tables  # noqa: E402
from benchmark import BASE  # noqa: E402
from settings import Setting  # noqa: E402
from sweeps import MAP_RATIOS  # noqa: E402

DOTS_PER_INCH = 110
# A method's colour; its curve with the stage is the solid one.
COLOURS = matplotlib.colormaps["tab10"].colors + matplotlib.colormaps["Dark2"].colors
# Points of ID accuracy below the pre-trained model's, beyond which a point is not drawn.
LEAST_GAIN = 2.0
# Methods that sum or choose elements; the others work on matrices.
MATRIX_METHODS = ("cart", "low_rank", "tsv_m", "iso_c", "iso_cts")
# No date and no version in the files: the same figures give the same bytes.
METADATA = {"Software": None}


def save(figure, path):
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata=METADATA, bbox_inches="tight")
    plt.close(figure)


def shown_places(places, means, base):
    """The part of a curve that says something: from its first to its last point that loses little ID to the pre-trained model."""
    near = [at for at, place in enumerate(places) if means[0][place] >= means[0][base] - LEAST_GAIN]
    return places[near[0] : near[-1] + 1] if near else []


def spread(labels, least):
    """Heights for labels that want these heights: in the same order, at least so far apart, and together no further off than need be."""
    heights = {}
    for name, wanted in sorted(labels.items(), key=lambda item: item[1]):
        heights[name] = max(wanted, max(heights.values(), default=-np.inf) + least)
    excess = (max(heights.values()) - max(labels.values())) / 2 if heights else 0
    return {name: height - excess for name, height in heights.items()}


def panel(axes, results, means, curves, title):
    """Curves over λ in the plane of ID and OOD, each named once at the right, beside the end of its line."""
    base = results.settings.index(Setting(None, source=BASE))
    found, ends = results.curves(), {}
    for number, curve in enumerate(curves):
        places = shown_places(found[curve], means, base)
        if not places:
            continue
        colour, staged = COLOURS[number % len(COLOURS)], curve.stage is not None
        axes.plot(means[0][places], means[1][places], color=colour, marker="os^Dv"[number % 5], markersize=4, linewidth=2 if staged else 1.2,
                  linestyle="-" if staged else "--", zorder=3)
        best = max(places, key=lambda place: means[0][place])
        ends[tables.short(curve)] = (means[0][best], means[1][best], colour)
    right = max((x for x, _, _ in ends.values()), default=means[0][base])
    low, high = axes.get_ylim()
    heights = spread({name: y for name, (_, y, _) in ends.items()}, (high - low) / 28)
    for name, (x, y, colour) in ends.items():
        axes.annotate(name, (x, y), xytext=(right + 0.6, heights[name]), fontsize=7.5, color=colour, va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 2})
    for name, label in ((Setting(None, source=BASE), "pre-trained"), (Setting("linear"), "average")):
        if name in results.settings:
            place = results.settings.index(name)
            axes.plot(means[0][place], means[1][place], "k*", markersize=9, zorder=4)
            axes.annotate(label, (means[0][place], means[1][place]), textcoords="offset points", xytext=(6, 6), fontsize=8)
    axes.set_xlabel("mean accuracy in domain (ID), %")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)


def fronts(results, path, groups):
    """ID against OOD: every measured setting as a dot, the Pareto front, and curves over λ in a panel a group; λ grows to the left and down."""
    means = [part[0] for part in results.means(results.all_examples())]
    base = results.settings.index(Setting(None, source=BASE))
    shown = [place for place, setting in enumerate(results.settings)
             if (setting.method or setting.source == BASE) and means[0][place] >= means[0][base] - LEAST_GAIN]
    figure, panels = plt.subplots(len(groups), 1, figsize=(8, 5.2 * len(groups)), squeeze=False)
    front = analysis.pareto([part[shown] for part in means])
    for axes, (title, curves) in zip(panels[:, 0], groups.items()):
        axes.plot(means[0][shown], means[1][shown], ".", color="0.8", markersize=5, zorder=1)
        axes.plot(means[0][shown][front], means[1][shown][front], color="0.55", linewidth=5, alpha=0.35, zorder=1)
        axes.set_ylabel("mean accuracy out of domain (OOD), %")
        panel(axes, results, means, curves, title)
    figure.subplots_adjust(right=0.68, hspace=0.25)
    save(figure, path)


def heat_map(axes, values, rows, columns, colours="viridis"):
    axes.imshow(values, cmap=colours, aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if value < middle else "black")
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)


def per_task(results, path, chosen):
    """A heat map: what each of the chosen settings does to each task, in points over the pre-trained model."""
    accuracy = results.per_task(results.all_examples())
    values = np.array([accuracy[task][0] for task in results.tasks]).T
    start = values[results.settings.index(Setting(None, source=BASE))]
    places = [results.settings.index(setting) for setting in chosen if setting in results.settings]
    figure, axes = plt.subplots(figsize=(9.5, 0.42 * len(places) + 1))
    change = values[places] - start
    reach = np.abs(change).max()
    axes.imshow(change, cmap="RdBu", aspect="auto", vmin=-reach, vmax=reach)
    for (row, column), value in np.ndenumerate(change):
        axes.text(column, row, f"{value:+.1f}".replace("-", "−"), ha="center", va="center", fontsize=8,
                  color="white" if abs(value) > 0.75 * reach else "black")
    axes.axvline(len(results.id_tasks) - 0.5, color="black")
    axes.set_xticks(range(len(results.tasks)), results.tasks, fontsize=8)
    axes.set_yticks(range(len(places)), [tables.short(results.settings[place]) for place in places], fontsize=8)
    axes.set_title("accuracy over the pre-trained model's, points; left of the line ID, right of it OOD", fontsize=9)
    save(figure, path)


def cart_map(results, path, scales):
    """ID and OOD accuracy of `cart` over rank ratio and λ."""
    means = [part[0] for part in results.means(results.all_examples())]
    place = {(dict(setting.parameters).get("rank_ratio"), setting.scale): number for number, setting in enumerate(results.settings)
             if setting.method == "cart" and setting.stage is None and setting.random is None}
    figure, both = plt.subplots(1, 2, figsize=(9.5, 3))
    for axes, part, title in zip(both, means, ("ID", "OOD")):
        values = np.array([[part[place[ratio, scale]] if (ratio, scale) in place else np.nan for scale in scales] for ratio in MAP_RATIOS])
        heat_map(axes, values, [f"{ratio:g}" for ratio in MAP_RATIOS], [f"{scale:g}" for scale in scales])
        axes.set_title(f"cart: mean {title} accuracy, %", fontsize=9)
        axes.set_xlabel("λ")
        axes.set_ylabel("rank ratio")
    save(figure, path)


def draw(results, sweeps, folder):
    """Writes fronts.png, tasks.png and cart.png, each if there is something for it."""
    curves = results.curves()
    means = [part[0] for part in results.means(results.all_examples())]
    pairs = [of(method)[0].curve for method in sweeps.plain for of in (sweeps.plain_of, sweeps.staged_of)]
    others = [curve for curve in curves if curve.method not in sweeps.plain and curve.stage is None]
    named = [curve for curve in pairs + others if curve in curves]
    if named and Setting(None, source=BASE) in results.settings:
        groups = {"methods on elements (solid: with the stage `lwptv` in front)": [curve for curve in named if curve.method not in MATRIX_METHODS],
                  "methods on matrices": [curve for curve in named if curve.method in MATRIX_METHODS]}
        fronts(results, os.path.join(folder, "fronts.png"), {title: of for title, of in groups.items() if of})
        best = [results.settings[max(curves[curve], key=lambda place: means[0][place])] for curve in named]
        per_task(results, os.path.join(folder, "tasks.png"), [Setting("linear"), *best])
    if any(setting in results.settings for setting in sweeps.map()):
        cart_map(results, os.path.join(folder, "cart.png"), sweeps.map_scales)
