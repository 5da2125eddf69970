"""The library: data, models, towers, sharding, training, distillation, evaluation, serving."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("towerflow")
except PackageNotFoundError:  # files that were copied, not installed: the server's image
    __version__ = "0"
