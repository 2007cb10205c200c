"""ONNX graphs as differentiable torch modules: exact, or refused by the operators' names."""

from firewall.lift.module import OnnxModule, unsupported

__all__ = ["OnnxModule", "unsupported"]
