"""Settings of the augment stage."""

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from recsys.config import Settings

WINDOW_START = "window_start"
Member = Literal["own", "external", "logistic", "trees"]


class ExternalSettings(Settings):
    """Scores from another model: which files, and what their columns mean.

    Attributes:
        root: folder of the files; DVC hashes it.
        files: Parquet or CSV; paths, globs, or folders of Parquet files.
        key: column with the example_id of data/windows.
        task: task of the scores; null: the main task.
        score: column of the scores.
        scale: what the scores are.
        learnt_until: column with the time, in ms since 1970, up to which the scorer knew labels
            when it made the score; window_start: the start of each example's window.
    """

    root: str
    files: Annotated[list[str], Field(min_length=1)]
    key: str = "example_id"
    task: str | None = None
    score: str
    scale: Literal["logit", "probability"]
    learnt_until: str

    @field_validator("files")
    @classmethod
    def _under_root(cls, files: list[str]) -> list[str]:
        for name in files:
            if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                raise ValueError(
                    f"{name!r} is not under root, the folder that DVC hashes; set root"
                )
        return files


def of_baseline(name: str, root: str) -> ExternalSettings:
    """The scores of a baseline trained on all domains' rows (recsys.baselines), whose folder is
    under ``root``."""
    return ExternalSettings(
        root=root,
        files=[f"{name}/all/predictions"],
        score="logit",
        scale="logit",
        learnt_until=WINDOW_START,
    )


LIGHTGBM = of_baseline("trees", "models/baselines")


class StackSettings(Settings):
    """One score combined from several scorers; see :mod:`recsys.distill.stacked_scores`.

    Attributes:
        members: own: the project's teacher; external: the scores in ``external``; logistic and
            trees: the baselines on all domains' rows.
        half_life_windows: data this old count half for the weights.
        prior_strength: pulls the weights towards equal ones: half of it times the squared distance
            is added to the summed log loss.
        max_rows: rows per domain that are used, the newest ones.
    """

    members: list[Member] = Field(default=["own", "logistic", "trees"], min_length=1)
    half_life_windows: float = Field(default=3.0, gt=0)
    prior_strength: float = Field(default=50.0, ge=0)
    max_rows: int = Field(default=200_000, ge=1)

    @field_validator("members")
    @classmethod
    def _once_each(cls, members: list[Member]) -> list[Member]:
        twice = next((name for name in members if members.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} appears twice; give each member once")
        return members


class AugmentSettings(Settings):
    """Whose scores are logged, and how.

    Attributes:
        teacher: own: the project's teacher; external: the scores in ``external``; mean: the mean of
            both logits where both exist, otherwise the one that does; stacked: the members of
            ``stack``, weighted in each domain by their past accuracy.
        external: scores from another model.
        stack: how several scorers are combined.
        batch_size: examples per batch, over all ranks.
        max_staleness_hours: an example gets no score if its event is later than this after the
            snapshot's high-water mark; null: every example gets one.
        wait_hours: how long after its event, in stream time, an example waits for its score; then
            students train on its label alone. null: without limit.
        segment_rows: examples per file of the log; limits memory and the work lost in a kill.
        staleness_bins_hours: bin edges of the report's histogram.
        runner: what runs the shares of the windows.
        parallel_tasks: shares of the windows scored in parallel, each in its own processes.
    """

    teacher: Literal["own", "external", "mean", "stacked"] = "stacked"
    external: ExternalSettings = LIGHTGBM
    stack: StackSettings = StackSettings()
    batch_size: int = Field(default=4096, ge=1)
    max_staleness_hours: float | None = Field(default=None, gt=0)
    wait_hours: float | None = Field(default=None, ge=0)
    segment_rows: int = Field(default=262_144, ge=1)
    staleness_bins_hours: list[float] = Field(default=[1, 2, 4, 8, 16, 24, 48, 96, 168])
    runner: Literal["threads", "dask", "ray"] = "threads"
    parallel_tasks: int = Field(default=1, ge=1)

    @property
    def uses_own(self) -> bool:
        """Whether the project's own teacher scores."""
        return self.teacher in ("own", "mean") or (
            self.teacher == "stacked" and "own" in self.stack.members
        )

    @property
    def baselines(self) -> list[str]:
        """The baselines that score."""
        members = self.stack.members if self.teacher == "stacked" else []
        return [name for name in members if name in ("logistic", "trees")]

    @field_validator("staleness_bins_hours")
    @classmethod
    def _rising(cls, borders: list[float]) -> list[float]:
        if not borders or borders[0] <= 0 or sorted(set(borders)) != borders:
            raise ValueError(
                "give at least one border; each must be above the one before it, the first above 0"
            )
        return borders
