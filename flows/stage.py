"""``towerflow ingest`` to ``towerflow register``: one stage of the pipeline."""

import argparse
from importlib import import_module

from flows.command_line import add_overrides, run_stage_flow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the flow of the stage ``options.stage``."""
    module = import_module(f"flows.{options.stage}")
    run_stage_flow(getattr(module, options.stage), options)
