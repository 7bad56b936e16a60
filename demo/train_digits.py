"""Train the small diffusion transformer beside this file, and the classifier that judges it, on scikit-learn's digits.

    python demo/train_digits.py                                   (as committed; two CPU cores, some minutes)
    python demo/train_digits.py --steps 20 --out /tmp/digits      (to see that it runs)

It needs scikit-learn beside diffusers, for the 1797 images of its ``load_digits``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import diffusers
import sklearn
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from digits import CLASSES, SIZE, DigitsPipeline, Gaussian, Judge  # noqa: E402

HELD_OUT = 360
"""Images that the judge does not learn from, so that its accuracy means something."""
PEAK_RATE = 2e-3
BATCH = 128


def train_judge(images: Tensor, labels: Tensor, steps: int) -> tuple[Judge, float]:
    """Return the classifier, and its accuracy on what it has not seen."""
    torch.manual_seed(0)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(steps):
        chosen = torch.randint(HELD_OUT, len(images), (128,))
        noisy = images[chosen] + 0.1 * torch.randn(128, SIZE, SIZE)
        loss = nn.functional.cross_entropy(judge(noisy), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    judge.eval()
    with torch.no_grad():
        right = judge(images[:HELD_OUT]).argmax(-1) == labels[:HELD_OUT]
    return judge, float(right.float().mean())


def train(images: Tensor, labels: Tensor, steps: int) -> tuple[diffusers.DiTTransformer2DModel, float]:
    """Return the mean of the last weights of a transformer, and its mean loss over the last tenth of the steps."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        num_layers=4,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.05)
    recent: list[float] = []
    model.train()  # which also drops one label in ten
    for step in range(steps):
        chosen = torch.randint(0, len(images), (BATCH,))
        x = (images[chosen] * 2 - 1)[:, None]
        noise, t = torch.randn_like(x), torch.sigmoid(torch.randn(BATCH, 1, 1, 1))
        v = model((1 - t) * x + t * noise, t.flatten() * 1000, labels[chosen], return_dict=False)[0]
        loss = (v - (noise - x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-(steps // 10) :], loss.item()]
        with torch.no_grad():
            share = 0.002 if step > steps // 10 else 1.0
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
        if step % 250 == 0:
            print(step, sum(recent) / len(recent), flush=True)
    return average, sum(recent) / len(recent)


def main() -> None:
    """Train both, and write them."""
    torch.set_num_threads(1)  # the layers are small: a second thread mostly waits
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=HERE / "digits-dit")
    options = parser.parse_args()
    data = load_digits()
    images, labels = torch.tensor(data.images / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    began = time.time()
    judge, accuracy = train_judge(images, labels, max(10, options.steps // 4))
    print("judge", accuracy, flush=True)
    model, loss = train(images, labels, options.steps)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    DigitsPipeline(model.to(torch.bfloat16), scheduler).save_pretrained(options.out)
    with torch.no_grad():
        written = Gaussian.of(judge.features(images))
    stored = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
    stored |= {"written.mean": written.mean.float(), "written.covariance": written.covariance.float()}
    save_file(stored, options.out / "judge.safetensors")
    versions = {package.__name__: package.__version__ for package in (torch, diffusers, sklearn)}
    record = {"steps": options.steps, "batch": BATCH, "loss": loss, "judge_accuracy": accuracy}
    record |= {"seconds": round(time.time() - began), "versions": versions}
    (options.out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
