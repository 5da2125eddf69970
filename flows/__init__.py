"""What a person runs: one flow per file."""

import atexit
import gc
import os

# Collecting garbage every 700 objects, the default, takes a sixth of the imports' time
gc.set_threshold(10_000)
# Looking through what is there at the end, with torch, takes 1.5 to 2.5 s and frees nothing
atexit.register(gc.freeze)
# Unless this is set, Prefect and MLflow send usage data, and Prefect prints a banner about it
os.environ.setdefault("DO_NOT_TRACK", "true")
