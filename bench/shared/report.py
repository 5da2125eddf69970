"""What every benchmark's report begins with, and where it goes."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from recsys.units import BYTES_PER_GIB

PACKAGES = ["torch", "torchrec", "fbgemm-gpu-cpu", "polars"]


def machine_lines(title: str, command: str, spin: dict[str, str]) -> list[str]:
    """Title, date, machine, versions, command."""
    environment = "".join(f"; {name}={value}" for name, value in spin.items())
    return [
        f"# {title}",
        "",
        f"{machine_line()}, load at the start {os.getloadavg()[0]:.1f}{environment}.",
        "",
        f"    {command}",
    ]


def print_report(text: str, report: Path | None) -> None:
    """Print a benchmark's Markdown, and write it to ``report`` where one is given."""
    print(text)
    if report is not None:
        report.write_text(text)


def print_table(
    head: Sequence[str], about: Sequence[str], table: Sequence[str], report: Path | None
) -> None:
    """As :func:`print_report`: what :func:`machine_lines` gives, lines of text, and a table."""
    print_report("\n".join([*head, "", *about, "", *table]) + "\n", report)


def machine_line() -> str:
    """Date, machine and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = psutil.virtual_memory().total / BYTES_PER_GIB
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB; "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
