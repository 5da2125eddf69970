"""The library: data, models, towers, sharding, training, distillation, evaluation, serving."""

from importlib.metadata import version

__version__ = version("towerflow")
