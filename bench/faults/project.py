"""The project that faults are tried on: as small as one with two ranks, a distilled student and a
baseline may be."""

from pathlib import Path

import yaml

from tests.support.projects import copy_project

ROWS_LINE, FEWER_ROWS = "rows: 240000", "rows: 3000"
SETTINGS = {
    "data": {"max_windows": 3},
    "baselines": {"run": ["logistic"]},
    "augment": {"teacher": "own"},
    "train": {"world_size": 2, "global_batch_size": 128},
    "teacher": {
        "checkpoint_every_batches": 2,
        "table_learning_rate": 0.1,
        "model.dense_layers": [16],
        "model.over_layers": [16],
    },
    "students": {
        "seeds": [1],
        "table_learning_rate": None,
        "students": [{"name": "feed", "domain": "feed"}],
        "arms": {"plain": {"mode": "none"}, "distilled": {"rows": "own"}},
        "auto_windows": 2,
    },
    "towers": {"partition.probe_windows": 2, "partition.restarts": 1, "partition.steps": 100},
    "evaluate": {"first_evaluation_window": 2, "bootstrap_samples": 20},
    "stream": {"alias": None},
}
RESULTS = [
    "dvc.lock",
    "data/windows",
    "data/oracle",
    "data/scores",
    "models/baselines",
    "models/partition",
    "models/published",
    "models/stream",
    "models/students",
    "models/teacher",
    "reports/registration.json",
]


def small_project(folder: Path) -> Path:
    """A copy of the project with a small log, small models and settings to match."""
    folder.mkdir(parents=True)
    copy_project(folder)
    description = folder / "params/datasets/synthetic.yaml"
    description.write_text(description.read_text().replace(ROWS_LINE, FEWER_ROWS))
    for name, values in SETTINGS.items():
        path = folder / "params" / f"{name}.yaml"
        settings = yaml.safe_load(path.read_text())
        for key, value in values.items():
            settings[key] = (
                settings[key] | value if isinstance(value, dict) and key != "arms" else value
            )
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder
