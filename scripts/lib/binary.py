"""Finding and running the merganser binary."""

import os
import subprocess
import time

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
SAMPLE_SECONDS = 0.02


def find(required=True):
    """$MERGANSER, or else target/release/merganser."""
    path = os.environ.get("MERGANSER") or os.path.join(ROOT, "target", "release", "merganser")
    if os.path.exists(path):
        return os.path.abspath(path)
    if required:
        raise SystemExit(f"{path}: no such binary; run `cargo build --release`, or name one in MERGANSER")
    return None


def status_bytes(pid, *keys):
    """Fields of /proc/PID/status, in bytes; empty once the process has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as handle:
            lines = dict(line.split(":", 1) for line in handle)
    except OSError:
        return {}
    return {key: int(lines[key].split()[0]) * 1024 for key in keys if key in lines}


def run_watched(command, **options):
    """Runs a command to its end: (exit code, seconds, peak memory in bytes: all of it, anonymous)."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
    peak = anonymous = 0
    try:
        while process.poll() is None:
            now = status_bytes(process.pid, "VmHWM", "RssAnon")
            peak, anonymous = max(peak, now.get("VmHWM", 0)), max(anonymous, now.get("RssAnon", 0))
            try:
                process.wait(SAMPLE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
    finally:
        if process.poll() is None:  # we were interrupted: leave nothing running
            process.kill()
            process.wait()
    return process.returncode, time.perf_counter() - started, peak, anonymous
