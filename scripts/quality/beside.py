"""Both benchmarks beside each other: what each method reaches at the λ of its best ID accuracy, over the pre-trained model.

Made from what `results.json` of each says, so that either can be measured again alone.
"""

import json
import os

from benchmark import BASE, ENCODERS
from tables import markdown, signed

KINDS = tuple(ENCODERS)


def read(folder):
    """{kind: the document} of what has been measured there."""
    found = {}
    for kind in KINDS:
        path = os.path.join(folder, kind, "results.json")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as handle:
                found[kind] = json.load(handle)
    return found


def methods(document):
    """{method: (its setting, λ or None, {group: points over the pre-trained model})}, the best ID of each method without a stage."""
    base = next(entry["means"] for entry in document["settings"] if entry["setting"] == BASE)
    unmerged = {BASE, *document["groups"]["ID"]}
    best = {}
    for entry in document["settings"]:
        if entry["setting"] in unmerged or "|" in entry["setting"]:
            continue
        method = entry["setting"].split()[0]
        if method not in best or entry["means"]["ID"] > best[method]["means"]["ID"]:
            best[method] = entry
    return {method: (entry["setting"], entry["lambda"], {group: mean - base[group] for group, mean in entry["means"].items()})
            for method, entry in best.items()}


def in_order(found):
    """Names of the methods that any benchmark has, best first: by the mean of their ID points where they were measured."""
    names = {name for methods_of in found.values() for name in methods_of}
    mean = lambda name: sum(of[name][2]["ID"] for of in found.values() if name in of) / sum(name in of for of in found.values())  # noqa: E731
    return sorted(names, key=lambda name: -mean(name))


def table(documents, found):
    head = ["method"] + [f"{kind}: {what}" for kind in found for what in ("setting", "λ", *documents[kind]["groups"])]
    rows = []
    for name in in_order(found):
        row = [f"`{name}`"]
        for kind, of in found.items():
            if name in of:
                setting, scale, points = of[name]
                row += [" ".join(setting.split()[1:]) or "–", "–" if scale is None else f"{scale:g}", *map(signed, points.values())]
            else:
                row += ["–"] * (2 + len(documents[kind]["groups"]))
        rows.append(row)
    return markdown(head, rows)


def draw(found, path):
    import plots

    names = in_order(found)[::-1]
    figure, both = plots.plt.subplots(1, 2, figsize=(10, 0.32 * len(names) + 1.2), sharey=True)
    for axes, group, title in zip(both, ("ID", "OOD"), ("in domain: higher is a better merge", "out of domain: what the merge costs elsewhere")):
        for kind, colour, marker in zip(found, plots.COLOURS, "os"):
            points = [(found[kind][name][2][group], place) for place, name in enumerate(names) if name in found[kind]]
            axes.plot(*zip(*points), marker, color=colour, label=kind, markersize=6)
        axes.axvline(0, color="0.4", linewidth=1)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("points of accuracy over the pre-trained model")
        axes.set_title(title, fontsize=9)
    both[0].legend(fontsize=8, loc="lower right")
    plots.save(figure, path)


def write(folder, plotting):
    """methods.md and, where `plotting`, methods.png in `folder`, once every benchmark has been measured."""
    documents = read(folder)
    if len(documents) < len(KINDS):
        return
    found = {kind: methods(document) for kind, document in documents.items()}
    text = ["# Every method on both benchmarks", "", "At the λ of its best ID accuracy, in points over the pre-trained model; λ is swept, other parameters are as named.",
            "", table(documents, found), ""]
    with open(os.path.join(folder, "methods.md"), "w", encoding="utf-8") as handle:
        handle.write("\n".join(text))
    if plotting:
        draw(found, os.path.join(folder, "methods.png"))
