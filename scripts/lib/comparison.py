"""mergekit in an environment of its own, on Debian's torch (python3-torch): the one on the package index comes with several
gigabytes of CUDA libraries. Everything else is pinned in requirements-mergekit.txt."""

import filecmp
import os
import shutil
import subprocess

SCRIPTS = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
REQUIREMENTS = os.path.join(SCRIPTS, "requirements-mergekit.txt")


def environment(folder, python="/usr/bin/python3"):
    """The Python of the environment FOLDER, which is made unless it is up to date. `python` has torch."""
    inside, stamp = os.path.join(folder, "bin", "python"), os.path.join(folder, "requirements.txt")
    if not (os.path.exists(stamp) and filecmp.cmp(stamp, REQUIREMENTS, shallow=False)):
        if subprocess.run([python, "-c", "import torch, numpy"], stderr=subprocess.DEVNULL).returncode != 0:
            raise SystemExit(f"{python} has no torch: install Debian's python3-torch, or name a Python that has it")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", "--system-site-packages", folder], check=True)
        # No dependencies: what mergekit and transformers want besides is not imported when whole checkpoints are merged.
        subprocess.run([inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", REQUIREMENTS], check=True)
        shutil.copy(REQUIREMENTS, stamp)
    return inside


def versions(python):
    """What is compared with, in words."""
    code = "import torch, importlib.metadata as m; print(f\"mergekit {m.version('mergekit')}, torch {torch.__version__}\")"
    return subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
