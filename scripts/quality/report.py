"""What a search shows about the stage: gains over the λ sweep, random controls, cross-fit. Plain data and Markdown."""

from collections import Counter

import numpy as np

import analysis
import tables
from analysis import BELOW, HEADLINE
from settings import Setting
from tables import interval, markdown, short, signed

SEED, DRAWS, SPLITS = 20250609, 1000, 100
# A curve of fewer points says little about the best λ.
FEWEST_POINTS = 2


def candidates(results, plain, random=False):
    """The curves with the stage (or pruned at random) in front of the method and parameters of `plain`."""
    return [curve for curve, places in results.curves().items()
            if (curve.method, curve.parameters) == (plain.method, plain.parameters) and len(places) >= FEWEST_POINTS
            and (curve.random is not None if random else curve.stage not in (None, ()))]


def front_of(results, plain, found):
    """What the search found in front of one method: (plain data, Markdown)."""
    staged, random = candidates(results, plain), candidates(results, plain, random=True)
    stages = {"`lwptv` with its defaults": (), "`lwptv` as found best": found}
    named = [(label, Setting(plain.method, plain.parameters, stage=stage)) for label, stage in stages.items()]
    named = [(label, curve) for label, curve in named if curve in results.curves()]
    draws = results.bootstrap(DRAWS, np.random.default_rng(SEED))
    text = [f"### In front of `{short(plain)}`", "", tables.gain_table(results, plain, staged + random, draws), ""]
    data = {"gains": gain_figures(results, plain, staged + random)}
    if random:
        for label, curve in named:
            data.setdefault("over_random", {})[curve.key], lines = over_random(results, plain, label, curve, random, draws)
            text += lines
    if len(staged) > 1:
        data["cross_fit"], lines = cross_fits(results, plain, staged, named)
        text += lines
    return data, text


def gain_figures(results, plain, curves):
    whole, measured = analysis.gains(results, plain, curves, results.all_examples()), results.curves()
    means = results.means(results.all_examples())
    return [{"curve": curve.key, "points": len(measured[curve]), "best_id": means[0][0, measured[curve]].max(),
             "gain_below_best_id": {str(below): whole[curve][below][0] for below in BELOW}} for curve in curves]


def over_random(results, plain, label, staged, random, draws):
    """A stage over random pruning, both by their λ sweeps, at the ID accuracy that both reach."""
    curves, rows, data = results.curves(), [], []
    for looks in (results.all_examples(), draws):
        means = results.means(looks)
        base, ours = (analysis.along(means, curves[curve]) for curve in (plain, staged))
        data.append([analysis.gain_between(base, ours, analysis.along(means, curves[curve]), HEADLINE) for curve in random])
    for curve, whole, drawn in zip(random, *data):
        rows.append([short(curve), signed(whole[0]), interval(drawn)])
    head = [f"{label} over", "OOD at equal ID", "95 %"]
    return [{"curve": curve.key, "gain": whole[0]} for curve, whole in zip(random, data[0])], [markdown(head, rows), ""]


def cross_fits(results, plain, staged, named):
    """The stage and λ chosen on one half of the examples and measured on the other: (plain data, Markdown)."""
    fit = lambda curves, without=None: analysis.cross_fit(results, plain, curves, SPLITS, np.random.default_rng(SEED), without=without)  # noqa: E731
    found = [("stage and λ, by all OOD tasks", None, fit(staged))]
    found += [(f"stage and λ, by all but {task}", task, fit(staged, task)) for task in results.ood_tasks]
    found += [(f"λ alone, {label}", None, fit([curve])) for label, curve in named]
    rows = [[label, signed(it.seen.mean()), signed(it.unseen.mean()), f"{it.unseen.std():.1f}", interval(it.unseen),
             signed(it.carried_id.mean()), signed(it.carried_ood.mean())] for label, _, it in found]
    data = [{"chosen_by": label, "seen": it.seen.mean(), "unseen": it.unseen.mean(), "unseen_sd": it.unseen.std(), "carried_id": it.carried_id.mean(),
             "carried_ood": it.carried_ood.mean(), "chosen": {curve.key: count for curve, count in Counter(it.chosen).most_common()}} for label, _, it in found]
    head = ["what is chosen on one half", "gain there", "gain on the other half", "SD", "95 % of splits", "λs carried over: ID", "OOD"]
    chosen = Counter(found[0][2].chosen).most_common(6)
    return data, [f"Cross-fit, {SPLITS} random splits, both ways, at {HEADLINE} below the plain method's best ID:", "", markdown(head, rows), "",
                  "Chosen most often: " + "; ".join(f"{short(curve)} ({100 * count / (2 * SPLITS):.0f} %)" for curve, count in chosen) + ".", ""]


def search_report(results, sweeps):
    """(plain data, Markdown lines) over the methods that the stage is put in front of."""
    data, lines = {}, ["## The pruning stage", "", f"OOD points over the plain method's λ sweep at equal ID, at so much below its best ID; 95 %: {DRAWS} bootstrap draws.", ""]
    for method in sweeps.plain:
        plain = sweeps.plain_of(method)[0].curve
        if plain in results.curves() and candidates(results, plain):
            data[method], text = front_of(results, plain, sweeps.found[method])
            lines += text
    return {"stage": data}, lines
