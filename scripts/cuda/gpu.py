"""What gpu-pack, gpu-test and gpu-bench share: the programs, built or packed; the device; the time that is left."""

import glob
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACK_NAME = "gpu-pack"
ARCHIVE = "programs.tar.xz"
TESTS = "cuda"  # tests/cuda; its modules are the suites
BUDGET = 530  # seconds: under nine minutes
NO_DEVICE = 3
STAND_IN = "stand-in"

# What loads libcuda as a program does, and says from where; on its own, so that the environment is that of the programs.
LOADED = """
import ctypes, os
library = ctypes.CDLL("libcuda.so.1")
with open("/proc/self/maps", encoding="utf-8") as maps:
    files = {line.split(None, 5)[5].strip() for line in maps if len(line.split(None, 5)) == 6}
named = [f for f in files if "libcuda" in os.path.basename(f)] or [f for f in files if "standin" in f]
print(named[0] if named else "?")
"""


class Unavailable(Exception):
    """Something that this machine lacks; ends a command with status 3."""


class Clock:
    """The time that a command may take."""

    def __init__(self, budget):
        self.started, self.budget = time.monotonic(), budget

    def spent(self):
        return time.monotonic() - self.started

    def left(self):
        return self.budget - self.spent()


class Programs:
    """The binary and the tests, ready to run; `close` removes what was unpacked."""

    def __init__(self, binary, tests, origin, unpacked=None):
        self.binary, self.tests, self.origin, self.unpacked = binary, tests, origin, unpacked
        self.cache = tempfile.mkdtemp(prefix="merganser-gpu-")
        self.env = dict(os.environ, XDG_CACHE_HOME=self.cache)

    def close(self):
        for folder in (self.cache, self.unpacked):
            if folder:
                shutil.rmtree(folder, ignore_errors=True)


def say(text=""):
    print(text, flush=True)


def pack_folder():
    """The pack: this folder, if the script runs from one, or that beside the sources."""
    return next((f for f in (ROOT, ROOT / PACK_NAME) if (f / "pack.json").is_file()), None)


def programs(tests):
    """Built here where there is a Rust toolchain, else those of the pack."""
    pack = pack_folder()
    if pack == ROOT or shutil.which("cargo") is None:
        if pack is None:
            raise Unavailable("there is no Rust toolchain (cargo) and no pack; run scripts/cuda/gpu-pack on a machine that has "
                              f"one, and bring its folder {PACK_NAME}/ along")
        return unpack(pack)
    say("building (the time that this takes is not counted)")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    found = build_tests() if tests else {}
    return Programs(target / "release" / "merganser", found, "built here")


def build_tests(*options):
    """Builds the tests as `cargo test` does; name → executable."""
    command = ["cargo", "test", "--locked", "--no-run", "--message-format", "json-render-diagnostics", "--test", TESTS, *options]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    built = {m["target"]["name"]: m["executable"] for m in messages if m.get("executable") and m.get("profile", {}).get("test")}
    return {TESTS: pathlib.Path(built[TESTS])}


def suites(executable):
    """Its modules, but for what the stand-in alone can be asked; name → names of tests."""
    listed = subprocess.run([executable, "--list", "--format", "terse"], capture_output=True, text=True, check=True).stdout
    names = [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]
    found = {}
    for name in names:
        found.setdefault(name.split("::")[0], []).append(name)
    found.pop("standin", None)
    return found


def unpack(pack):
    about = json.loads((pack / "pack.json").read_text())
    folder = tempfile.mkdtemp(prefix="merganser-gpu-pack-")
    with lzma.open(pack / ARCHIVE) as stream, tarfile.open(fileobj=stream) as archive:
        for member in archive:
            if not member.isfile() or "/" in member.name:
                raise SystemExit(f"error: {pack / ARCHIVE} holds `{member.name}`, which no pack does")
            with open(os.path.join(folder, member.name), "wb") as to:
                shutil.copyfileobj(archive.extractfile(member), to)
            os.chmod(to.name, 0o755)
    tests = {name: pathlib.Path(folder) / name for name in about["tests"]}
    return Programs(pathlib.Path(folder) / "merganser", tests, f"packed from {about['commit']}, kernels by {about['kernels']}", folder)


def library_folders():
    """Where CUDA's libraries lie on machines that do not name them: toolkits, and Python's wheels."""
    found = glob.glob("/usr/local/cuda*/lib64") + glob.glob("/usr/local/cuda*/targets/x86_64-linux/lib")
    folders = set(sys.path)
    for python in filter(None, (shutil.which("python3"), shutil.which("python"))):
        run = subprocess.run([python, "-c", "import sys; print('\\n'.join(sys.path))"], capture_output=True, text=True)
        folders.update(run.stdout.split())
    for site in sorted(folders):
        found += glob.glob(os.path.join(site, "nvidia", "cu13", "lib")) + glob.glob(os.path.join(site, "nvidia", "*", "lib"))
    return [folder for folder in dict.fromkeys(found) if os.path.isdir(folder)]


def devices(programs_):
    """What `merganser devices` finds."""
    run = subprocess.run([programs_.binary, "devices", "--json"], env=programs_.env, capture_output=True, text=True)
    if run.returncode != 0:
        raise Unavailable(f"the program does not run here: {run.stderr.strip()}")
    return json.loads(run.stdout)["cuda"]


def find_device(programs_, stand_in):
    """The first usable device, with what was found; refuses the stand-in unless it is asked for, and the reverse."""
    found = devices(programs_)
    if found["usable"] and any(not library["present"] for library in found["libraries"]):
        folders = [f for f in [programs_.env.get("LD_LIBRARY_PATH", "")] if f] + library_folders()
        programs_.env["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
        found = devices(programs_)
    if not found["usable"]:
        remedy = f" ({found['remedy']})" if found["remedy"] else ""
        raise Unavailable(f"no usable CUDA device: {found['reason']}{remedy}")
    device = next(device for device in found["devices"] if device["usable"])
    loaded = subprocess.run([sys.executable, "-c", LOADED], env=programs_.env, capture_output=True, text=True).stdout.strip() or "?"
    is_stand_in = STAND_IN in device["name"] or "standin" in os.path.realpath(loaded)
    if is_stand_in and not stand_in:
        raise Unavailable(f"`{device['name']}` by {loaded} is the stand-in for tests, not a GPU; --standin tries the command on it")
    if stand_in and not is_stand_in:
        raise SystemExit(f"error: --standin was given, and `{device['name']}` is a real device")
    missing = [f"lib{library['name']}" for library in found["libraries"] if not library["present"]]
    needed = [name for name in missing if name != "libnvrtc" or "nvrtc" in programs_.origin]
    versions = {library["name"]: library["version"] for library in found["libraries"]}
    say(f"device    cuda:{device['ordinal']} {device['name']}, capability {device['compute_capability']}, "
        f"{device['free_bytes'] / 1e9:.1f} of {device['memory_bytes'] / 1e9:.1f} GB free")
    say(f"driver    {found['driver'] or 'version unknown'}; supports CUDA {found['driver_supports']}; {loaded}")
    say("libraries " + ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items()))
    say(f"programs  {programs_.origin}")
    if needed:
        raise Unavailable(f"{', '.join(needed)} not found; put CUDA 13's libraries on LD_LIBRARY_PATH")
    return {"name": device["name"], "compute_capability": device["compute_capability"], "memory_bytes": device["memory_bytes"],
            "free_bytes": device["free_bytes"], "multiprocessors": device["multiprocessors"], "driver": found["driver"],
            "driver_release": driver_release(), "driver_supports": found["driver_supports"], "libraries": versions,
            "stand_in": is_stand_in}


def driver_release():
    """The driver's release as nvidia-smi names it; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    run = subprocess.run(query, capture_output=True, text=True)
    return run.stdout.splitlines()[0].strip() if run.returncode == 0 and run.stdout.strip() else None


def run_in(seconds, command, **options):
    """Runs a command for so long at most: (status or None, stdout, stderr)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    try:
        out, err = process.communicate(timeout=max(seconds, 1))
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        process.terminate()  # merganser ends what it has in hand, and removes its files
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        return None, out, err
    except BaseException:
        process.kill()
        process.wait()
        raise


def main(command):
    """Runs a command; what the machine lacks ends it with status 3."""
    try:
        sys.exit(command())
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(NO_DEVICE)
    except subprocess.CalledProcessError as error:
        print(f"error: `{' '.join(map(str, error.cmd))}` ended with status {error.returncode}", file=sys.stderr)
        sys.exit(1)
