"""How models are trained: ranks, batch, optimisers, sharding."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from recsys.config import Settings


class TrainSettings(Settings):
    """Settings of the engine, shared by the probe, the teacher and the students.

    ``global_batch_size`` counts examples over all ranks. ``memory_gb`` is what one rank may spend
    on tables and their optimiser state. ``bf16`` runs the dense part of the forward pass in
    bfloat16; weights and optimiser state stay float32.
    """

    world_size: PositiveInt = 2
    threads_per_rank: PositiveInt = 1
    global_batch_size: PositiveInt = 512
    table_optimizer: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"
    table_learning_rate: PositiveFloat = 0.05
    dense_learning_rate: PositiveFloat = 0.001
    dense_optimizer: Literal["adam", "sgd"] = "adam"
    sharding: Literal["planner", "table_wise", "row_wise", "column_wise"] = "planner"
    memory_gb: PositiveFloat = Field(default=4.0, description="GiB a rank")
    bf16: bool = False
