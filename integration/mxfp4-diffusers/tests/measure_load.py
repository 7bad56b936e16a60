"""Load a component in a process of its own and print how far its anonymous memory rose, in bytes.

Pages of the checkpoint, which diffusers maps, do not count: the system takes them back when it needs to.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import diffusers
import torch

import mxfp4_diffusers


def anonymous() -> int:
    """Return RssAnon of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError("no RssAnon in /proc/self/status")


class Watch(threading.Thread):
    """Note the peak of the anonymous memory every half millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.start_bytes = self.peak = anonymous()

    def run(self) -> None:
        while not self.done.wait(0.0005):
            self.peak = max(self.peak, anonymous())


def main(warm_up: str, path: str) -> None:
    """Load a small model first, so that imports and compiled kernels do not count."""
    torch.set_num_threads(1)
    for folder in (warm_up, path):
        watch = Watch()
        watch.start()
        model = diffusers.AutoModel.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=mxfp4_diffusers.Mxfp4Config()
        )
        watch.done.set()
        watch.join()
    kept = {name for weight in model.hf_quantizer.plan.weights.values() for name in weight.names.values()}
    state = model.state_dict()
    result = sum(tensor.nbytes for name, tensor in state.items() if name in kept)
    print(json.dumps({"rise": watch.peak - watch.start_bytes, "result": result}))


if __name__ == "__main__":
    main(*sys.argv[1:])
