"""Failures, a class for each kind that the program tells apart."""

from __future__ import annotations

from typing import Dict, Optional, Sequence, Type


class MerganserError(Exception):
    """A command failed. `str()` is what happened; `hints` say what to do about it. `file`, `line` (from 1) and `tensor` are what
    is at fault, None where it is not one of its kind."""

    kind = "internal"

    def __init__(
        self,
        message: str,
        hints: Sequence[str] = (),
        exit_code: int = 2,
        file: Optional[str] = None,
        line: Optional[int] = None,
        tensor: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.hints = tuple(hints)
        self.exit_code = exit_code
        self.file = file
        self.line = line
        self.tensor = tensor

    def __str__(self) -> str:
        return "\n".join([str(self.args[0]), *(f"hint: {hint}" for hint in self.hints)])

    def __reduce__(self):  # so that it survives a process pool
        return type(self), (self.args[0], self.hints, self.exit_code, self.file, self.line, self.tensor)


class RecipeError(MerganserError):
    """The recipe is at fault."""

    kind = "recipe"


class CheckpointError(MerganserError):
    """A checkpoint, or an output that is read as one, is missing, damaged or does not fit."""

    kind = "checkpoint"


class UsageError(MerganserError):
    """An argument is at fault, or the place it points to, such as an output that exists."""

    kind = "usage"


class InternalError(MerganserError):
    """A bug in merganser, or its process was killed."""

    kind = "internal"


class NoSpaceError(MerganserError):
    """A disk, a quota or a limit on files' sizes is full; `resume=True` goes on."""

    kind = "no_space"


class AccessError(MerganserError):
    """A file or folder that this user may not use."""

    kind = "permission"


class OutOfMemoryError(MerganserError):
    """Too little memory, or a budget that the merge cannot do with."""

    kind = "memory"


class DeviceError(MerganserError):
    """A device, its driver or its libraries failed or are missing."""

    kind = "device"


class IoError(MerganserError):
    """Reading or writing failed; `resume=True` goes on."""

    kind = "io"


class BusyError(MerganserError):
    """Another merganser is at work on the same output: try again later."""

    kind = "busy"


class StoppedError(MerganserError):
    """A signal other than Ctrl-C stopped the program; `resume=True` goes on."""

    kind = "interrupted"


BY_KIND: Dict[str, Type[MerganserError]] = {
    error.kind: error
    for error in (
        RecipeError,
        CheckpointError,
        UsageError,
        InternalError,
        NoSpaceError,
        AccessError,
        OutOfMemoryError,
        DeviceError,
        IoError,
        BusyError,
        StoppedError,
    )
}
