"""Where the program is, and how it is run: its document read, its progress told, its failures raised."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Sequence

from ._errors import BY_KIND, InternalError, IoError, MerganserError

# Seconds between two calls of a progress callback, at most.
INTERVAL = 0.25
LEVELS = {"ERROR": logging.ERROR, "WARN": logging.WARNING, "INFO": logging.INFO, "DEBUG": logging.DEBUG}

log = logging.getLogger("merganser")


@dataclass(frozen=True)
class Progress:
    """How far a command is, in bytes read and written."""

    done: int
    total: int
    seconds: float
    """Since the work began."""
    left_seconds: Optional[float]
    """What is left at this rate; None while nothing is done."""


def find_program() -> str:
    """The program that was installed with this package; `MERGANSER` in the environment names another."""
    named = os.environ.get("MERGANSER")
    if named:
        return named
    here = os.path.dirname(os.path.abspath(__file__))
    folders = [
        # Beside the interpreter: an environment, a system, or what `pip install --user` uses.
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", os.name + "_user"),
        # `pip install --target` and `--prefix`.
        os.path.join(os.path.dirname(here), "bin"),
        os.path.join(here, *[os.pardir] * 4, "bin"),
    ]
    for folder in folders:
        path = os.path.join(folder, "merganser")
        if os.access(path, os.X_OK):
            return os.path.normpath(path)
    raise InternalError(
        f"the program `merganser` is in none of {', '.join(map(os.path.normpath, folders))}",
        ["install the package again: `pip install --force-reinstall merganser`"],
    )


def run(
    command: str,
    arguments: Sequence[str],
    *,
    stdin: Optional[str] = None,
    progress: Optional[Callable[[Progress], Any]] = None,
    shows_progress: bool = False,
) -> Any:
    """Runs a command and gives its document; raises what it failed with."""
    options = ["--json", "--log-format", "json"]
    if shows_progress:
        options += ["--progress", "lines", "--progress-interval", str(INTERVAL)] if progress else ["--progress", "none"]
    # A terminal sends Ctrl-C to all of its processes. From the main thread Python hears of it and passes it on, so that
    # the program must hear it once; from another thread only the program does.
    is_main = threading.current_thread() is threading.main_thread()
    process = subprocess.Popen(
        [find_program(), command, *options, *arguments],
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=is_main,
    )
    printed: List[bytes] = []
    # The document may be large, and a pipe is not.
    reader = threading.Thread(target=lambda: printed.append(process.stdout.read()), daemon=True)
    reader.start()
    said: List[str] = []
    try:
        if stdin is not None:
            feed(process, stdin)
        for line in process.stderr:
            hear(line.decode("utf-8", "replace"), progress, said)
    except BaseException:
        stop(process)
        raise
    finally:
        wait(process)
        reader.join()
        process.stdout.close()
        process.stderr.close()
    return judge(b"".join(printed), process.returncode, said)


def feed(process: subprocess.Popen, text: str) -> None:
    try:
        process.stdin.write(text.encode("utf-8"))
        process.stdin.close()
    except BrokenPipeError:
        # It ended before it read: its failure says why.
        pass


def stop(process: subprocess.Popen) -> None:
    """Asks the program to stop after what it has in hand, which it keeps for `resume=True`."""
    if process.poll() is None:
        # Not SIGINT, which a shell in the background may have had it ignore.
        process.send_signal(signal.SIGTERM)


def wait(process: subprocess.Popen) -> None:
    """Waits for the end; a further Ctrl-C ends the program at once."""
    while True:
        try:
            # What it still says goes nowhere, but must not hold it up.
            for _ in process.stderr:
                pass
            process.wait()
            return
        except KeyboardInterrupt:
            stop(process)


def hear(line: str, progress: Optional[Callable[[Progress], Any]], said: List[str]) -> None:
    try:
        event = json.loads(line)
        level, message = event["level"], event["message"]
    except (ValueError, KeyError, TypeError):
        said.append(line.rstrip())
        return
    if message == "progress" and "done" in event:
        if progress is not None:
            progress(Progress(event["done"], event["total"], event["seconds"], event["left_seconds"]))
    elif "exit_code" not in event:
        # A failure is raised, and need not be logged too.
        log.log(LEVELS.get(level, logging.DEBUG), "%s", message)


def judge(printed: bytes, code: int, said: Sequence[str]) -> Any:
    try:
        document = json.loads(printed)
    except ValueError:
        document = None
    if isinstance(document, dict) and "error" in document:
        error = document["error"]
        if error["exit_code"] == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        place = (error["file"], error["line"], error["tensor"])
        raise BY_KIND.get(error["kind"], MerganserError)(error["message"], error["hints"], error["exit_code"], *place)
    if document is not None:
        return document
    tail = "\n".join(said[-5:]) or "it said nothing"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        raise InternalError(f"merganser was killed by {name}: {tail}", exit_code=128 - code)
    raise (IoError if code == 3 else InternalError)(f"merganser ended with status {code}: {tail}", exit_code=code)


def main() -> None:
    """`python -m merganser`: the program itself."""
    program = find_program()
    os.execv(program, [program, *sys.argv[1:]])
