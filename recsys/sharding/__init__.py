"""Making a plan so: TorchRec's sharding, and what travels between ranks."""
