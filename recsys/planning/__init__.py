"""What sharding would be best, before there is a model: no TorchRec."""
