"""Schema, sources, encoding, windows and the loader."""
