"""What follows from the measured settings: accuracies, gains at equal ID accuracy, cross-fit and bootstrap.

An accuracy is a weighted mean over examples; one vector of weights per task is one way to look at the data: all examples
alike, one half of them, or a bootstrap's draw. Whatever is computed here is computed for many such ways ("looks") at once.

The plain method's and a candidate's curves over λ are polylines in the plane of ID and OOD accuracy. OOD accuracy *at* an ID
accuracy is the greatest on the polyline where ID is at least that, so that of two λs with one ID the better one counts,
for both sides. The gain at equal ID is the difference of the two.
"""

from dataclasses import dataclass

import numpy as np

# How far below the plain method's best ID accuracy gains are looked at, in points. HEADLINE is the one that chooses.
BELOW = (0.0, 0.5, 1.0, 2.0, 3.0)
HEADLINE = 0.5


class Results:
    """Measured settings, and which examples each has right."""

    def __init__(self, benchmark):
        self.groups, self.tasks = benchmark.groups, benchmark.tasks
        self.id_tasks, self.ood_tasks = self.groups["ID"], self.groups["OOD"]
        self.settings, self._right = [], {task: [] for task in self.tasks}

    def add(self, setting, right):
        self.settings.append(setting)
        for task, bits in right.items():
            self._right[task].append(bits)

    def all_examples(self):
        """One look: every example alike."""
        return {task: np.full((1, len(bits[0])), 1 / len(bits[0])) for task, bits in self._right.items()}

    def bootstrap(self, count, generator):
        """Looks that draw each task's examples with replacement."""
        looks = {}
        for task, bits in self._right.items():
            size = len(bits[0])
            looks[task] = generator.multinomial(size, np.full(size, 1 / size), size=count) / size
        return looks

    def halves(self, count, generator):
        """Two lists of looks, each other's complement: every task's examples are split in two halves at random."""
        first, second = {}, {}
        for task, bits in self._right.items():
            size = len(bits[0])
            chosen = np.argsort(generator.random((count, size)), axis=1) < size // 2
            first[task] = chosen / chosen.sum(axis=1, keepdims=True)
            second[task] = ~chosen / (~chosen).sum(axis=1, keepdims=True)
        return first, second

    def per_task(self, looks):
        """{task: accuracy in percent [looks, settings]}."""
        return {task: 100 * looks[task] @ np.array(bits, dtype=np.float64).T for task, bits in self._right.items()}

    def means(self, looks, without=None):
        """(ID, OOD), each [looks, settings]. `without` leaves an OOD task out."""
        accuracy = self.per_task(looks)
        ood = [task for task in self.ood_tasks if task != without]
        return tuple(np.mean([accuracy[task] for task in tasks], axis=0) for tasks in (self.id_tasks, ood))

    def curves(self):
        """{setting without its λ: places of its settings, in order of λ}."""
        found = {}
        for place, setting in enumerate(self.settings):
            if setting.scale is not None:
                found.setdefault(setting.curve, []).append(place)
        return {curve: sorted(places, key=lambda place: self.settings[place].scale) for curve, places in found.items()}


@dataclass
class Along:
    """The points of one curve in each look: accuracies [looks, points]."""

    id: np.ndarray
    ood: np.ndarray

    def best(self, level):
        """(OOD at ID accuracy `level` [looks], where on the curve that is: point before, share of the way to the next).

        NaN where the curve never reaches the level.
        """
        level = level[:, None]
        reached = np.where(self.id >= level, self.ood, -np.inf)
        start, end = self.id[:, :-1], self.id[:, 1:]
        crosses = (start < level) != (end < level)
        share = np.where(crosses, (level - start) / np.where(crosses, end - start, 1), 0)
        between = np.where(crosses, self.ood[:, :-1] + share * np.diff(self.ood, axis=1), -np.inf)
        candidates = np.concatenate([reached, between], axis=1)
        shares = np.concatenate([np.zeros_like(reached), share], axis=1)
        points = reached.shape[1]
        place = candidates.argmax(axis=1)
        rows = np.arange(len(place))
        ood = candidates[rows, place]
        return np.where(np.isfinite(ood), ood, np.nan), np.where(place < points, place, place - points), shares[rows, place]

    def at(self, point, share):
        """(ID, OOD) [looks] at places on the curve as `best` gives them."""
        rows, after = np.arange(len(point)), np.minimum(point + 1, self.id.shape[1] - 1)
        return tuple(part[rows, point] + share * (part[rows, after] - part[rows, point]) for part in (self.id, self.ood))


def along(means, places):
    return Along(means[0][:, places], means[1][:, places])


def level(plain, other, below):
    """The ID accuracy [looks] to compare at: `below` the plain method's best, or the other's best if that is less."""
    return np.minimum(plain.id.max(axis=1) - below, other.id.max(axis=1))


def gain(plain, other, below):
    """OOD points [looks] that `other` has more than `plain` at equal ID."""
    at = level(plain, other, below)
    return other.best(at)[0] - plain.best(at)[0]


def gain_between(plain, first, second, below):
    """OOD points [looks] that `first` has more than `second` at the same ID, `below` the plain method's best or what both reach."""
    at = np.minimum(level(plain, first, below), second.id.max(axis=1))
    return first.best(at)[0] - second.best(at)[0]


def gains(results, plain, candidates, looks, without=None):
    """{curve: {below: gain [looks]}} over the curve `plain`."""
    means, curves = results.means(looks, without), results.curves()
    base = along(means, curves[plain])
    return {curve: {below: gain(base, along(means, curves[curve]), below) for below in BELOW} for curve in candidates}


@dataclass
class CrossFit:
    """Gains on the half of the examples that did not choose; arrays have one entry per split and direction."""

    chosen: list  # the curve
    seen: np.ndarray  # the gain on the half that chose
    unseen: np.ndarray  # the gain at equal ID on the other half
    carried_id: np.ndarray  # with both λs carried over from the half that chose: what ID differs by on the other half,
    carried_ood: np.ndarray  # and OOD


def cross_fit(results, plain, candidates, splits, generator, below=HEADLINE, without=None):
    """Chooses, on one half of the examples, the candidate curve of the greatest gain; measures it on the other half."""
    halves = results.halves(splits, generator)
    sides = [results.means(half) for half in halves]
    choosing = [results.means(half, without) for half in halves]
    curves = results.curves()
    found = CrossFit([], *([] for _ in range(4)))
    for here, there in ((0, 1), (1, 0)):
        base = along(choosing[here], curves[plain])
        others = [along(choosing[here], curves[curve]) for curve in candidates]
        seen = np.stack([gain(base, other, below) for other in others])
        reaches = np.stack([other.id.max(axis=1) >= base.id.max(axis=1) - below for other in others])
        # A candidate that does not reach the accuracy is chosen only if none does.
        choice = np.where(reaches, seen, seen - 100).argmax(axis=0)
        base_there = along(sides[there], curves[plain])
        for look, number in enumerate(choice):
            curve, one = candidates[number], slice(look, look + 1)
            other_there = along(sides[there], curves[curve])
            found.chosen.append(curve)
            found.seen.append(seen[number, look])
            found.unseen.append(gain(cut(base_there, one), cut(other_there, one), below)[0])
            at = level(cut(base, one), cut(others[number], one), below)
            ours = cut(other_there, one).at(*cut(others[number], one).best(at)[1:])
            theirs = cut(base_there, one).at(*cut(base, one).best(at)[1:])
            found.carried_id.append((ours[0] - theirs[0])[0])
            found.carried_ood.append((ours[1] - theirs[1])[0])
    return CrossFit(found.chosen, *(np.array(values) for values in (found.seen, found.unseen, found.carried_id, found.carried_ood)))


def cut(curve, looks):
    return Along(curve.id[looks], curve.ood[looks])


def pareto(means):
    """Places of the settings that no other beats in both ID and OOD, in order of ID; one look."""
    points = np.stack(means, axis=1)
    return sorted((place for place, point in enumerate(points)
                   if not ((points >= point).all(axis=1) & (points > point).any(axis=1)).any()), key=lambda place: points[place, 0])
