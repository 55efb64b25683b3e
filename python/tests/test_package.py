"""The Python package over the program that MERGANSER names. `scripts/python-test` runs it."""

import dataclasses
import io
import inspect as inspection
import os
import pathlib
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from contextlib import redirect_stdout

import merganser

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAMILY = ROOT / "tests" / "goldens" / "family"
FIXED = {"threads": 2, "memory_budget": "256MiB", "device": "cpu"}


def write_checkpoint(path, side, layers, seed):
    """Matrices of pseudo-random float32, without any library."""
    import json
    import random

    values = random.Random(seed)
    row = struct.pack(f"<{side}f", *(values.uniform(-1, 1) for _ in range(side)))
    tensors, offset, size = {}, 0, side * side * 4
    for layer in range(layers):
        tensors[f"layers.{layer}.mlp.weight"] = {"dtype": "F32", "shape": [side, side], "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(layers):
            # Rows rotated by their number: full rank.
            file.write(b"".join(row[4 * i :] + row[: 4 * i] for i in range(side)))


class Package(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        shutil.copytree(FAMILY, self.dir / "family")
        models = [self.dir / "family" / name for name in ("a", "b", "c.safetensors")]
        self.recipe = {
            "merge_method": "ties",
            "base_model": self.dir / "family" / "base",
            "models": [{"model": model} for model in models],
            "parameters": {"density": 0.2},
        }

    def test_a_sweep_gives_every_point_with_its_values_and_its_output(self):
        swept = merganser.sweep(self.recipe, self.dir / "swept", set={"parameters.lambda": [0.5, 1], "parameters.density": "0.2:0.4:0.2"}, **FIXED)
        self.assertEqual([tuple(point.values.values()) for point in swept.points], [("0.2", "0.5"), ("0.4", "0.5"), ("0.2", "1"), ("0.4", "1")])
        self.assertEqual((swept.totals.outputs, swept.totals.readings, swept.best), (4, 2, None))
        for point in swept.points:
            self.assertTrue(merganser.verify(point.out).ok)
        with self.assertRaises(TypeError):
            merganser.sweep(self.recipe, self.dir / "x", set={"parameters.lambda": ["0.1:0.2"]})

    def test_parts_make_one_output(self):
        first = merganser.merge(self.recipe, self.dir / "out", part="1/2", **FIXED)
        self.assertIsInstance(first, merganser.PartDone)
        self.assertEqual((first.part, first.of, first.open_parts), (1, 2, [2]))
        self.assertIsInstance(merganser.merge(self.recipe, self.dir / "out", part="2/2", **FIXED), merganser.Merged)

    def slow_recipe(self, side=1024, layers=16):
        for seed, name in enumerate(["base", "a", "b", "c"]):
            write_checkpoint(self.dir / f"{name}.safetensors", side, layers, seed)
        models = [{"model": str(self.dir / f"{name}.safetensors")} for name in "abc"]
        return {"merge_method": "cart", "base_model": str(self.dir / "base.safetensors"), "models": models}

    def test_a_merge_gives_its_document_and_prints_nothing(self):
        printed = io.StringIO()
        with redirect_stdout(printed):
            merged = merganser.merge(self.recipe, self.dir / "out", seed=7, **FIXED)
        self.assertEqual(printed.getvalue(), "")
        self.assertEqual((merged.command, merged.method, merged.seed, merged.threads), ("merge", "ties", 7, 2))
        self.assertEqual(merged.out, str(self.dir / "out"))
        self.assertEqual(merged.memory_budget, 256 << 20)
        self.assertEqual((merged.totals.tensors, merged.totals.elements), (19, 1316))
        self.assertEqual(merged.files[0].name, "model.safetensors")
        self.assertGreater(merged.timings.seconds, 0.0)
        self.assertTrue(merganser.verify(self.dir / "out").ok)
        self.assertEqual(merganser.merge(self.recipe, self.dir / "out", seed=7, resume=True, **FIXED).already_done, True)

    def test_a_mapping_and_a_file_are_the_same_recipe(self):
        path = self.dir / "recipe.yaml"
        lines = [f"  - model: family/{name}\n" for name in ("a", "b", "c.safetensors")]
        path.write_text("merge_method: ties\nbase_model: family/base\nmodels:\n" + "".join(lines) + "parameters: {density: 0.2}\n")
        merganser.merge(path, self.dir / "by-file", **FIXED)
        merganser.merge(self.recipe, self.dir / "by-mapping", **FIXED)
        self.assertTrue(merganser.compare(self.dir / "by-file", self.dir / "by-mapping").identical)
        self.assertEqual(merganser.plan(str(path), **FIXED).totals.elements, 1316)

    def test_relative_models_of_a_mapping_start_at_the_current_folder(self):
        recipe = dict(self.recipe, base_model="family/base", models=({"model": f"family/{name}"} for name in "ab"))
        recipe["models"] = list(recipe["models"])
        code = f"import merganser; print(merganser.plan({recipe!r}, threads=1).recipe['base_model'])"
        done = subprocess.run([sys.executable, "-c", code], cwd=self.dir, env=os.environ, capture_output=True, text=True)
        self.assertEqual(done.stdout, "family/base\n", done.stderr)

    def test_several_mappings_are_the_documents_of_one_recipe(self):
        first = dict(self.recipe, name="first")
        second = {"merge_method": "passthrough", "models": [{"model": "first"}]}
        merganser.merge([first, second], self.dir / "both", **FIXED)
        merganser.merge(self.recipe, self.dir / "one", **FIXED)
        self.assertTrue(merganser.compare(self.dir / "both", self.dir / "one").identical)

    def test_remarks_are_warnings_and_strict_makes_them_errors(self):
        recipe = dict(self.recipe, parameters={"density": 0.2, "t": 0.5})
        self.assertTrue(any("`t`" in warning for warning in merganser.plan(recipe).warnings))
        with self.assertRaisesRegex(merganser.RecipeError, "`t` has no effect"):
            merganser.plan(recipe, strict=True)

    def test_a_text_is_a_path_and_never_yaml(self):
        with self.assertRaises(merganser.RecipeError):
            merganser.plan("merge_method: linear")

    def test_every_other_function_gives_its_document(self):
        kept = dict(self.recipe, merge_method="cart", parameters={}, output="factors")
        merganser.merge(kept, self.dir / "kept", **FIXED)
        extracted = merganser.extract(self.dir / "kept", self.dir / "b", task="b", lambda_=-0.5, threads=2)
        self.assertEqual((extracted.task, extracted.lambda_, extracted.totals.tensors), ("b", -0.5, 19))
        self.assertEqual([task.name for task in extracted.tasks], ["a", "b", "c"])
        for name in ("s.json", "s.html"):
            report = merganser.saliency(self.recipe, self.dir / name, keep=[0.25, 0.75], threads=2)
            self.assertEqual([choice.keep for choice in report.choices], [0.25, 0.75])
            self.assertEqual(len(report.layers), 9)
            self.assertTrue((self.dir / name).stat().st_size > 1000)
        name = "model.layers.0.mlp.up_proj.weight"
        explained = merganser.explain(self.recipe, name, (1, 2), threads=2)
        self.assertEqual((explained.tensor, explained.element.flat, explained.element.index), (name, 12, [1, 2]))
        self.assertEqual(explained.sources[0].role, "base")
        self.assertIsNone(merganser.explain(self.recipe, name).element)
        seen = merganser.inspect(self.dir / "family" / "b")
        self.assertEqual((len(seen.files), len(seen.tensors), seen.totals.elements), (2, 19, 1316))
        self.assertEqual(seen.files[0].metadata, {"format": "pt"})
        compared = merganser.compare(self.dir / "family" / "a", self.dir / "family" / "b")
        self.assertFalse(compared.identical)
        self.assertGreater(compared.totals.differing, 0)
        (ties,) = merganser.methods("ties")
        self.assertEqual(next(p.default for p in ties.parameters if p.name == "density"), 1.0)
        self.assertGreater(len(merganser.methods()), 10)
        self.assertGreaterEqual(merganser.devices().threads, 1)

    def test_differences_and_damage_are_documents(self):
        merganser.merge(self.recipe, self.dir / "out", **FIXED)
        (self.dir / "out" / "config.json").write_text("{}")
        found = merganser.verify(self.dir / "out")
        self.assertFalse(found.ok)
        self.assertEqual(found.problems[0].file, "config.json")
        write_checkpoint(self.dir / "x.safetensors", 4, 1, 0)
        self.assertFalse(merganser.compare(self.dir / "x.safetensors", self.dir / "family" / "a").same_layout)

    def test_failures_are_raised_by_their_kind(self):
        (self.dir / "full").mkdir()
        (self.dir / "full" / "x").write_text("")
        out = self.dir / "out"
        for error, code, call in [
            (merganser.RecipeError, 1, lambda: merganser.merge(self.dir / "none.yaml", out)),
            (merganser.RecipeError, 1, lambda: merganser.plan(dict(self.recipe, merge_method="tie"))),
            (merganser.CheckpointError, 1, lambda: merganser.plan(dict(self.recipe, base_model="none"))),
            (merganser.CheckpointError, 1, lambda: merganser.verify(self.dir)),
            (merganser.UsageError, 1, lambda: merganser.merge(self.recipe, self.dir / "full")),
            (merganser.UsageError, 1, lambda: merganser.merge(self.recipe, out, threads=0)),
            (merganser.OutOfMemoryError, 1, lambda: merganser.plan(self.recipe, memory_budget="1KiB")),
            (merganser.DeviceError, 3, lambda: merganser.merge(self.recipe, out, device="cuda:63")),
        ]:
            with self.assertRaises(error) as raised:
                call()
            self.assertIsInstance(raised.exception, merganser.MerganserError)
            self.assertEqual((raised.exception.kind, raised.exception.exit_code), (error.kind, code))
        self.assertFalse(out.exists())
        with self.assertRaises(merganser.RecipeError) as raised:
            merganser.plan(dict(self.recipe, merge_method="tie"))
        self.assertTrue(any("ties" in hint for hint in raised.exception.hints), raised.exception.hints)
        again = pickle.loads(pickle.dumps(raised.exception))
        self.assertEqual((str(again), again.hints), (str(raised.exception), raised.exception.hints))
        (self.dir / "wrong.yaml").write_text("models: []\nmerge_method: tie\n")
        with self.assertRaises(merganser.RecipeError) as raised:
            merganser.plan(self.dir / "wrong.yaml")
        self.assertEqual((raised.exception.file, raised.exception.tensor), (str(self.dir / "wrong.yaml"), None))

    def test_what_python_can_refuse_it_refuses(self):
        with self.assertRaises(TypeError):
            merganser.merge(self.recipe, self.dir / "out", treads=2)
        with self.assertRaises(TypeError):
            merganser.merge(self.recipe, self.dir / "out", "cpu")
        with self.assertRaises(TypeError):
            merganser.merge(dict(self.recipe, models=object()), self.dir / "out")
        with self.assertRaises(ValueError):
            merganser.plan(dict(self.recipe, parameters={"density": float("nan")}))

    def test_progress_begins_at_nothing_comes_often_and_ends_with_all(self):
        seen = []
        threads = set()

        def tell(progress):
            seen.append((time.monotonic(), progress))
            threads.add(threading.current_thread())

        merganser.merge(self.slow_recipe(), self.dir / "out", threads=1, device="cpu", progress=tell)
        steps = [progress for _, progress in seen]
        self.assertGreater(len(steps), 2)
        self.assertEqual(steps[0].done, 0)
        self.assertEqual(steps[-1].done, steps[-1].total)
        self.assertEqual([s.done for s in steps], sorted(s.done for s in steps))
        self.assertLess(max(b - a for (a, _), (b, _) in zip(seen, seen[1:])), 1.0)
        self.assertEqual(threads, {threading.current_thread()})

    def test_what_a_callback_raises_stops_the_merge_which_resumes(self):
        recipe = self.slow_recipe()

        def refuse(progress):
            if progress.done > progress.total / 2:
                raise LookupError("enough")

        options = {"threads": 1, "device": "cpu"}
        with self.assertRaisesRegex(LookupError, "enough"):
            merganser.merge(recipe, self.dir / "out", progress=refuse, **options)
        self.assertFalse((self.dir / "out").exists())
        self.assertTrue((self.dir / "out.merganser-partial").exists())
        merged = merganser.merge(recipe, self.dir / "out", resume=True, **options)
        self.assertGreater(merged.resumed_tensors, 0)

    def interrupted(self, recipe, in_thread):
        """What a Python that merges prints, and says on stderr, when it is told to stop as by Ctrl-C."""
        call = f"merganser.merge({recipe!r}, {str(self.dir / 'out')!r}, threads=1, device='cpu', progress=tell)"
        code = f"""
import threading, merganser
def tell(progress):
    print('at', progress.done, flush=True)
def work():
    try:
        {call}
        print('finished', flush=True)
    except KeyboardInterrupt:
        print('interrupted', flush=True)
    ended.set()
ended = threading.Event()
"""
        # Not join(): interrupted, it takes the thread for ended in Python 3.11.
        code += """
threading.Thread(target=work).start()
try:
    ended.wait()
except KeyboardInterrupt:
    ended.wait()
""" if in_thread else "work()"
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        line = "at the start"
        while line and not (line := child.stdout.readline()).startswith("at "):
            pass
        # As a terminal does: to every process of the group.
        os.killpg(child.pid, signal.SIGINT)
        printed, errors = child.communicate(timeout=60)
        return printed, errors

    def test_ctrl_c_stops_the_program_and_raises_in_any_thread(self):
        recipe = self.slow_recipe()
        for in_thread in (False, True):
            printed, errors = self.interrupted(recipe, in_thread)
            self.assertIn("interrupted", printed, errors)
            self.assertNotIn("finished", printed)
            self.assertFalse((self.dir / "out").exists())
            # It has ended: its lock is free.
            merged = merganser.merge(recipe, self.dir / "out", threads=1, device="cpu", resume=True)
            self.assertEqual(merged.totals.tensors, 16)
            shutil.rmtree(self.dir / "out")

    def test_a_second_merge_is_told_that_another_is_at_work(self):
        recipe, out = self.slow_recipe(), self.dir / "out"
        raised = []

        def tell(progress):
            if progress.done and not raised:
                try:
                    merganser.merge(recipe, out, threads=1, device="cpu")
                except merganser.BusyError as error:
                    raised.append(error.exit_code)

        merganser.merge(recipe, out, threads=1, device="cpu", progress=tell)
        self.assertEqual(raised, [75])

    def test_options_are_the_command_lines(self):
        for function in (merganser.merge, merganser.plan, merganser.explain, merganser.extract, merganser.saliency, merganser.compare, merganser.verify):
            name = function.__name__
            shown = subprocess.run([merganser.find_program(), name, "--help"], capture_output=True, text=True, check=True)
            words = {word.strip("[],.") for word in shown.stdout.split()}
            for parameter in inspection.signature(function).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    self.assertIn("--" + parameter.name.rstrip("_").replace("_", "-"), words, name)

    def test_importing_costs_little(self):
        code = "import time; t = time.process_time(); import merganser; print(time.process_time() - t)"
        times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
        self.assertLess(min(times), 0.1, times)

    def test_documents_are_plain_data(self):
        merged = merganser.merge(self.recipe, self.dir / "out", **FIXED)
        self.assertEqual(dataclasses.asdict(merged)["totals"]["elements"], 1316)
        self.assertEqual(pickle.loads(pickle.dumps(merged)), merged)


if __name__ == "__main__":
    unittest.main()
