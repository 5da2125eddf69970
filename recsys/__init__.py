"""The library: data, models, towers, sharding, training, distillation, evaluation, serving."""
