"""The contents of an export folder, and its format version."""

WEIGHTS_FILE = "weights.safetensors"  # the network's parameters, and all tables as one tensor
NETWORK_FILE = "network.onnx"  # everything above the tables
MODEL_FILE = "model.json"
CALIBRATION_FILE = "calibration.json"
CARD_FILE = "card.json"  # a description of the model and its origin, for people
FORMAT_VERSION = 3  # 3 added network.onnx, calibration.json and sums.json
TABLES, SCALES = "tables", "scales"  # in weights.safetensors: [R, N], and for int8 [R]
ROWS = "rows"  # in a delta: the rows that it contains
DENSE_INPUT, EMBEDDINGS_INPUT, COUNTS_INPUT = "dense", "embeddings", "counts"
LOGITS_OUTPUT = "logits"
REMEDY = "towerflow students"
