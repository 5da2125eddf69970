"""Score Parquet files of raw rows with an export, one file of probabilities per input file."""

import argparse
import os
from pathlib import Path

from flows.command_line import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the export, the files and where the scores go."""
    parser.add_argument("export", type=Path, metavar="EXPORT", help="an export folder")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="Parquet, raw rows")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder for one output file per input file, with the same name",
    )
    parser.add_argument(
        "--keep", nargs="*", default=[], metavar="COLUMN", help="columns to write beside the scores"
    )


def run(options: argparse.Namespace) -> None:
    """Score each file as a task of one flow."""
    # Gives Prefect's temporary server more than its default of 20 s to start
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    from tasks.batch_scoring import score

    rows = score(options.export, options.files, options.output, options.keep)
    print(f"{sum(rows):,} rows of {len(rows)} files in {options.output}")


if __name__ == "__main__":
    run_program(__doc__, add_arguments, run)
