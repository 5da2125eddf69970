"""Conversion factors between units."""

FLOAT_BYTES = 4  # float32
BYTES_PER_GIB = 2**30
MS_PER_SECOND = 1_000
MINUTES_PER_HOUR = 60
MS_PER_HOUR = 3_600_000
MEGA, GIGA = 10**6, 10**9
