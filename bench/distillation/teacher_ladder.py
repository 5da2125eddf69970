"""How much larger than a student each teacher of params/teacher_ladder.yaml is, in training FLOPs
an example.

python -m bench.distillation.teacher_ladder
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from recsys.config import load_settings
from recsys.data.ingest import open_source
from recsys.data.schema import Schema
from recsys.data.settings import DataSettings, load_dataset
from recsys.distill.student_settings import StudentsSettings
from recsys.distill.teacher_settings import TeacherLadderSettings
from recsys.models.cost import RankerCost, ranker_cost
from recsys.models.factory import build_ranker
from recsys.models.settings import ModelSettings

PARAMS = Path("params")


def stream_schema(params: Path) -> Schema:
    """Features and domains of the stream that params/data.yaml names; no windows."""
    settings = load_settings(params / "data.yaml", DataSettings)
    with TemporaryDirectory() as folder:
        source = open_source(settings, load_dataset(settings, params / "datasets"), Path(folder))
    return Schema(settings.dataset, source.dense, source.categorical, source.domains, [], 0.1, {})


def cost(schema: Schema, model: ModelSettings) -> RankerCost:
    """The cost of ``model`` without towers on ``schema``."""
    flat = model.model_copy(update={"towers": False})
    return ranker_cost(build_ranker(schema, flat, None, 1, table_device="meta"))


def ladder(params: Path) -> dict[str, tuple[RankerCost, float]]:
    """(cost, times the student's FLOPs) of each model."""
    schema = stream_schema(params)
    student = cost(schema, load_settings(params / "students.yaml", StudentsSettings).model)
    models = load_settings(params / "teacher_ladder.yaml", TeacherLadderSettings).models
    costs = {name: cost(schema, model) for name, model in models.items()}
    return {name: (one, one.flops / student.flops) for name, one in costs.items()}


def main() -> None:
    """Print the ladder."""
    print(
        "| teacher | training FLOPs per example | times the student's | dense parameters | table "
        "parameters |"
    )
    print("|---|---:|---:|---:|---:|")
    for name, (one, ratio) in ladder(PARAMS).items():
        print(
            f"| {name} | {one.flops:,.0f} | {ratio:.1f} | {one.dense_parameters:,} | "
            f"{one.table_parameters:,} |"
        )


if __name__ == "__main__":
    main()
