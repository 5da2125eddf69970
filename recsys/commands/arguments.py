"""Parsing of arguments, shared by the library's commands."""

import argparse


def positive(text: str) -> int:
    """Parse an argument that must be a whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
