"""Rank launch, engine, optimisers and checkpoints."""
