"""The code stage: which code and libraries each stage's results come from, in data/code."""

import argparse

from flows.command_line import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--write``."""
    parser.add_argument(
        "--write", action="store_true", help="write the dependencies on code into dvc.yaml instead"
    )


def run(options: argparse.Namespace) -> None:
    """Write data/code, or what dvc.yaml says of it."""
    from tasks.code import write_code, write_deps

    if options.write:
        write_deps()
    else:
        write_code()


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
