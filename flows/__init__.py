"""What a person runs: one flow a file."""

import atexit
import gc
import os

# To look through what imports leave for garbage every 700 objects takes a sixth of their time
gc.set_threshold(10_000)
# Nor need what is there at the end be looked through: with torch that takes 1.5 to 2.5 s
atexit.register(gc.freeze)
# Prefect and MLflow send usage data, and Prefect prints a banner of it, unless this is set
os.environ.setdefault("DO_NOT_TRACK", "true")
