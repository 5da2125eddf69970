"""The source of what runs in a step reads no value of a tensor on the host, but where named."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
# Modules whose code runs in each step: the engine's, the models', the losses', the exchanges'
SOURCES = [
    *(ROOT / "recsys/models").glob("*.py"),
    *(
        ROOT / f"recsys/{name}.py"
        for name in (
            "distill/adapter",
            "distill/heads",
            "distill/losses",
            "sharding/communication",
            "sharding/pooling",
            "towers/exchange",
            "towers/ids",
            "training/engine",
            "training/label_loss",
            "training/late",
            "training/non_finite",
            "training/optimizers",
            "training/overlap",
            "training/side_model",
        )
    ),
]
READS = {"item", "tolist", "cpu", "numpy", "nonzero", "unique", "masked_select"}
ALLOWED = {
    # Plain loops of a person, which wait for the loss
    "training/engine.py:train_step",
    # Counts that live on the host
    "training/engine.py:__init__",
    # Of the unsharded model, once a snapshot
    "training/engine.py:gather_state",
    # A copy on the host, two steps old
    "training/late.py:read",
    # Once a step was found to be bad, or where batches may be left out
    "training/non_finite.py:_dense_columns",
    "training/non_finite.py:_finite",
    "training/non_finite.py:_total",
    "training/non_finite.py:error",
    "training/non_finite.py:on_any_rank",
    "training/non_finite.py:skips_loss",
    # How many ids arrive, of the next batch
    "towers/ids.py:send",
}


def reads_in(path: Path) -> Iterator[str]:
    """``file:function`` of each call of a method of READS."""
    name = "/".join(path.parts[-2:])
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in READS
                ):
                    yield f"{name}:{function.name}"


def test_only_named_places_read() -> None:
    assert {place for path in SOURCES for place in reads_in(path)} == ALLOWED
