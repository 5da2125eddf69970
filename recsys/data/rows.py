"""Which examples a model of one domain trains on."""

from typing import Literal

Rows = Literal["own", "scores_elsewhere", "all"]
"""``own``: its domain's. ``scores_elsewhere``: also other domains' examples that have a teacher's
score, without their labels. ``all``: all domains', with labels and scores."""
