"""What an export folder holds, and its version."""

WEIGHTS_FILE = "weights.safetensors"  # the network's parameters, and all tables as one tensor
NETWORK_FILE = "network.onnx"  # all above the tables
MODEL_FILE = "model.json"
CALIBRATION_FILE = "calibration.json"
CARD_FILE = "card.json"  # what the model is and where it comes from, for people
FORMAT_VERSION = 3  # since 3 with network.onnx, calibration.json and sums.json
TABLES, SCALES = "tables", "scales"  # in weights.safetensors: [R, N], and of int8 [R]
ROWS = "rows"  # in a delta: which of them it holds
DENSE_INPUT, EMBEDDINGS_INPUT, COUNTS_INPUT = "dense", "embeddings", "counts"
LOGITS_OUTPUT = "logits"
REMEDY = "towerflow students"
