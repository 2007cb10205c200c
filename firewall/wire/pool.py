"""The descriptor pool of our messages.

Not the process-wide default one: the Open Inference Protocol's messages have the same full names
in `tritonclient`, `mlserver` and `kserve`, and one pool refuses the second of two.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL: DescriptorPool = DescriptorPool()
