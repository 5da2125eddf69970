"""Find the best sharding before a model exists; uses no TorchRec."""
