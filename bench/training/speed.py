"""How fast is training, end to end from Parquet? This engine, plain PyTorch and FuxiCTR on the same
model and files.

    make bench                                    # the whole matrix: hours on two cores
    make bench ARGS="--quick"                     # minutes
    make bench ARGS="--architectures dlrm --rows 100000 --peers /path/to/folder --write"

bench/README.md says what is measured and how.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from bench.shared.report import print_report
from bench.training.cases import CONTENDERS, PEERS, SEED, Case, Model
from bench.training.report import (
    Section,
    header,
    losses_differ,
    reason_for_skipping,
    section_lines,
    summary,
)
from bench.training.windows import TABLES, write_windows
from recsys.config import InputError
from recsys.training.settings import TrainSettings

REPORT = Path("docs/benchmarks/training.md")
WINDOWS = 3
LOSS_TOLERANCE = 1e-5
# Spinning OpenMP threads beside any other busy process run 30 times slower.
SPIN = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
QUICK = {
    "architectures": ["dlrm"],
    "dimensions": [64],
    "batches": [4096],
    "rows": [10_000],
    "repeats": 1,
    "seconds": 2.0,
    "window_rows": 16_384,
}


def parse() -> argparse.Namespace:
    """The command line; ``--quick`` changes the defaults, not what is given beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--architectures", nargs="+", choices=["dlrm", "dcn"], default=["dlrm", "dcn"]
    )
    parser.add_argument("--dimensions", nargs="+", type=int, default=[64, 128])
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[4096, 16384], help="global batch sizes"
    )
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[100_000], help="rows per table, 1e4 to 1e6"
    )
    parser.add_argument(
        "--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS)
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="aimed at, a measurement")
    parser.add_argument("--least-steps", type=int, default=2, help="of a measurement, however slow")
    parser.add_argument("--window-rows", type=int, default=65_536, help="examples per window")
    parser.add_argument("--sharding", default="planner", help="as in params/train.yaml")
    parser.add_argument("--peers", default="", help="folder with the peers (see bench/README.md)")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds, a measurement")
    parser.add_argument(
        "--results", type=Path, help="file of earlier repeats and models, to be continued"
    )
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT}")
    parser.add_argument("--quick", action="store_true", help="one small model, one short repeat")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def run_worker(
    what: str, case: Case, threads: int, timeout: float, *more: str
) -> dict[str, float] | str:
    """The worker's JSON, or one line about why there is none."""
    count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    path = os.pathsep.join(filter(None, [case.peers, os.environ.get("PYTHONPATH")]))
    environment = (
        os.environ | SPIN | count | ({"PYTHONPATH": path} if case.who().kind in PEERS else {})
    )
    command = [sys.executable, "-m", "bench.training.worker", what, case.to_json(), *more]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done in {timeout:.0f} s"
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return f"failed ({done.returncode}): {said[-1] if said else 'no message'}"
    return json.loads(done.stdout.splitlines()[-1])


def run_section(
    model: Model, windows: Path, given: argparse.Namespace, earlier: Section | None
) -> Section:
    """All contenders on one model, alternating over the repeats; goes on from the ``earlier`` ones,
    if any."""
    cases = {
        name: Case(
            name, model, str(windows), given.seconds, given.least_steps, given.sharding, given.peers
        )
        for name in given.contenders
    }
    threads = sorted({case.who().ranks * case.who().threads for case in cases.values()} | {1})
    machine = run_worker(
        "machine",
        next(iter(cases.values())),
        max(threads),
        given.timeout,
        *(str(count) for count in threads),
    )
    if isinstance(machine, str):
        raise RuntimeError(machine)
    section = earlier or Section(model, {})
    section.machine |= machine
    for name in cases:
        section.reasons.pop(name, None)  # asked for again
    for repeat in range(given.repeats):
        for name, case in cases.items():
            if name in section.reasons:
                continue
            skipped = reason_for_skipping(case, TABLES)
            result = skipped or run_worker("contender", case, case.who().threads, given.timeout)
            if isinstance(result, str):
                section.reasons[name] = result
                section.results.pop(name, None)
            else:
                section.results.setdefault(name, []).append(result)
            said = result if isinstance(result, str) else summary(result)
            print(f"{model} repeat {repeat + 1} {name}: {said}", file=sys.stderr, flush=True)
    return section


def read_sections(path: Path) -> dict[Model, Section]:
    """What :func:`write_sections` wrote; nothing where there is no such file."""
    saved = json.loads(path.read_text()) if path.exists() else []
    sections = [Section(**{**values, "model": Model(**values["model"])}) for values in saved]
    return {section.model: section for section in sections}


def write_sections(path: Path, sections: dict[Model, Section]) -> None:
    """All measurements, for a later call to go on from."""
    path.write_text(json.dumps([asdict(section) for section in sections.values()]))


def _command(given: argparse.Namespace) -> str:
    """How to run the same again, without a path of this machine."""
    names = {given.peers: "PEERS", str(given.results): "RESULTS"}
    words = [names.get(word, word) for word in sys.argv[1:]]
    return f'make bench ARGS="{" ".join(words)}"' if words else "make bench"


def main() -> int:
    """Write the windows, run the matrix, print the report; 1 where contenders do not train the same
    model."""
    given = parse()
    if given.peers and not Path(given.peers).is_dir():
        raise InputError(
            f"--peers {given.peers}: no such folder; bench/README.md says how to fill one"
        )
    try:
        TrainSettings.model_validate({"sharding": given.sharding})
    except ValidationError as error:
        raise InputError(f"--sharding {given.sharding}: {error.errors()[0]['msg']}") from error
    sections = read_sections(given.results) if given.results else {}
    lines = header(_command(given), SPIN)
    given.peers = str(Path(given.peers).absolute()) if given.peers else ""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for rows in given.rows:
            windows = Path(folder) / str(rows)
            write_windows(windows, rows, given.window_rows, WINDOWS, SEED)
            for choice in itertools.product(given.architectures, given.dimensions, given.batches):
                model = Model(*choice, rows)
                sections[model] = run_section(model, windows, given, sections.get(model))
                if given.results:
                    write_sections(given.results, sections)
    lines += [line for section in sections.values() for line in section_lines(section)]
    differences = [
        line for section in sections.values() for line in losses_differ(section, LOSS_TOLERANCE)
    ]
    if differences:
        lines += ["", *differences]
    print_report("\n".join(lines) + "\n", REPORT if given.write else None)
    return bool(differences)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
