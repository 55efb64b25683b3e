"""The table of one or more runs: every part, and every merge, from the latest run that has it."""

import statistics

from cases import GOALS, MERGES

MIB, GIB = 1 << 20, 1 << 30
NOTHING = "–"


class Timed:
    """The samples of one case in one session."""

    def __init__(self, session, part, case):
        self.session, self.samples = session, [s for s in session["samples"] if (s["part"], s["case"]) == (part, case)]
        self.seconds = [s["seconds"] for s in self.samples]
        self.median = statistics.median(self.seconds) if self.seconds else None

    def __bool__(self):
        return bool(self.seconds)

    def most(self, key):
        return max(s[key] for s in self.samples)

    def range(self):
        return f"{min(self.seconds):.2f}–{max(self.seconds):.2f}"


def latest(sessions, part, case):
    """The case in the latest session that has it; one without samples where none has."""
    found = [timed for timed in (Timed(session, part, case) for session in sessions) if timed]
    return found[-1] if found else Timed({"samples": []}, part, case)


def moving(session, read_bytes, copy="cp"):
    """Seconds of `cat` of as many bytes as a merge reads, and `cp` of its output, in the same session."""
    cat, copied = Timed(session, "merges", "cat"), Timed(session, "merges", copy)
    return cat.median * read_bytes / cat.samples[0]["read_bytes"] + copied.median


def lines_of(rows):
    """Aligned columns; the first left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]


def merges(sessions):
    head = ["merge", "seconds", "range", "÷ (cat + cp)", "goal", "÷ (with sync)", "÷, to memory", "memory", "mergekit", "its memory", "÷ merganser", "goal"]
    rows, scaled = [head], False
    for name in MERGES:
        ours, theirs = latest(sessions, "merges", name), latest(sessions, "merges", "mergekit:" + name)
        if not ours and not theirs:
            continue
        goal, faster = GOALS.get(name, (None, None))
        row = [name] + [NOTHING] * (len(head) - 1)
        units = {}
        for key, timed in (("ours", ours), ("theirs", theirs)):
            if timed:
                units[key] = timed.median / moving(timed.session, timed.samples[0]["read_bytes"])
        if ours:
            row[1:4] = [f"{ours.median:.2f}", ours.range(), f"{units['ours']:.2f}"]
            row[4] = f"≤ {goal}" if goal else NOTHING
            row[5] = f"{ours.median / moving(ours.session, ours.samples[0]['read_bytes'], 'cp+sync'):.2f}"
            if inside := latest(sessions, "merges", f"{name}, to memory"):
                row[6] = f"{inside.median / moving(inside.session, inside.samples[0]['read_bytes'], 'cp, to memory'):.2f}"
            row[7] = f"{ours.most('anonymous_bytes') / MIB:.0f} MiB"
        if theirs:
            row[8:10] = [f"{theirs.median:.1f}", f"{theirs.most('anonymous_bytes') / GIB:.1f} GiB"]
        if ours and theirs:
            together = Timed(theirs.session, "merges", name)
            if together:
                row[10] = f"{theirs.median / together.median:.1f} ×"
            else:
                row[10], scaled = f"≈ {units['theirs'] / units['ours']:.1f} ×", True
        row[11] = f"≥ {faster} ×" if faster else NOTHING
        rows.append(row)
    if len(rows) == 1:
        return []
    session = next(s for s in reversed(sessions) if Timed(s, "merges", "cat"))
    cat, cp, sync = (Timed(session, "merges", case).median for case in ("cat", "cp", "cp+sync"))
    end = [f"cat of all inputs {cat:.2f} s, cp of the output's size {cp:.2f} s, and until it is on the disk {sync:.2f} s"]
    if disk := Timed(session, "merges", "dd to disk"):
        end.append(f"dd writes as much from memory to the disk, which every merge does, in {disk.median:.2f} s ({disk.range()})")
    if scaled:
        end.append("≈: from two runs, each beside its own cat and cp")
    versions = [s["facts"]["mergekit"] for s in sessions if "mergekit" in s["facts"]]
    return lines_of(rows) + end + ([f"compared with {versions[-1]}; memory is anonymous memory, without the page cache, at its peak"] if versions else [])


def with_fact(sessions, fact):
    return next((s for s in reversed(sessions) if fact in s["facts"]), None)


def generator(sessions):
    session = with_fact(sessions, "family")
    if not session:
        return []
    found = session["facts"]["family"]
    return [f"family: {found['zeros']:.1%} of changes are zero (seen {found['seen']['zeros']:.0%}); exactly at the top-20 % cut lie {found['tied']:.2f} k "
            f"(seen {found['seen']['tied']:.2f} k)"]


def bench(sessions):
    session = with_fact(sessions, "bench")
    if not session:
        return []
    rows = [["limit or path", "threads", "rate", "of its limit"]]
    for row in session["facts"]["bench"]["rows"]:
        rate = f"{row['rate'] / 1e9:.2f} " + ("GB/s" if row["unit"] == "bytes" else "GFLOP/s")
        share = f"{row['of_limit']:.0%} of {row['limit']}" if row["of_limit"] else NOTHING
        rows.append([row["name"], str(row["threads"]), rate, share])
    return lines_of(rows)


def cart(sessions):
    timed = latest(sessions, "cart", "cart")
    if not timed:
        return []
    fact, anonymous = timed.session["facts"]["cart"], timed.most("anonymous_bytes") / MIB
    return [f"cart of {fact['params']:.2g} {fact['shape']}-shaped parameters: {timed.median:.2f} s ({timed.range()}), "
            f"{fact['operations'] / timed.median / 1e9:.0f} GFLOP/s, {anonymous:.0f} MiB anonymous"]


def many(sessions):
    session = with_fact(sessions, "many")
    if not session:
        return []
    fact = session["facts"]["many"]
    # Keys are numbers in a run that has just ended, text in a file.
    fact["read_bytes"] = {str(tasks): read for tasks, read in fact["read_bytes"].items()}
    few, most = sorted(fact["read_bytes"], key=int)
    moved = {tasks: fact["read_bytes"][tasks] + fact["written_bytes"] for tasks in (few, most)}
    rows = [["fine-tunes", few, most, "time grows", "bytes grow", "anonymous"]]
    for case in ("cat", "cp", "task_arithmetic", "ties"):
        a, b = (Timed(session, "many", f"{case} of {tasks}") for tasks in (few, most))
        merge = case not in ("cat", "cp")
        grow = moved[most] / moved[few] if merge else fact["read_bytes"][most] / fact["read_bytes"][few] if case == "cat" else 1.0
        memory = f"{b.most('anonymous_bytes') / MIB:.0f} MiB" if merge else NOTHING
        rows.append([case, f"{a.median:.2f} s", f"{b.median:.2f} s", f"{b.median / a.median:.2f} ×", f"{grow:.2f} ×", memory])
    return lines_of(rows)


def cold(sessions):
    session = with_fact(sessions, "cold")
    if not session:
        return []
    read = session["facts"]["cold"]["read_bytes"]
    rows = [["cold cache", "seconds", "range", "read at", "beside dd's", "goal"]]
    both = Timed(session, "cold", "dd beside a write")
    fastest = min(Timed(session, "cold", case).median for case in ("dd", "dd, direct"))
    for case in dict.fromkeys(s["case"] for s in session["samples"] if s["part"] == "cold"):
        timed = Timed(session, "cold", case)
        # What writes to the disk as well is compared with dd that does.
        beside, what = (both.median, "dd beside a write") if both and not case.endswith("to memory") else (fastest, "the faster dd")
        share, goal = (NOTHING, NOTHING) if case.startswith("dd") else (f"{beside / timed.median:.0%} of {what}", "≥ 90 %")
        rows.append([case, f"{timed.median:.2f}", timed.range(), f"{read / timed.median / 1e9:.2f} GB/s", share, goal])
    return lines_of(rows)


def small(sessions):
    lines = []
    for case, goal in (("true", ""), ("merganser --version", ""), ("merganser --help", " (goal: ≤ 20 ms)")):
        timed = latest(sessions, "startup", case)
        if timed:
            lines.append(f"{case}: {1e3 * timed.median:.1f} ms{goal}")
    session = with_fact(sessions, "plan")
    if session:
        fact = session["facts"]["plan"]
        lines.append(f"{fact['models']} checkpoints of {fact['tensors']} tensors, {fact['model_bytes'] / 1e9:.0f} GB and {fact['shards']} shards each:")
        lines += [f"  {case}: {Timed(session, 'plan', case).median:.3f} s (goal: ≤ 0.2 s)" for case in ("plan", "no-op resume")]
    return lines


def head(sessions):
    """The machine and the family, which must be the same in all sessions."""
    def of(session):
        return session["machine"], session["shape"], session["params"]

    last = sessions[-1]
    if any(of(session) != of(last) for session in sessions):
        raise SystemExit("these runs are of several machines or families: give files of one")
    m, sizes = last["machine"], [s["model_bytes"] for s in sessions if "model_bytes" in s]
    size = f", {sizes[-1] / 1e9:.2f} GB" if sizes else ""
    programs = sorted({f"{s['merganser']} at {s['commit']}" + "".join(f" {o}" for o in s["options"]) for s in sessions})
    return [f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['disk']}, {m['kernel']}; {sessions[0]['date']}",
            f"{'; '.join(programs)}; models of {last['params']:.2g} {last['shape']}-shaped parameters{size}, bfloat16, a base and three fine-tunes"]


def render(sessions):
    """Everything that these sessions have, as text."""
    parts = [head(sessions)] + [part(sessions) for part in (generator, bench, merges, cart, many, cold, small)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)
