"""The machine for a plan: ranks, nodes, memory by tier, bandwidths."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from recsys.config import InputError, Settings, load_settings

TIERS = ("hbm", "ddr", "ssd")
UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGTP", start=1)
    for suffix, base in (("B", 1000), ("IB", 1024))
}


class Tier(Settings):
    """One kind of memory from a rank's point of view.

    Attributes:
        gb_s: bandwidth in 10^9 bytes per second.
        access_bytes: smallest access; a narrower row costs as much as this.
    """

    gb_s: PositiveFloat
    access_bytes: PositiveInt


class Hardware(Settings):
    """The performance of one rank; gb_s are 10^9 bytes per second per rank.

    Attributes:
        device: cpu or cuda.
        hbm: the GPU's memory.
        ddr: the host's memory.
        ssd: flash.
        intra_gb_s: bandwidth of all-to-all and reductions inside a node.
        cross_gb_s: bandwidth of an all-to-all between nodes.
        reduce_gb_s: bus bandwidth of reduce-scatter, all-gather and all-reduce between nodes.
        collective_ms: latency of a collective.
        shard_ms: fixed cost of a shard in the look-up kernels.
        dense_tflops: matrix multiplication rate reached in a step.
        reserved_gb: memory of each rank that is not available to the model.
        step_ms: cost of a step on each rank beyond everything else counted.
        cores: cores shared by the ranks of a node; null: each rank has its own.
        source: where the figures come from.
    """

    device: Literal["cuda", "cpu"]
    hbm: Tier | None
    ddr: Tier
    ssd: Tier | None
    intra_gb_s: PositiveFloat
    cross_gb_s: PositiveFloat
    reduce_gb_s: PositiveFloat
    collective_ms: NonNegativeFloat
    shard_ms: NonNegativeFloat
    dense_tflops: PositiveFloat
    reserved_gb: NonNegativeFloat
    step_ms: NonNegativeFloat = 0.0
    cores: PositiveInt | None = None
    source: str

    @property
    def device_tier(self) -> int:
        """Index in :data:`TIERS` of the memory to which look-ups write their outputs."""
        return TIERS.index("ddr" if self.hbm is None else "hbm")

    def tier(self, index: int) -> Tier | None:
        """The tier at ``index`` of :data:`TIERS`."""
        return (self.hbm, self.ddr, self.ssd)[index]


# A rank as a process on a CPU host, where ranks share two cores. Training plans with this by
# default, so that the same settings give the same plan on every machine.
CPU = Hardware(
    device="cpu",
    hbm=None,
    ddr=Tier(gb_s=10.0, access_bytes=64),  # a large copy, read plus write; a cache line
    ssd=None,
    intra_gb_s=3.27,  # fitted: gloo over the loopback
    cross_gb_s=3.27,
    reduce_gb_s=3.27,
    collective_ms=1.04,  # fitted: a collective and the Python code around it
    shard_ms=0.554,  # fitted: a table's share of look-up, update and exchange
    dense_tflops=0.1,
    reserved_gb=0.5,  # an idle rank has 0.30; initial rows, the loader's parts of windows
    step_ms=5.24,  # fitted: optimiser, autograd and Python code of a step
    cores=2,
    source="fitted to 27 plans on 2 gloo ranks (python -m bench.planner.validation --fit)",
)


# A rank as an H100 SXM. Training on GPUs plans with this by default
GPU = Hardware(
    device="cuda",
    hbm=Tier(gb_s=3350.0, access_bytes=32),  # H100 SXM5 data sheet; a DRAM sector
    ddr=Tier(gb_s=63.0, access_bytes=128),  # PCIe 5.0 x16, one direction
    ssd=None,
    intra_gb_s=450.0,  # NVLink 4, 900 GB/s in both directions
    cross_gb_s=30.0,  # assumed: 0.6 of a ConnectX-7 of 400 Gb/s, one per GPU (DGX H100)
    reduce_gb_s=40.0,  # assumed: 0.8 of it
    collective_ms=0.05,  # assumed
    shard_ms=0.005,  # assumed
    dense_tflops=50.0,  # three quarters of 67, fp32 without TF32, which is torch's default
    reserved_gb=3.0,  # assumed: CUDA context, NCCL buffers, allocator slack
    source="NVIDIA H100 and DGX H100 data sheets, and assumptions; not measured",
)


@dataclass(frozen=True)
class Topology:
    """``nodes`` x ``gpus`` ranks; ``hbm`` bytes per rank, ``ddr`` and ``ssd`` bytes per node."""

    hardware: Hardware
    nodes: int
    gpus: int
    hbm: int
    ddr: int
    ssd: int

    @property
    def world_size(self) -> int:
        """Number of ranks over all nodes."""
        return self.nodes * self.gpus

    @property
    def ranks_per_core(self) -> float:
        """Ranks per shared core; 0 if each rank has its own cores."""
        return self.gpus / self.hardware.cores if self.hardware.cores else 0.0

    def total_bytes(self) -> tuple[int, int, int]:
        """Bytes of (HBM, DDR, SSD) over all nodes."""
        return self.hbm * self.world_size, self.ddr * self.nodes, self.ssd * self.nodes


def load_hardware(name: str, folder: Path) -> Hardware:
    """Load ``folder/name.yaml``; for ``cpu``, this machine's calibration if there is one.

    Raises:
        InputError: the file does not exist, or has a wrong key.
    """
    calibrated = calibration_path()
    if name == "cpu" and calibrated.is_file():
        return load_settings(calibrated, Hardware)
    return load_settings(folder / f"{name}.yaml", Hardware)


def calibration_path() -> Path:
    """The file with this machine's measurements by ``calibrate``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "towerflow" / "cpu.yaml"


def parse_bytes(text: str) -> int:
    """``40GB`` (10^9) or ``40GiB`` (2^30) as bytes.

    Raises:
        InputError: not a number with a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise InputError(
            f"{text!r} is not a size; write a number and a unit, such as 40GB, 1.5TB or 32GiB"
        )
    return round(float(match[1]) * UNITS[match[2].upper()])


def format_bytes(count: float) -> str:
    """Bytes in decimal units for display: 23.96 TB."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} PB"
