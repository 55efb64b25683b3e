"""The table that gpu-bench prints last."""


def apart(compared):
    """How far two outputs are apart, by what `merganser compare --json` says: the largest relative error of a tensor."""
    if compared.get("identical") is True:
        return 0.0
    if not compared.get("same_layout"):
        return float("inf")
    # A difference of tensors that hold no floats, or a NaN in one alone, is no number: too far.
    errors = [tensor["relative_error"] for tensor in compared["tensors"] if tensor["differing"] != 0]
    return max((float("inf") if error is None else error for error in errors), default=float("inf"))


def rows_of(document):
    return {row["name"]: row for row in (document or {}).get("rows", [])}


def number(value, unit):
    return f"{value / 1e9:.1f} GB/s" if unit == "bytes" else f"{value / 1e12:.2f} TFLOP/s"


def predicted(row):
    """What the card's published rates let expect."""
    return "–" if row.get("predicted") is None else number(row["predicted"], row["unit"])


def share(value):
    return "–" if value is None else f"{100 * value:.0f} %"


def aligned(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
             for row in rows]
    return "\n".join(lines)


def element_wise(results):
    """Paths beside their limits, and PyTorch's."""
    torch, found = results.get("torch"), {}
    if isinstance(torch, dict):
        found = torch["found"]
    out = [["path", "merganser", "predicted", "of its limit", "PyTorch", "ratio"]]
    for name, row in rows_of(results.get("rates")).items():
        if row["limit"] is None:
            continue
        method, _, way = name.partition(", streamed")
        theirs = found.get(method, {}).get("streamed" if name != method else "resident")
        kind = "from the host and back" if name != method else "on the device"
        out.append([f"{method}, {kind}", number(row["rate"], row["unit"]), predicted(row), share(row["of_limit"]),
                    "–" if theirs is None else number(theirs, "bytes"), "–" if theirs is None else f"{row['rate'] / theirs:.1f}"])
    return out


def cart(results):
    out = [["CART, whole merges", "seconds", "rate", "predicted", "of f64 product", "PyTorch's SVDs, s", "ratio"]]
    for name in ("vit-l-14", "llama-8b"):
        ours = [row for row in rows_of(results.get(f"cart {name}")).values() if row["name"].startswith("cart")]
        theirs = results.get(f"torch {name}")
        row = [name, "–", "–", "–", "–", "–", "–"]
        if ours:
            seconds = ours[0]["work"] / ours[0]["rate"]
            row = [ours[0]["name"], f"{seconds:.1f}", number(ours[0]["rate"], ours[0]["unit"]), predicted(ours[0]), share(ours[0]["of_limit"]), "–",
                   "–"]
        if isinstance(theirs, dict):
            found = theirs["found"]
            row[5] = f"{found['seconds']:.1f} ({found['measured']} of {found['matrices']} measured)"
            row[6] = f"{found['seconds'] / seconds:.1f}" if ours else "–"
        out.append(row)
    return out


def notes(results):
    """What the table lacks, and why."""
    told = [f"left out: {what}" for what in results["left_out"]] + [f"failed: {what}" for what in results["failed"]]
    for name in ("torch", "torch vit-l-14", "torch llama-8b"):
        if isinstance(results.get(name), str):
            told.append(f"no PyTorch ({name.removeprefix('torch').strip() or 'paths'}): {results[name]}")
    return list(dict.fromkeys(told))


def table(results):
    device = results["device"]
    versions = ", ".join(f"{name} {version}" for name, version in device["libraries"].items() if version)
    torch = next((r["torch"] for r in results.values() if isinstance(r, dict) and "torch" in r), None)
    parts = [f"{device['name']}, driver {device['driver_release'] or device['driver'] or 'unknown'}, CUDA {device['driver_supports']}, {versions}, "
             + (f"PyTorch {torch}" if torch else "no PyTorch") + f"; {results['seconds']:.0f} s"]
    if device["stand_in"]:
        parts.append("THIS IS THE STAND-IN, NO GPU: THE NUMBERS MEAN NOTHING.")
    limits = [["limit", "rate", "predicted"]]
    limits += [[name, number(row["rate"], row["unit"]), predicted(row)] for name, row in rows_of(results.get("rates")).items()
               if row["limit"] is None]
    parts += [aligned(block) for block in (limits, element_wise(results), cart(results)) if len(block) > 1]
    parts += notes(results)
    return "\n\n".join(parts[:-len(notes(results))] if notes(results) else parts) + "".join(f"\n{note}" for note in notes(results))
