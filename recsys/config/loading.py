"""Read a YAML file into a settings model, which remembers where its values came from."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr, ValidationError

from recsys.config.errors import InputError

MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class _Place:
    """A section of a file; ``keys`` gives the origin of single keys from elsewhere."""

    file: str
    section: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)


class Settings(BaseModel):
    """Base of every settings model: immutable, unknown keys are errors.

    It knows the file that it was loaded from, for messages (:meth:`where`). Copies and pickles keep
    this; equality, hash and dumps ignore it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    _place: _Place | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def where(self, key: str) -> str:
        """Where the user finds ``key`` (dotted for nested settings).

        ``train.yaml: key 'memory_gb'`` if loaded from that file, ``TrainSettings: key 'memory_gb'``
        if made in code.
        """
        first, _, rest = key.partition(".")
        if self._place is not None and first in self._place.keys:
            return self._place.keys[first]
        inner = getattr(self, first, None)
        if rest and isinstance(inner, Settings) and inner._place is not None:
            return inner.where(rest)
        if self._place is None:
            return f"{type(self).__name__}: key {key!r}"
        return f"{self._place.file}: key {self._place.section + key!r}"

    def placed_in(self, file: str, section: str = "") -> Self:
        """The same settings, marked as loaded from ``section`` of ``file`` (``"model."``; empty:
        the whole file)."""
        copy = self.model_copy()
        copy._place = _Place(file, section)
        for name, value in self:
            vars(copy)[name] = _placed(value, file, f"{section}{name}")
        return copy

    def placed_as(self, other: "Settings") -> Self:
        """The same settings, marked as loaded from where ``other`` was."""
        if other._place is None:
            return self
        return self.placed_in(other._place.file, other._place.section)

    def with_values(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> Self:
        """A copy with ``values``; ``origins`` gives the source of values that come from other
        settings.

        The values are not validated again; they come from validated settings.
        """
        copy = self.model_copy(update=dict(values))
        place = self._place or _Place(type(self).__name__)
        copy._place = _Place(place.file, place.section, {**place.keys, **origins})
        return copy


def _placed(value: Any, file: str, key: str) -> Any:
    """``value`` with every settings model in it placed under ``key`` of ``file``, except those from
    another file."""
    if isinstance(value, Settings):
        return value if value._place else value.placed_in(file, f"{key}.")
    if isinstance(value, list):
        return [_placed(one, file, f"{key}.{index}") for index, one in enumerate(value)]
    if isinstance(value, dict):
        return {name: _placed(one, file, f"{key}.{name}") for name, one in value.items()}
    return value


S = TypeVar("S", bound=Settings)


def filled_from(defaults: Settings) -> BeforeValidator:
    """A validator that fills in a mapping's missing keys from ``defaults``.

    For a section whose defaults differ from those of its class.
    """
    chosen = defaults.model_dump(exclude_unset=True)

    def fill(value: Any) -> Any:
        return {**chosen, **value} if isinstance(value, dict) else value

    return BeforeValidator(fill)


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
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from error
    return parse_settings(text, str(path), model)


def parse_settings(text: str, file: str, model: type[S]) -> S:
    """``text``, the contents of ``file``, as ``model``.

    Raises:
        InputError: it is not a YAML mapping, or holds a wrong key or value, or a key twice.
    """
    values = read_yaml(text, file)
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected a mapping of keys to values")
    try:
        return model.model_validate(values).placed_in(file)
    except ValidationError as error:
        raise InputError(f"{file}: {_first_error(error, model)}") from error


class _KeysOnce(yaml.SafeLoader):
    """A loader that enforces YAML's rule against duplicate keys, which PyYAML does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of ``node``; raises if a key occurs twice."""
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE_TAG:
                continue
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key {key.value!r} is in lines {before.start_mark.line + 1} and "
                    f"{key.start_mark.line + 1}; give it once",
                )
        return super().construct_mapping(node, deep)


def read_yaml(text: str, file: str) -> Any:
    """The parsed YAML of ``text``, the contents of ``file``.

    Raises:
        InputError: it is not YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, _KeysOnce)
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-13-01 is a ValueError
        raise InputError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{file}: not valid YAML: nested too deeply") from error


def _first_error(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first problem in a validation error; an unknown key comes before a missing
    one, which it may be a misspelling of."""
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    location = _location(first["loc"])
    if first["type"] == "extra_forbidden":
        valid = _keys_at(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key {location!r}; {hint}"
    if first["type"] == "missing":
        return f"missing key {location!r}"
    messages = [one["msg"] for one in error.errors() if _location(one["loc"]) == location]
    if not location:  # about the whole file: the message says what is wrong
        return " or ".join(dict.fromkeys(messages)).removeprefix("Value error, ")
    return f"key {location!r}: {' or '.join(dict.fromkeys(messages))}, got {first['input']!r}"


def _location(parts: tuple[int | str, ...]) -> str:
    """A dotted key, without pydantic's names for the types of a union (``literal['a']``)."""
    return ".".join(str(part) for part in parts if "[" not in str(part))


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys of the settings model found by following ``location`` from ``model``."""
    for part in location:
        if isinstance(part, int):
            continue
        field_info = model.model_fields.get(str(part))
        if field_info is None:
            continue
        nested = nested_settings(field_info.annotation)
        if nested is None:
            return []
        model = nested
    return sorted(model.model_fields)


def nested_settings(annotation: Any) -> type[BaseModel] | None:
    """The settings class in an annotation such as ``list[X] | None``; None: there is none."""
    arguments = getattr(annotation, "__args__", ())
    if arguments:
        found = [nested_settings(argument) for argument in arguments]
        return next((one for one in found if one is not None), None)
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def nearest_hint(name: str, valid: Iterable[str]) -> str:
    """A hint at what ``name`` may have meant."""
    choices = list(valid)
    near = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(choices)}"
