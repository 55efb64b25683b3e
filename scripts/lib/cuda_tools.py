"""NVIDIA's compilers from PyPI, in the folder `.cuda` of the clone, and what the kernels are compiled with."""

import json
import pathlib
import re
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".cuda"
# nvcc of CUDA 13.0: PTX of a newer one is refused by drivers of that release. The disassembler may be newer.
NVCC = ["cuda-toolkit[nvcc,cudart,cccl]==13.0.3.0", "nvidia-cuda-nvdisasm==13.5.37"]
NVRTC = ["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-cuobjdump==13.5.37"]
ARCHITECTURES = ["sm_80", "sm_90"]
# As in build.rs.
FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false"]

KERNEL = re.compile(r"__global__\s+(?:__launch_bounds__\(.*?\)\s*)?void\s+(?:__launch_bounds__\(.*?\)\s*)?(\w+)\s*\(")


def install(packages, name):
    """The folder of NVIDIA's wheels with these packages in it; `name` remembers that they are."""
    done = TOOLS / name
    if not done.exists() or done.read_text() != "\n".join(packages):
        print(f"installing {', '.join(packages)} into {TOOLS.name}/", file=sys.stderr)
        if not (TOOLS / "bin" / "python").exists():
            venv.create(TOOLS, with_pip=True, clear=True)
        subprocess.run([TOOLS / "bin" / "python", "-m", "pip", "install", "-q", *packages], check=True)
        done.write_text("\n".join(packages))
    found = list(TOOLS.glob("lib/python*/site-packages/nvidia/cu13"))
    if not found:
        sys.exit(f"error: no packages of NVIDIA's in {TOOLS}; remove the folder and run again")
    return found[0]


def nvcc():
    """The folder of nvcc and nvdisasm, installed on the first run."""
    return install(NVCC, "installed") / "bin"


def sources():
    """The folder of the kernels' sources as they are compiled: those of `kernels/`, with the entry points that build.rs adds."""
    command = ["cargo", "build", "--locked", "--quiet", "--lib", "--message-format=json"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    built = [m["out_dir"] for m in messages if m["reason"] == "build-script-executed"]
    folders = [folder for folder in (pathlib.Path(out) / "kernels" for out in built) if (folder / "rules.cuh").exists()]
    if run.returncode or len(folders) != 1:
        sys.exit(f"error: {' '.join(command)} names {len(folders)} folders of kernels, not one")
    return folders[0]


def kernels(source):
    """Names of the kernels that a source defines."""
    return KERNEL.findall(source.read_text())


if __name__ == "__main__":
    print(sources())
