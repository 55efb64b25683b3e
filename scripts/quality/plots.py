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
# No date and no version in the files: the same figures give the same bytes.
METADATA = {"Software": None}


def save(figure, path):
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata=METADATA, bbox_inches="tight")
    plt.close(figure)


def fronts(results, path, curves):
    """ID against OOD: every measured setting as a dot, the named curves over λ, and the Pareto front."""
    means = [part[0] for part in results.means(results.all_examples())]
    shown = [place for place, setting in enumerate(results.settings) if setting.method or setting.source == BASE]
    figure, axes = plt.subplots(figsize=(9.5, 6.5))
    axes.plot(means[0][shown], means[1][shown], ".", color="0.8", markersize=5, zorder=1)
    front = analysis.pareto([part[shown] for part in means])
    axes.plot(means[0][shown][front], means[1][shown][front], color="0.55", linewidth=5, alpha=0.35, zorder=1, label="Pareto front of all")
    found = results.curves()
    methods = list(dict.fromkeys(curve.method for curve in curves))
    for curve in (curve for curve in curves if curve in found):
        places, staged, number = found[curve], curve.stage is not None, methods.index(curve.method)
        axes.plot(means[0][places], means[1][places], color=COLOURS[number % len(COLOURS)], marker="os^Dv"[number % 5], markersize=5,
                  linewidth=2 if staged else 1.2, linestyle="-" if staged else "--", label=tables.short(curve), zorder=3)
        ends = (places[0], places[-1])
        for place in ends:
            axes.annotate(f"λ {results.settings[place].scale:g}", (means[0][place], means[1][place]), textcoords="offset points", xytext=(4, 4), fontsize=7)
    for name, label in ((Setting(None, source=BASE), "pre-trained"), (Setting("linear"), "average")):
        if name in results.settings:
            place = results.settings.index(name)
            axes.annotate(label, (means[0][place], means[1][place]), textcoords="offset points", xytext=(5, -10), fontsize=8)
            axes.plot(means[0][place], means[1][place], "k*", markersize=9, zorder=4)
    axes.set_xlabel("mean accuracy in domain (ID), %")
    axes.set_ylabel("mean accuracy out of domain (OOD), %")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 50))
    axes.set_xlim(left=max(axes.get_xlim()[0], 56))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
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
    if any(curve in curves for curve in pairs + others):
        fronts(results, os.path.join(folder, "fronts.png"), pairs + others)
        best = [results.settings[max(curves[curve], key=lambda place: means[0][place])] for curve in pairs + others if curve in curves]
        per_task(results, os.path.join(folder, "tasks.png"), [Setting("linear"), *best])
    if any(setting in results.settings for setting in sweeps.map()):
        cart_map(results, os.path.join(folder, "cart.png"), sweeps.map_scales)
