"""The code stage: write which code and libraries decide each stage's results to data/code."""

import argparse

from flows.command_line import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--write``."""
    parser.add_argument(
        "--write", action="store_true", help="instead write the code dependencies into dvc.yaml"
    )


def run(options: argparse.Namespace) -> None:
    """Write data/code, or the code dependencies in dvc.yaml."""
    from tasks.code import write_code, write_deps

    if options.write:
        write_deps()
    else:
        write_code()


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
