"""How a guard answers: gRPC and HTTP. Never imports torch."""
