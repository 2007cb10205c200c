"""The classifier behind the guard, over the Open Inference Protocol: gRPC or REST."""
