"""What the library's commands share: numbers from arguments."""

import argparse


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
