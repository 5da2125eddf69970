"""What does one teacher for N students cost against a teacher of its own for each?

    python -m bench.distillation.cost flops
    python -m bench.distillation.cost measured --rows 120000 --write

External distillation pays the teacher once, scores each example once and trains N small students.
Co-distillation trains a peer of the teacher's size with each student.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.distillation.lab import ARMS, PARAMS, PEER, Lab
from bench.distillation.results import command_line, write_section
from bench.distillation.teacher_ladder import cost, stream_schema
from recsys.config import load_settings
from recsys.data.schema import Schema
from recsys.distill.distillation_settings import DistillationSettings
from recsys.distill.heads import DistilledRanker
from recsys.distill.student_settings import StudentsSettings
from recsys.models.factory import build_ranker

REPORT = Path("docs/benchmarks/distillation_sweeps.md")
COUNTS = (1, 2, 3, 4, 6, 8)
FORWARD_SHARE = 1 / 3  # of the FLOPs of a training step
SAMPLES = 2
EXTERNAL, CO_DISTILLATION = "AH", "co-distillation"


@dataclass(frozen=True)
class Costs:
    """Of one example, in one unit: training the teacher, scoring, a distilled student, a
    co-distilled one, plain."""

    teacher: float
    scoring: float
    distilled: float
    co_distilled: float
    plain: float

    def external(self, students: int, share: float) -> float:
        """One teacher over all examples, and ``students`` that each read ``share`` of them."""
        return self.teacher + self.scoring + students * share * self.distilled

    def separate(self, students: int, share: float) -> float:
        """A peer for each student."""
        return students * share * self.co_distilled


def head_flops(schema: Schema, settings: DistillationSettings) -> float:
    """Training FLOPs per example of all heads of a student over those of its serving head."""
    student = load_settings(PARAMS / "students.yaml", StudentsSettings).model
    ranker = build_ranker(schema, student, None, 1, table_device="meta")
    model = DistilledRanker(ranker, settings, 1, schema.initial_base_rate)

    def count(heads: Callable[[torch.Tensor], list[torch.Tensor]]) -> float:
        representation = torch.zeros(SAMPLES, ranker.representation_size, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            outputs = heads(representation.clone())
            torch.stack(outputs).sum().backward()
        return counter.get_total_flops() / SAMPLES

    return count(lambda x: list(model.heads(x).values())) - count(lambda x: [ranker.head(x)])


def counted() -> Costs:
    """In training FLOPs, matrix products and cross layers, lookups apart."""
    schema = stream_schema(PARAMS)
    settings = load_settings(PARAMS / "students.yaml", StudentsSettings)
    layers = {"head_layers": settings.distillation.head_layers}
    teacher = cost(schema, Lab(Path(), "shifted", 1, 0, 1, Path()).teacher("").model).flops
    plain = cost(schema, settings.model).flops
    distilled = plain + head_flops(schema, ARMS[EXTERNAL].model_copy(update=layers))
    peer = cost(schema, PEER).flops
    return Costs(teacher, FORWARD_SHARE * teacher, distilled, distilled + peer, plain)


def timed(rows: int) -> Costs:
    """In processor seconds per example, of a stream of ``rows`` with a student for each domain."""
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name), "shifted", 1, rows, 1, Path())
        lab.make_windows()
        seconds = [
            _seconds(work)
            for work in (lab.make_teacher, lab.prepare, lambda: lab.train_students({}))
        ]
        arms = [{arm: ARMS[arm]} for arm in (EXTERNAL, CO_DISTILLATION)]
        seconds += [_seconds(lambda arm=arm: lab.train_students(arm)) for arm in arms]
    teacher, scoring, plain, distilled, co_distilled = (one / rows for one in seconds)
    return Costs(teacher, scoring, distilled, co_distilled, plain)


def _seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def lines(costs: Costs, shares: tuple[float, ...] = (1.0, 1 / 3)) -> list[str]:
    """Markdown: total cost in units of a plain student that reads every example."""
    unit = costs.plain
    names = ("teacher", "scoring", "distilled", "co_distilled")
    table = [
        ", ".join(f"{name.replace('_', '-')} {getattr(costs, name) / unit:.2f}" for name in names)
        + ".",
        "",
    ]
    heads = [
        f"{kind}, {_share(share)}"
        for share in shares
        for kind in ("one teacher", "N teachers", "ratio")
    ]
    table += [f"| N | {' | '.join(heads)} |", "|---:" * (len(heads) + 1) + "|"]
    for students in COUNTS:
        cells = []
        for share in shares:
            one, many = (
                costs.external(students, share) / unit,
                costs.separate(students, share) / unit,
            )
            cells += [f"{one:.1f}", f"{many:.1f}", f"{one / many:.2f}"]
        table.append(f"| {students} | {' | '.join(cells)} |")
    return table


def _share(share: float) -> str:
    return "each reads all" if share == 1.0 else f"each reads {share:.0%}"


def main() -> None:
    """Read the command line and print the tables."""
    given = command_line(__doc__, ("flops", "measured")).parse_args()
    if given.what == "flops":
        found = ["Training FLOPs per example, relative to a plain student:", "", *lines(counted())]
    else:
        costs = timed(given.rows)
        found = [
            f"Processor seconds, {given.rows:,} rows, one thread, one run; a plain student takes "
            f"{1e6 * costs.plain:.1f} us per example, and the others, times that:",
            "",
            *lines(costs),
        ]
    print("\n".join(found))
    if given.write:
        write_section(
            REPORT,
            "When distillation helps",
            f"cost, {given.what}: one teacher for N students",
            found,
        )


if __name__ == "__main__":
    main()
