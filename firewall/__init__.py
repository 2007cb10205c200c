"""A robustness firewall in front of a served image classifier."""

import os

__version__ = "0.1.0"

# onnxruntime (1.29 and later) otherwise writes an identifier of the machine to the home directory
# and sends events to its maker. It looks at this variable once, when it is first imported, so it is
# set in the one place that is run before every such import.
if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
