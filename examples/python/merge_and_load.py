"""Merge fine-tunes of one base and load the result with transformers.

    python merge_and_load.py BASE FINE_TUNE FINE_TUNE … OUT

Needs the wheel (`scripts/wheel`), and for the last step `pip install transformers torch`.
"""

import sys

import merganser


def show(progress: merganser.Progress) -> None:
    share = 100 * progress.done / progress.total if progress.total else 0
    print(f"\r{share:3.0f} %", end="", file=sys.stderr, flush=True)


def main() -> None:
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    base, *models, out = sys.argv[1:]
    recipe = {
        "merge_method": "ties",
        "base_model": base,
        "models": [{"model": model} for model in models],
        "parameters": {"density": 0.2},
    }
    try:
        # `resume` goes on where an earlier run was stopped, and starts where there was none.
        merged = merganser.merge(recipe, out, resume=True, progress=show)
    except merganser.MerganserError as error:
        sys.exit(f"{error.kind}: {error}")
    print(f"\n{merged.totals.elements} elements in {merged.timings.seconds:.1f} s", file=sys.stderr)
    assert merganser.verify(out).ok

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out)
    print(model.config.model_type, sum(p.numel() for p in model.parameters()), "parameters loaded")


if __name__ == "__main__":
    main()
