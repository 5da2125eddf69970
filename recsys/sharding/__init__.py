"""Apply a sharding plan with TorchRec, and exchange data between ranks."""
