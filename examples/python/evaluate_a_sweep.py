"""Merge with several λ and keep what a function of yours likes best.

    python evaluate_a_sweep.py RECIPE DIR
"""

import pathlib
import shutil
import sys

import merganser


def score(folder: str) -> float:
    """Put your own evaluation here: load the model in `folder`, give a number. This one counts how much is there."""
    return sum(file.stat().st_size for file in pathlib.Path(folder).glob("*.safetensors"))


def main() -> None:
    recipe, out = sys.argv[1:]
    swept = merganser.sweep(recipe, out, set={"parameters.lambda": [0.3, 0.6, 0.9]})
    scores = {point.out: score(point.out) for point in swept.points}
    best = max(scores, key=scores.get)
    for point in swept.points:
        print(point.values, scores[point.out], "best" if point.out == best else "")
        if point.out != best:
            shutil.rmtree(point.out)


if __name__ == "__main__":
    main()
