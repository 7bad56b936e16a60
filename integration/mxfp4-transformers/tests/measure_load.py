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


@torch.no_grad()
def main(warm_up: str, path: str, offload: str = "") -> None:
    """Load a small model first, so that imports and compiled kernels do not count.

    Args:
        warm_up: folder of the small model.
        path: folder of the one that is measured.
        offload: a folder: its layers go to the disk, what transformers saves there goes to this one, and it is called.
    """
    torch.set_num_threads(1)
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    given = {"device_map": {**places, "model.layers": "disk"}, "offload_folder": offload} if offload else {}
    ids = torch.arange(3, 15)[None]
    from_pretrained(warm_up, **given)(ids)
    watch = Watch()
    watch.start()
    model = from_pretrained(path, **given)
    if offload:
        model(ids)
    watch.done.set()
    watch.join()
    rise = watch.peak - watch.start_bytes
    print(json.dumps({"rise": rise, "result": sum(tensor.nbytes for tensor in model.state_dict().values())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
