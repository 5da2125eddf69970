"""Launching ranks, engine, optimisers and checkpoints."""
