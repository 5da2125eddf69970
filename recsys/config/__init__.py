"""params/*.yaml as typed, validated settings: one wrong key is one clear error."""

from recsys.config.errors import InputError
from recsys.config.loading import Settings, load_settings, nearest_hint

__all__ = ["InputError", "Settings", "load_settings", "nearest_hint"]
