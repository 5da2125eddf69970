"""Which examples a model of one domain trains on."""

from typing import Literal

Rows = Literal["own", "scores_elsewhere", "all"]
"""``own``: those of its domain. ``scores_elsewhere``: also the others' that have a teacher's score,
without their labels. ``all``: everybody's, labels and scores."""
