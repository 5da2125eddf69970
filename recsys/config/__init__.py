"""Typed, validated settings, from YAML or made in code: one wrong key is one clear error."""

from recsys.config.errors import InputError
from recsys.config.loading import (
    Settings,
    filled_from,
    load_settings,
    nearest_hint,
    nested_settings,
    parse_settings,
    read_yaml,
)

__all__ = [
    "InputError",
    "Settings",
    "filled_from",
    "load_settings",
    "nearest_hint",
    "nested_settings",
    "parse_settings",
    "read_yaml",
]
