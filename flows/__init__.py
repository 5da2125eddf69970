"""What a person runs: one flow a file."""

import gc

# To look through what imports leave for garbage every 700 objects takes a sixth of their time
gc.set_threshold(10_000)
