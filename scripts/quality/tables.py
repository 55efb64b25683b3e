"""The measured figures as CSV, JSON and Markdown. Aggregates only: nothing here says which example was right."""

import csv
import json

import numpy as np

import analysis
from analysis import BELOW, HEADLINE
from settings import BASE, TASKS


# An ID accuracy at which methods are compared: about the best of the weakest of them.
COMMON_ID = 69.0


def percent(value):
    return f"{value:.1f}"


def signed(value):
    return "–" if np.isnan(value) else f"{value:+.1f}".replace("-", "−")


def interval(values, low=2.5, high=97.5):
    return f"{signed(np.nanpercentile(values, low))} … {signed(np.nanpercentile(values, high))}"


def markdown(head, rows, right_from=1):
    """A table; columns from `right_from` on are numbers."""
    line = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"  # noqa: E731
    return "\n".join([line(head), "|" + "".join("---|" if place < right_from else "--:|" for place in range(len(head)))] + [line(row) for row in rows])


def short(setting):
    """A setting for a person: the stage's parameters by value, and only what is not usual."""
    if setting.method is None:
        return "pre-trained" if setting.source == BASE else f"fine-tune {setting.source}"
    words = [setting.method] + [f"{name} {value}" for name, value in setting.parameters]
    if setting.stage == ():
        words.append("+ lwptv")
    elif setting.stage is not None:
        values = dict(setting.stage)
        words.append("+ {score} / {granularity} / {keep}".format(**values))
        words += [values["order"]] * (values["order"] != "keep_salient") + [values["rescale"]] * (values["rescale"] != "none")
    if setting.random is not None:
        words.append("+ random / {} / {} (seed {})".format(*setting.random))
    return " ".join(words)


def every(results):
    """[(setting, ID, OOD, {task: accuracy})], all examples alike."""
    looks = results.all_examples()
    accuracy = results.per_task(looks)
    means = results.means(looks)
    return [(setting, means[0][0, place], means[1][0, place], {task: accuracy[task][0, place] for task in results.tasks})
            for place, setting in enumerate(results.settings)]


def write_csv(path, results):
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["setting", "lambda", "ID", "OOD", *results.tasks])
        for setting, id_mean, ood_mean, tasks in every(results):
            writer.writerow([setting.curve.key, "" if setting.scale is None else setting.scale, f"{id_mean:.2f}", f"{ood_mean:.2f}",
                             *(f"{tasks[task]:.1f}" for task in results.tasks)])


def write_json(path, results, found):
    """The same, and what follows from it (`found`: plain data)."""
    settings = [{"setting": setting.curve.key, "lambda": setting.scale, "id": round(id_mean, 3), "ood": round(ood_mean, 3),
                 "tasks": {task: round(value, 3) for task, value in tasks.items()}} for setting, id_mean, ood_mean, tasks in every(results)]
    document = {"schema": 1, "id_tasks": results.id_tasks, "ood_tasks": results.ood_tasks, "settings": settings, **found}
    with open(path, "w", encoding="utf-8") as handle:
        json.dump(document, handle, indent=1)
        handle.write("\n")


def by_setting(results):
    """Every setting with its accuracies."""
    rows = [[short(setting), percent(id_mean), percent(ood_mean), *(percent(tasks[task]) for task in results.tasks)]
            for setting, id_mean, ood_mean, tasks in every(results)]
    return markdown(["", "ID", "OOD", *results.tasks], rows)


def individual(results):
    """Mean accuracy of each fine-tune on its own task, or None where one was not measured."""
    own = [tasks[setting.source] for setting, _, _, tasks in every(results) if setting.method is None and setting.source in TASKS]
    return float(np.mean(own)) if len(own) == len(TASKS) else None


def best_of_methods(results):
    """Each method without a stage: its best ID, and its OOD at an ID accuracy that nearly every method reaches."""
    looks, rows = results.all_examples(), []
    means = results.means(looks)
    for curve, places in results.curves().items():
        if curve.stage is not None or curve.random is not None:
            continue
        line = analysis.along(means, places)
        best = places[int(line.id[0].argmax())]
        common = line.best(np.array([COMMON_ID]))[0][0]
        rows.append([short(curve), results.settings[best].scale, percent(means[0][0, best]), percent(means[1][0, best]),
                     "–" if np.isnan(common) else percent(common)])
    rows.sort(key=lambda row: -float(row[2]))
    return markdown(["method", "λ of the best ID", "ID", "OOD there", f"OOD at ID {COMMON_ID:g}"], rows)


def gain_rows(results, plain, candidates, draws):
    """Each curve's gain over the plain method's λ sweep, best first; `draws` are the bootstrap's looks."""
    whole, spread = (analysis.gains(results, plain, candidates, looks) for looks in (results.all_examples(), draws))
    means, curves = results.means(results.all_examples()), results.curves()
    rows = []
    for curve in candidates:
        best = analysis.along(means, curves[curve]).id.max()
        rows.append((whole[curve][HEADLINE][0], [short(curve), len(curves[curve]), percent(best),
                    *(signed(whole[curve][below][0]) for below in BELOW), interval(spread[curve][HEADLINE])]))
    return [row for _, row in sorted(rows, key=lambda row: -np.nan_to_num(row[0], nan=-99))]


def gain_table(results, plain, candidates, draws):
    head = ["in front of " + short(plain), "λs", "best ID"] + [f"at −{below}" for below in BELOW] + [f"95 % at −{HEADLINE}"]
    return markdown(head, gain_rows(results, plain, candidates, draws))
