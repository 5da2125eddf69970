"""``towerflow plan MODEL``."""

import argparse
from pathlib import Path

from recsys.commands.arguments import positive

DEFAULT_ROWS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the machines, and how to show and write the plan."""
    parser.add_argument(
        "model", type=Path, help="a model's tables, e.g. params/models/model_f.yaml"
    )
    parser.add_argument(
        "--hardware",
        default="a100_zionex",
        help="a file in --hardware-folder, without .yaml, or a path, with .yaml",
    )
    parser.add_argument(
        "--hardware-folder", type=Path, default=Path(), help="folder with hardware descriptions"
    )
    parser.add_argument("--nodes", type=positive, default=1, help="hosts")
    parser.add_argument("--gpus", type=positive, default=8, help="ranks per host")
    parser.add_argument(
        "--hbm", default="40GB", help="device memory per rank; ignored for CPU hardware"
    )
    parser.add_argument("--ddr", default="1.5TB", help="host memory per host")
    parser.add_argument("--ssd", default="0", help="flash per host")
    parser.add_argument(
        "--batch-size", type=positive, help="samples per rank, instead of the model file's"
    )
    parser.add_argument("--rows", type=positive, default=DEFAULT_ROWS, help="tables to print")
    parser.add_argument("--json", type=Path, help="write the plan here")
    parser.add_argument("--figure", type=Path, help="draw the ranks here (PNG)")


def run(options: argparse.Namespace) -> None:
    """Choose how and where each table is sharded; print the plan, and write the requested files.

    Raises:
        InputError: a file or a size is wrong, or the model does not fit.
    """
    from rich.console import Console

    from recsys.config import InputError, load_settings
    from recsys.planning.hardware import Hardware, Topology, load_hardware, parse_bytes
    from recsys.planning.plan_report import draw_plan, print_plan, write_plan
    from recsys.planning.smallest_change import plan_or_explain
    from recsys.planning.tables import PlannedModel

    model = load_settings(options.model, PlannedModel)
    if options.batch_size:
        model = model.model_copy(update={"batch_size": options.batch_size})
    hardware = (
        load_settings(Path(options.hardware), Hardware)
        if options.hardware.endswith(".yaml")
        else load_hardware(options.hardware, options.hardware_folder)
    )
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
