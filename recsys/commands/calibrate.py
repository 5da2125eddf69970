"""``towerflow calibrate``."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where to write, and where to find the values that are not measured."""
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write, e.g. for hardware of params/train.yaml; default: the file that plan "
        "--hardware cpu reads",
    )
    parser.add_argument(
        "--hardware-folder",
        type=Path,
        default=Path(),
        help="folder with a cpu.yaml, which gives the values that are not measured",
    )


def run(options: argparse.Namespace) -> None:
    """Measure this machine and print the results.

    Raises:
        InputError: there is no cpu.yaml, or no folder to write to.
    """
    from recsys.config import InputError
    from recsys.planning.hardware import calibration_path
    from recsys.training.calibration import calibrate

    path = options.output or calibration_path()
    if options.output and not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    measured = calibrate(options.hardware_folder, path)
    print(f"{path}: {measured.source}")
    print(
        f"memory {measured.ddr.gb_s:g} GB/s, all-to-all {measured.intra_gb_s:g} GB/s, "
        f"collective {measured.collective_ms:g} ms, dense {measured.dense_tflops:g} TFLOP/s"
    )
