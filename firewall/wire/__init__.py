"""Generated protobuf messages (see `protos/generate.py`)."""
