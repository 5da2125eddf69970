"""What a person runs: one flow a file."""

import gc
import os

# To look through what imports leave for garbage every 700 objects takes a sixth of their time
gc.set_threshold(10_000)
# Prefect and MLflow send usage data, and Prefect prints a banner of it, unless this is set
os.environ.setdefault("DO_NOT_TRACK", "true")
