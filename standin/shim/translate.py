#!/usr/bin/env python3
"""Makes C++ for the host of CUDA sources.

usage: translate.py OUT SOURCE...

Every SOURCE (.cu, .cuh) goes to OUT under its name, changed in two ways: shared memory is declared as the shim needs it, and
barriers know where they stand, so that a test can take one out. For each .cu there is also NAME.cpp, to be compiled, which registers the kernels of NAME.cu; and sources.cpp holds all text as it was, for
the stand-in's NVRTC to compare with.
"""

import re
import sys
from pathlib import Path

DYNAMIC = re.compile(r"extern\s+__shared__\s+(.*?)\s*\b(\w+)\s*\[\s*\]\s*;")
STATIC = re.compile(r"__shared__\s+([^;]*?\b(\w+)\s*((?:\[[^\]]*\])*)\s*;)")
KERNEL = re.compile(r"^.*__global__\s+(?:__launch_bounds__\(.*?\)\s*)?void\s+(?:__launch_bounds__\(.*?\)\s*)?(\w+)\s*\(", re.M)
BARRIER = re.compile(r"\b__sync(threads|warp)\(\s*")
BOUNDS = re.compile(r"__launch_bounds__\(\s*(\w+)")


def translate(text: str, name: str) -> str:
    """Declarations of shared memory, each on one line and of one array, in the shim's form. Other lines stay where they are."""
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        code = line.split("//")[0]
        if "__shared__" in code:
            changed = DYNAMIC.sub(r"static \1*& \2 = reinterpret_cast<\1*&>(shim::dynamic);", line)
            if changed == line:
                changed = STATIC.sub(
                    r"static \1 static unsigned long long \2_seen; shim::declare(&\2, sizeof \2, \2_seen);", line
                )
            if "__shared__" in changed.split("//")[0] or code.count("__shared__") > 1:
                sys.exit(f"{name}:{number}: one declaration of shared memory a line, please: {line.strip()}")
            line = changed
        elif "__sync" in code:
            place = rf'shim::sync_\1("{name}", {number}, '
            line = BARRIER.sub(place, code).replace(", )", ")") + line[len(code):]
        lines.append(line)
    return "\n".join(lines)


def registrations(text: str) -> list[str]:
    """One line a kernel."""
    found = []
    for match in KERNEL.finditer(text):
        bounds = BOUNDS.search(match.group(0))
        kernel, threads = match.group(1), bounds.group(1) if bounds else "1024"
        found.append(f'static shim::Register<&{kernel}> register_{kernel}("{kernel}", {threads});')
    return found


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__.strip())
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    everything = ""
    for source in map(Path, sorted(sys.argv[2:])):
        text = source.read_text()
        everything += text + "\n"
        write(out / source.name, translate(text, source.name))
        if source.suffix == ".cu":
            kernels = registrations(text)
            if not kernels:
                sys.exit(f"{source.name}: no kernel found")
            # In a namespace without a name: what two sources both define is not one thing, as it is not in their modules.
            lines = ['#include "cuda.h"', "namespace {", f'#include "{source.name}"', *kernels, "}", ""]
            write(out / f"{source.stem}.cpp", "\n".join(lines))
    lines = [literal(line) for line in everything.split("\n")]
    declaration = 'extern "C" const char shim_source_text[];\nconst char shim_source_text[] =\n'
    write(out / "sources.cpp", declaration + "\n".join(lines) + ";\n")


def literal(line: str) -> str:
    """A line of text as a string of C++."""
    plain = "".join(chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\\\?' else f"\\{byte:03o}" for byte in line.encode())
    return f'"{plain}\\n"'


def write(path: Path, text: str) -> None:
    """Leaves a file alone that has this text, so that nothing is compiled for nothing."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    main()
