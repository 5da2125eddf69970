"""Read one YAML file into one settings model."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.config.errors import InputError


class Settings(BaseModel):
    """Base of every settings model: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def load_settings(path: Path, model: type[S]) -> S:
    """Load ``path`` as ``model``.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or holds a wrong key or value.
            The message names the file, the key and, for an unknown key, the nearest valid one.
    """
    if not path.is_file():
        neighbours = (
            sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        )
        near = difflib.get_close_matches(path.stem, neighbours, n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"there are: {', '.join(neighbours) or 'none'}"
        )
        raise InputError(f"{path}: no such file; {hint}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of keys to values")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_error(error, model)}") from error


def _first_error(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first problem of a validation error."""
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        valid = _keys_at(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key {location!r}; {hint}"
    if first["type"] == "missing":
        return f"missing key {location!r}"
    return f"key {location!r}: {first['msg']}, got {first['input']!r}"


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys of the settings model found by following ``location`` from ``model``."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        nested = [
            a for a in _unfold(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not nested:
            return []
        model = nested[0]
    return sorted(model.model_fields)


def _unfold(annotation: Any) -> list[Any]:
    """The leaf types of an annotation such as ``list[X] | None``."""
    arguments = getattr(annotation, "__args__", ())
    return (
        [leaf for argument in arguments for leaf in _unfold(argument)]
        if arguments
        else [annotation]
    )


def nearest_hint(name: str, valid: Iterable[str]) -> str:
    """What ``name`` may have meant."""
    choices = list(valid)
    near = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(choices)}"
