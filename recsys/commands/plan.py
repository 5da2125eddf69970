"""``python -m recsys.sharding plan <model.yaml>`` and ``calibrate``."""

import argparse
import sys
from pathlib import Path

from recsys.commands.arguments import positive, run_command
from recsys.config import InputError, load_settings

HARDWARE = Path("params/hardware")
DEFAULT_ROWS = 40


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and exit status 2."""
    options = _parser().parse_args(arguments)
    return run_command(options.command, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recsys.sharding", description="Plan sharded embedding tables."
    )
    commands = parser.add_subparsers(required=True, metavar="{plan,calibrate}")
    plan = commands.add_parser("plan", help="choose how each table is sharded, and where")
    plan.set_defaults(command=_plan)
    plan.add_argument("model", type=Path, help="a model's tables, e.g. params/models/model_f.yaml")
    plan.add_argument(
        "--hardware", default="a100_zionex", help="a file of params/hardware, without .yaml"
    )
    plan.add_argument("--nodes", type=positive, default=1, help="hosts")
    plan.add_argument("--gpus", type=positive, default=8, help="ranks a host")
    plan.add_argument(
        "--hbm", default="40GB", help="device memory a rank; not read for CPU hardware"
    )
    plan.add_argument("--ddr", default="1.5TB", help="host memory a node")
    plan.add_argument("--ssd", default="0", help="flash a node")
    plan.add_argument(
        "--batch-size", type=positive, help="samples a rank, instead of the model file's"
    )
    plan.add_argument("--rows", type=positive, default=DEFAULT_ROWS, help="tables to print")
    plan.add_argument("--json", type=Path, help="write the plan here")
    plan.add_argument("--figure", type=Path, help="draw the ranks here (PNG)")
    calibrate = commands.add_parser(
        "calibrate", help="measure this machine for plan --hardware cpu"
    )
    calibrate.add_argument(
        "--output", type=Path, help="write here instead: a file for hardware of params/train.yaml"
    )
    calibrate.set_defaults(command=_calibrate)
    return parser


def _plan(options: argparse.Namespace) -> None:
    from rich.console import Console

    from recsys.planning.hardware import Topology, load_hardware, parse_bytes
    from recsys.planning.plan_report import draw_plan, print_plan, write_plan
    from recsys.planning.smallest_change import plan_or_explain
    from recsys.planning.tables import PlannedModel

    model = load_settings(options.model, PlannedModel)
    if options.batch_size:
        model = model.model_copy(update={"batch_size": options.batch_size})
    hardware = load_hardware(options.hardware, HARDWARE)
    topology = Topology(
        hardware=hardware,
        nodes=options.nodes,
        gpus=options.gpus,
        hbm=parse_bytes(options.hbm) if hardware.device == "cuda" else 0,
        ddr=parse_bytes(options.ddr),
        ssd=parse_bytes(options.ssd) if hardware.ssd else 0,
    )
    for path in (options.json, options.figure):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
    plan = plan_or_explain(model, topology)
    print_plan(plan, model, topology, options.rows, Console())
    if options.json:
        write_plan(plan, model, topology, options.json)
    if options.figure:
        draw_plan(plan, options.figure)


def _calibrate(options: argparse.Namespace) -> None:
    from recsys.planning.hardware import calibration_path
    from recsys.training.calibration import calibrate

    path = options.output or calibration_path()
    if options.output and not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    measured = calibrate(HARDWARE, path)
    print(f"{path}: {measured.source}")
    print(
        f"memory {measured.ddr.gb_s:g} GB/s, all-to-all {measured.intra_gb_s:g} GB/s, "
        f"collective {measured.collective_ms:g} ms, dense {measured.dense_tflops:g} TFLOP/s"
    )


if __name__ == "__main__":
    sys.exit(main())
