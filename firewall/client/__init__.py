"""Small clients: of the firewall itself, and of any Open Inference Protocol server.

::

    with Client("localhost:8081") as client:
        [prediction] = client.predict(["cat.png"])
        if prediction.verdict is Verdict.ACCEPT:
            print(prediction.labels[0].name)
"""

from __future__ import annotations

from firewall.client.native import (
    AsyncClient,
    Certificate,
    Certified,
    Client,
    Image,
    Label,
    Prediction,
)
from firewall.client.open_inference import OpenInferenceClient
from firewall.client.security import Tls
from firewall.protocol.tensors import TensorInfo
from firewall.screening.verdict import Verdict

__all__ = [
    "AsyncClient",
    "Certificate",
    "Certified",
    "Client",
    "Image",
    "Label",
    "OpenInferenceClient",
    "Prediction",
    "TensorInfo",
    "Tls",
    "Verdict",
]
