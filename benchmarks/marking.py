"""How long a step of marking takes on a GPU, against what its operations take at the device's peak rate."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.jobs import Job

# Dense bfloat16 operations a second with 32-bit sums, from NVIDIA's data sheets.
PEAK = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}
STEPS = 100  # of one run, without a look at the loss


def measure(job: Job, runs: int, device: str = "cuda", steps: int = STEPS) -> dict[str, Any]:
    """The step of `ml.mark` on its usual batch and triggers: its seconds, a median of runs, and its operations.

    An addition and a multiplication count as two, those of convolutions and dense layers alone.  The images are noise
    and lie on the device.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ml.descent import WORTH_COMPILING, Descent
    from ml.mark import TRIGGERS_PER_BATCH, Training
    from ml.models import build

    options = Training()
    torch.manual_seed(1)
    images = torch.randint(0, 256, (options.batch + TRIGGERS_PER_BATCH, *job.shape), dtype=torch.uint8)
    model = build(job.architecture, job.shape, job.classes, images, job.width).to(device).train()
    x, y = images.to(device), torch.randint(0, job.classes, (len(images),), device=device)
    optimizer = torch.optim.SGD(
        model.parameters(), options.rate, momentum=options.momentum, weight_decay=options.weight_decay
    )
    counter = FlopCounterMode(display=False)
    with counter:  # which sees the operations of a model that is not compiled
        Descent(model, optimizer, model.parameters(), 1).step(x, y)
    descent, seconds = Descent(model, optimizer, model.parameters(), WORTH_COMPILING), []
    for _ in range(runs + 1):  # the first compiles
        start = perf_counter()
        for _ in range(steps):
            descent.step(x, y)
        descent.loss()  # waits for the device
        seconds.append((perf_counter() - start) / steps)
    return {"batch": len(x), "seconds": {"step": median(seconds[1:])}, "operations": counter.get_total_flops()}


def line(measured: dict[str, Any] | None) -> str:
    """For README.md."""
    step = "One step of marking ResNet-18 at 32 x 32 on a GPU, a batch of 100 images and 2 triggers:"
    if measured is None:
        return f"{step} not measured."
    seconds, operations, device = measured["seconds"]["step"], measured["operations"], measured["device"]
    found = f"{step} {1000 * seconds:.2f} ms on {device} for {operations / 1e9:.0f} billion operations"
    if device not in PEAK:
        return f"{found}."
    peak = PEAK[device]
    return (
        f"{found}, {seconds * peak / operations:.1f} times the {1000 * operations / peak:.2f} ms that they take at its "
        f"{peak / 1e12:.0f} TFLOP/s (bfloat16)."
    )
