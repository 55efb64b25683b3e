"""The measured figures as CSV, JSON and Markdown. Aggregates only: nothing here says which example was right."""

import csv
import json

import numpy as np

import analysis
from analysis import BELOW, HEADLINE
from benchmark import BASE


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
    """[(setting, {group: mean accuracy}, {task: accuracy})], all examples alike."""
    accuracy = {task: values[0] for task, values in results.per_task(results.all_examples()).items()}
    means = {group: np.mean([accuracy[task] for task in tasks], axis=0) for group, tasks in results.groups.items()}
    return [(setting, {group: values[place] for group, values in means.items()}, {task: accuracy[task][place] for task in results.tasks})
            for place, setting in enumerate(results.settings)]


def write_csv(path, results):
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["setting", "lambda", *results.groups, *results.tasks])
        for setting, groups, tasks in every(results):
            writer.writerow([setting.curve.key, "" if setting.scale is None else setting.scale, *(f"{mean:.2f}" for mean in groups.values()),
                             *(f"{tasks[task]:.1f}" for task in results.tasks)])


def write_json(path, results, found):
    """The same, and what follows from it (`found`: plain data)."""
    settings = [{"setting": setting.curve.key, "lambda": setting.scale, "means": {group: round(mean, 3) for group, mean in groups.items()},
                 "tasks": {task: round(value, 3) for task, value in tasks.items()}} for setting, groups, tasks in every(results)]
    document = {"schema": 2, "groups": results.groups, "settings": settings, **found}
    with open(path, "w", encoding="utf-8") as handle:
        json.dump(document, handle, indent=1)
        handle.write("\n")


def by_setting(results):
    """Every setting with its accuracies."""
    rows = [[short(setting), *map(percent, groups.values()), *(percent(tasks[task]) for task in results.tasks)]
            for setting, groups, tasks in every(results)]
    return markdown(["", *results.groups, *results.tasks], rows)


def individual(results):
    """Mean accuracy of each fine-tune on its own task, or None where one was not measured."""
    models = results.groups["ID"]
    own = [tasks[setting.source] for setting, _, tasks in every(results) if setting.method is None and setting.source in models]
    return float(np.mean(own)) if len(own) == len(models) else None


def methods_alone(results):
    """[(curve, places)] of every method without a stage; one that has no λ is a curve of one place."""
    found = [(curve, places) for curve, places in results.curves().items() if curve.stage is None and curve.random is None]
    return found + [(setting, [place]) for place, setting in enumerate(results.settings) if setting.method is not None and setting.scale is None]


def best_of_methods(results, common_id):
    """Each method without a stage: its best ID, what it has of the other groups there, and its OOD at an ID accuracy that most reach."""
    rows, means, figures = [], results.means(results.all_examples()), every(results)
    for curve, places in methods_alone(results):
        line = analysis.along(means, places)
        best = places[int(line.id[0].argmax())]
        common = line.best(np.array([common_id]))[0][0]
        scale = results.settings[best].scale
        rows.append((figures[best][1]["ID"], [short(curve), "–" if scale is None else f"{scale:g}", *map(percent, figures[best][1].values()),
                                              "–" if np.isnan(common) else percent(common)]))
    rows.sort(key=lambda row: -row[0])
    others = [f"{group} there" for group in results.groups if group != "ID"]
    return markdown(["method", "λ of the best ID", "ID", *others, f"OOD at ID {common_id:g}"], [row for _, row in rows])


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
