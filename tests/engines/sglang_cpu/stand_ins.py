"""What SGLang's released package lacks on a CPU: read at every start of its environment, also in its processes.

PyPI's torchvision is built for CUDA: without its library the operators are not there that this module describes.
"""

import sys
import types

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
