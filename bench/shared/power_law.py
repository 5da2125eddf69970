"""Ids as popular as those of click logs."""

import numpy as np

EXPONENT = 1.05  # of the ids' popularity
SPREAD = 2_654_435_761  # odd: scatters the popular ids over a table


def power_law(draw: np.random.Generator, table_rows: int, count: int) -> np.ndarray:
    """[count] int64 ids in [0, table_rows): rank r is drawn as r^-EXPONENT, ranks scattered over
    the table."""
    power = 1.0 - EXPONENT
    top = (table_rows + 1.0) ** power - 1.0
    ranks = np.floor((1.0 + draw.random(count) * top) ** (1.0 / power)).astype(np.int64) - 1
    return np.minimum(ranks, table_rows - 1) * SPREAD % table_rows
