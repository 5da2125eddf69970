"""``--set FILE.KEY=VALUE``: write values into params/, all or none, keeping comments."""

import io
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from recsys.config import (
    InputError,
    Settings,
    nearest_hint,
    nested_settings,
    parse_settings,
    read_yaml,
)
from recsys.data.settings import DatasetSettings
from recsys.files import write_atomically
from tasks.checks import check_settings
from tasks.project import PARAMS
from tasks.settings import DATASETS, FILES

WIDTH = 4096  # wide enough that no line is broken


class _KeepsNull(RoundTripRepresenter):
    """Writes null as ``null``: a key without a value looks like a mistake."""


_KeepsNull.add_representer(
    type(None), lambda yaml, _: yaml.represent_scalar("tag:yaml.org,2002:null", "null")
)


def apply_overrides(overrides: Mapping[str, str]) -> None:
    """Write each value into its params/*.yaml.

    A key is ``file.key``, with more dots for nested keys and an index for an element of a list
    (``students.students.0.domain``); ``datasets.<name>.key`` means params/datasets/<name>.yaml. The
    file may omit the key so far. Nothing is written unless all files are valid, alone and together.

    Raises:
        InputError: there is no such file or key, or a value is wrong.
    """
    if not overrides:
        return
    round_trip = YAML()
    round_trip.width = WIDTH
    round_trip.Representer = _KeepsNull
    documents: dict[Path, Any] = {}
    models: dict[Path, type[Settings]] = {}
    for key, text in overrides.items():
        path, model, keys = _target(key)
        if path not in documents:
            written = path.read_text()
            read_yaml(written, str(path))  # says in one line what is wrong with it
            documents[path], models[path] = round_trip.load(written), model
        try:
            value = round_trip.load(text)  # a list on one line stays on one line
        except YAMLError as error:
            raise InputError(
                f"--set {key}: not valid YAML: {' '.join(str(error).split())}"
            ) from error
        _Setting(key, path).write(documents[path], model, keys, value)
    texts = {path: _text(round_trip, document) for path, document in documents.items()}
    for path, text in texts.items():
        parse_settings(text, str(path), models[path])
    check_settings(texts)
    for path, text in texts.items():
        write_atomically(path, text.encode())


def _target(key: str) -> tuple[Path, type[Settings], list[str]]:
    """The file of ``key``, its settings class, and the keys inside it."""
    name, *keys = key.split(".")
    if name == DATASETS:
        name, keys = f"{name}/{keys[0] if keys else ''}", keys[1:]
        names = sorted(f"{DATASETS}.{path.stem}" for path in (PARAMS / DATASETS).glob("*.yaml"))
        model: type[Settings] | None = DatasetSettings
    else:
        names = sorted(name for name in FILES if (PARAMS / f"{name}.yaml").is_file())
        model = FILES.get(name)
    path = PARAMS / f"{name}.yaml"
    if model is None or not path.is_file():
        hint = nearest_hint(name.replace("/", "."), names)
        raise InputError(f"--set {key}: no parameter file {path}; {hint}")
    if not keys:
        raise InputError(f"--set {key}: names no key; choose from: {', '.join(model.model_fields)}")
    return path, model, keys


class _Setting:
    """One ``--set``: finds its place in a document with the help of the settings classes."""

    def __init__(self, key: str, path: Path) -> None:
        self.key, self.path = key, path

    def write(self, node: Any, kind: Any, keys: list[str], value: Any) -> None:
        """Put ``value`` under ``keys`` of ``node``, which holds a ``kind``; create missing
        levels."""
        first, *rest = keys
        place, inner, default = self._step(node, kind, first)
        if not rest:
            node[place] = value
            return
        if isinstance(node, dict) and node.get(place) is None:
            node[place] = _plain(default, inner)
        if not isinstance(node[place], dict | list):
            raise self._mistake(f"{first!r} is a single value and has no keys")
        self.write(node[place], inner, rest, value)

    def _step(self, node: Any, kind: Any, key: str) -> tuple[Any, Any, Any]:
        """Where ``key`` is in ``node``, the type of what is there, and its default."""
        kind = _container(kind)
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise self._mistake(
                    f"{key!r} is not an element of a list of {len(node)}; they count from 0"
                )
            return int(key), (get_args(kind) or (Any,))[0], PydanticUndefined
        if get_origin(kind) is dict:
            return key, get_args(kind)[1], PydanticUndefined
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(key)
            if field is None:
                raise self._mistake(nearest_hint(key, kind.model_fields))
            given = node if isinstance(node, dict) else {}  # some defaults depend on other keys
            default = field.get_default(call_default_factory=True, validated_data=given)
            return key, field.annotation, default
        return key, Any, PydanticUndefined  # settings of a user's own class: validation decides

    def _mistake(self, hint: str) -> InputError:
        return InputError(f"--set {self.key}: no such key in {self.path}; {hint}")


def _container(kind: Any) -> Any:
    """The list, dict or settings class in a union such as ``X | None``; else ``kind``."""
    if get_origin(kind) in (types.UnionType, Union):
        for option in get_args(kind):
            if get_origin(option) in (list, dict) or nested_settings(option) is not None:
                return option
    return kind


def _plain(default: Any, kind: Any) -> Any:
    """What to write for a list, mapping or section that the file omits, before one of its keys is
    set; a section fills in the other keys' defaults itself."""
    if isinstance(default, list):
        return [_dumped(one) for one in default]
    if isinstance(default, dict):
        return {name: _dumped(one) for name, one in default.items()}
    if get_origin(_container(kind)) is list:
        return []
    return {}


def _dumped(value: Any) -> Any:
    is_settings = isinstance(value, BaseModel)
    return value.model_dump(mode="json", exclude_unset=True) if is_settings else value


def _text(round_trip: YAML, document: Any) -> str:
    buffer = io.StringIO()
    round_trip.dump(document, buffer)
    return buffer.getvalue()
