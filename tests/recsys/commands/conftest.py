"""How the tests run a command of the library."""

import argparse
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def command() -> Callable[..., None]:
    """``command(module, *arguments)``: parse the arguments as the module says, and run."""

    def run(module: ModuleType, *arguments: str) -> None:
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        module.run(parser.parse_args(arguments))

    return run
