"""The machine in words, and what it does without merganser: cat, cp, dd, an empty page cache."""

import ctypes
import datetime
import mmap
import os
import platform
import shutil
import subprocess
import time

import binary

MIB = 1 << 20
CACHED_MOST = 0.02  # of a file, after the cache was asked to let go of it


def describe(folder):
    """Processor, cores, memory, kernel, and the disk that the folder is on."""
    with open("/proc/cpuinfo", encoding="utf-8") as handle:
        model = next((line.split(":", 1)[1].strip() for line in handle if line.startswith("model name")), platform.machine())
    with open("/proc/meminfo", encoding="utf-8") as handle:
        memory = int(next(line for line in handle if line.startswith("MemTotal")).split()[1]) * 1024
    with open("/proc/mounts", encoding="utf-8") as handle:
        mounts = [line.split()[:3] for line in handle]
    at = os.path.realpath(folder)
    device, _, kind = max((m for m in mounts if at == m[1] or at.startswith(m[1].rstrip("/") + "/")), key=lambda m: len(m[1]))
    size = shutil.disk_usage(folder).total
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory / 2**30, 1),
            "disk": f"{kind} on {os.path.basename(device)}, {size / 1e9:.0f} GB", "kernel": f"Linux {platform.release()}"}


def source_version():
    """The commit that this script is of; empty outside a clone."""
    run = lambda *args: subprocess.run(["git", "-C", binary.ROOT, *args], capture_output=True, text=True).stdout.strip()  # noqa: E731
    dirty = run("status", "--porcelain", "--untracked-files=no")
    commit = run("rev-parse", "--short", "HEAD")
    return commit + ("-dirty" if commit and dirty else "")


def today():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def timed(action):
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def cat(files):
    """Reads files to nowhere."""
    with open(os.devnull, "wb") as sink:
        subprocess.run(["cat", *files], stdout=sink, check=True)


def copy(files, folder, sync=False):
    """Copies files into a new folder; with `sync` until they are on the disk."""
    os.makedirs(folder)
    subprocess.run(["cp", *files, folder], check=True)
    if sync:
        subprocess.run(["sync", *(os.path.join(folder, os.path.basename(file)) for file in files)], check=True)


def dd(files, direct=False):
    """Reads files one after the other in large blocks."""
    flags = ["iflag=direct"] if direct else []
    for file in files:
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=4M", "status=none", *flags], check=True)


def writing(source, folder):
    """The command that writes a file into a new folder, past the page cache and durably."""
    os.makedirs(folder)
    target = os.path.join(folder, os.path.basename(source))
    return ["dd", f"if={source}", f"of={target}", "bs=4M", "oflag=direct", "conv=fdatasync", "status=none"]


def dd_to_disk(source, folder):
    """Writes a file that is in memory into a new folder."""
    subprocess.run(writing(source, folder), check=True)


def dd_beside_a_write(files, source, folder):
    """Reads files as `dd` does, while a file that is in memory is written into a new folder."""
    with subprocess.Popen(writing(source, folder)) as write:
        dd(files)
    if write.returncode != 0:
        raise SystemExit(f"dd to {folder}: exit {write.returncode}")


def forget(files):
    """Drops files from the page cache; fails where the kernel keeps them."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            for _ in range(5):  # pages on their way between the kernel's lists stay at first
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                share = cached_share(fd)
                if share <= CACHED_MOST:
                    break
                time.sleep(0.1)
            else:
                raise SystemExit(f"{file}: {share:.0%} of it stay in the page cache")
        finally:
            os.close(fd)


def cached_share(fd):
    """The share of a file's pages that are in the page cache. It maps them, as any reading would bring them in."""
    libc, size = ctypes.CDLL(None, use_errno=True), os.fstat(fd).st_size
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mincore.argtypes, libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p], [ctypes.c_void_p, ctypes.c_size_t]
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        if libc.mincore(at, size, pages) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
    finally:
        libc.munmap(at, size)
    return sum(page & 1 for page in pages.raw) / len(pages)
