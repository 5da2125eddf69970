"""The code stage: which code and libraries each stage's results come from, in data/code."""

import argparse

from flows.command_line import apply_or_exit
from tasks.code import write_code, write_deps


def main() -> None:
    """Write data/code, or with ``--write`` what dvc.yaml says of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="write the dependencies on code into dvc.yaml instead"
    )
    apply_or_exit(write_deps if parser.parse_args().write else write_code)


if __name__ == "__main__":
    main()
