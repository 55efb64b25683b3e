"""What a search shows about the stage: gains over the λ sweep, random controls, cross-fit. Plain data and Markdown."""

from collections import Counter

import numpy as np

import analysis
import tables
from analysis import BELOW, HEADLINE
from settings import PLAIN
from tables import interval, markdown, short, signed

SEED, DRAWS, SPLITS = 20250609, 1000, 100
# A curve of fewer points says little about the best λ.
FEWEST_POINTS = 2


def candidates(results, plain, random=False):
    """The curves with the stage (or pruned at random) in front of the method and parameters of `plain`."""
    return [curve for curve, places in results.curves().items()
            if (curve.method, curve.parameters) == (plain.method, plain.parameters) and len(places) >= FEWEST_POINTS
            and (curve.random is not None if random else curve.stage not in (None, ()))]


def front_of(results, plain):
    """What the search found in front of one method: (plain data, Markdown)."""
    generator = np.random.default_rng(SEED)
    staged, random = candidates(results, plain), candidates(results, plain, random=True)
    draws = results.bootstrap(DRAWS, generator)
    text = [f"### In front of `{short(plain)}`", "", tables.gain_table(results, plain, staged + random, draws), ""]
    data = {"gains": [dict(zip(("curve", "points", "best_id", *(f"at_{below}" for below in BELOW)), row)) for row in gain_figures(results, plain, staged + random)]}
    if len(staged) < 2:
        return data, text
    rows, data["cross_fit"] = [], []
    for without in (None, *results.ood_tasks):
        fit = analysis.cross_fit(results, plain, staged, SPLITS, np.random.default_rng(SEED), without=without)
        rows.append(["all" if without is None else f"all but {without}", signed(fit.seen.mean()), signed(fit.unseen.mean()), f"{fit.unseen.std():.1f}",
                     interval(fit.unseen), signed(fit.carried_id.mean()), signed(fit.carried_ood.mean())])
        data["cross_fit"].append({"without": without, "seen": fit.seen.mean(), "unseen": fit.unseen.mean(), "unseen_sd": fit.unseen.std(),
                                  "carried_id": fit.carried_id.mean(), "carried_ood": fit.carried_ood.mean(),
                                  "chosen": {curve.key: count for curve, count in Counter(fit.chosen).most_common()}})
    head = ["OOD tasks that choose", "gain on the half that chose", "on the other half", "SD over splits", "95 % of splits",
            "λs carried over: ID", "OOD"]
    chosen = Counter(analysis.cross_fit(results, plain, staged, SPLITS, np.random.default_rng(SEED)).chosen).most_common(6)
    text += [f"Cross-fit, {SPLITS} random splits, both ways, at {HEADLINE} below the plain method's best ID:", "", markdown(head, rows), "",
             "Chosen most often: " + "; ".join(f"{short(curve)} ({100 * count / (2 * SPLITS):.0f} %)" for curve, count in chosen) + ".", ""]
    return data, text


def gain_figures(results, plain, curves):
    whole, measured = analysis.gains(results, plain, curves, results.all_examples()), results.curves()
    means = results.means(results.all_examples())
    return [(curve.key, len(measured[curve]), float(means[0][0, measured[curve]].max()), *(float(whole[curve][below][0]) for below in BELOW))
            for curve in curves]


def search_report(results):
    """(plain data, Markdown lines) over the three methods."""
    data, lines = {}, ["## The pruning stage", ""]
    for method, settings in PLAIN.items():
        plain = settings[0].curve
        if candidates(results, plain):
            data[method], text = front_of(results, plain)
            lines += text
    return {"stage": data}, lines
