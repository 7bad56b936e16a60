"""Load a checkpoint in a process of its own and print how far its anonymous memory rose, in bytes.

Pages of the checkpoint itself, mapped from the file, do not count: the system takes them back when it needs to.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch

from mxfp4_transformers import from_pretrained


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
    from_pretrained(warm_up)
    watch = Watch()
    watch.start()
    model = from_pretrained(path)
    watch.done.set()
    watch.join()
    result = sum(tensor.nbytes for tensor in model.state_dict().values())
    print(json.dumps({"rise": watch.peak - watch.start_bytes, "result": result}))


if __name__ == "__main__":
    main(*sys.argv[1:])
