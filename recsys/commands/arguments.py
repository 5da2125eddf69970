"""What the library's commands share: mistakes as one line, and numbers from arguments."""

import argparse
import sys
from collections.abc import Callable

from recsys.config.errors import InputError

STATUS_OF_A_MISTAKE = 2
STATUS_OF_AN_INTERRUPT = 130


def run_command(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run ``command``; its exit status. A user's mistake is one line and exit status 2."""
    try:
        command(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return STATUS_OF_A_MISTAKE
    except KeyboardInterrupt:
        return STATUS_OF_AN_INTERRUPT
    return 0


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
