"""One measurement in a process of its own, so that no setting leaks: the last line printed is its
JSON."""

import json
import sys
from pathlib import Path

import torch

from bench.training.cases import Case
from bench.training.contenders import run_engine, run_plain, run_sparse
from bench.training.machine import measure_machine
from bench.training.torchrec_loop import run_torchrec
from recsys.data.schema import Schema


def main() -> None:
    """``machine CASE THREADS...`` or ``contender CASE``, where CASE is a Case as JSON."""
    what, case = sys.argv[1], Case.from_json(sys.argv[2])
    if what == "machine":
        schema = Schema.load(Path(case.windows))
        result = measure_machine(case.model, schema, [int(count) for count in sys.argv[3:]])
    else:
        torch.set_num_threads(case.who().threads)
        result = run_contender(case)
    print(json.dumps(result), flush=True)


def run_contender(case: Case) -> dict[str, float]:
    """Measure ``case`` in this process."""
    if case.who().kind == "engine":
        return run_engine(case)
    if case.who().kind == "plain":
        return run_plain(case)
    if case.who().kind == "sparse":
        return run_sparse(case)
    if case.who().kind == "torchrec":
        return run_torchrec(case)
    if case.who().kind == "fuxictr":  # peers only where their folder is on the path
        from bench.training.peer import run_fuxictr

        return run_fuxictr(case)
    from bench.training.deepctr_peer import run_deepctr

    return run_deepctr(case)


if __name__ == "__main__":
    main()
