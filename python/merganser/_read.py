"""JSON documents to the dataclasses that they are the JSON of."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any, Callable, Dict, Type, TypeVar, Union

from . import _documents

T = TypeVar("T")


def read(kind: Type[T], value: Any) -> T:
    """An instance of a dataclass from its JSON; keys that it does not know are left out."""
    return _reader(kind)(value)


@functools.lru_cache(maxsize=None)
def _reader(kind: Any) -> Callable[[Any], Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, vars(_documents))
        readers: Dict[str, Callable[[Any], Any]] = {name: _reader(hint) for name, hint in hints.items()}
        return lambda value: kind(**{name: of(value[name.rstrip("_")]) for name, of in readers.items()})
    if origin is Union:
        of = _reader(next(one for one in arguments if one is not type(None)))
        return lambda value: None if value is None else of(value)
    if origin is list:
        of = _reader(arguments[0])
        return lambda value: [of(one) for one in value]
    if origin is dict:
        of = _reader(arguments[1])
        return lambda value: {key: of(one) for key, one in value.items()}
    if kind is float:
        return float
    return lambda value: value
