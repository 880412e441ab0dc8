"""Steps down the loss of a model on the device where it lies: what every training here shares.

On CUDA the data lie on the device, and the model runs compiled, in channels-last order and, where autocast finds it
safe, in bfloat16.  On the CPU it runs on all threads that torch has: in float32, or, if it is large and the processor
multiplies bfloat16, as on CUDA but not compiled, which takes half the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocol.errors import ParameterError

CLIP = 5.0  # largest norm of a step's gradient: random labels give steep steps
WORTH_COMPILING = 500  # steps that earn back the time of a compilation
LARGE = 4_000_000  # parameters of a model whose time on the CPU is all in its products: ResNet-18 has eleven million
SHIFT = 4  # pixels by which augmentation moves an image, at most (He et al. 2016)


def pick_device(name: str) -> torch.device:
    """The torch device of "auto", "cpu" or "cuda".  Raises ParameterError where there is no CUDA."""
    if name not in ("auto", "cpu", "cuda"):
        raise ParameterError(f"unknown device {name!r}; known are auto, cpu, cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ParameterError("no CUDA device is available")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter lies."""
    return next(model.parameters()).device


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """[n, classes] logits of u8 [n, C, H, W] in evaluation mode and full precision."""
    training = model.training
    model.eval()
    with torch.no_grad():
        out = torch.cat([model(batch.float()) for batch in images.split(500)])
    model.train(training)
    return out


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """u8 [n, C, H, W], each moved by up to SHIFT pixels either way over black and mirrored at random."""
    n, _, rows, columns = images.shape
    top, left = torch.randint(0, 2 * SHIFT + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    down, across = top + torch.arange(rows), left + torch.arange(columns)
    across = torch.where(mirrored, across.flip(1), across)
    which, down, across = (i.to(images.device) for i in (torch.arange(n)[:, None, None], down[:, :, None],
                                                         across[:, None, :]))  # fmt: skip
    moved = functional.pad(images, (SHIFT,) * 4)[which, :, down, across]  # [n, H, W, C]
    return moved.permute(0, 3, 1, 2).contiguous()  # in the other order torch 2.13 crashes on the CPU


class Descent:
    """Steps of an optimizer down the cross entropy of a model.  steps: how many there will be, about."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], steps: int
    ) -> None:
        self.optimizer, self.parameters, self.device = optimizer, list(parameters), device_of(model)
        cuda = self.device.type == "cuda"
        self.fast = cuda or (sum(p.numel() for p in model.parameters()) >= LARGE and multiplies_bfloat16())
        self.forward: Callable[[Tensor], Tensor] = model
        if self.fast:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if cuda and steps >= WORTH_COMPILING:
            torch.compiler.reset()  # what earlier models left counts against a limit
            self.forward = torch.compile(model)
        self.total, self.count = torch.zeros((), device=self.device), 0

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on u8 [n, C, H, W] and classes [n] or distributions [n, classes]; returns the logits before it."""
        pixels = x.float()
        if self.fast:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            logits = self.forward(pixels)
        loss = functional.cross_entropy(logits.float(), y)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.total += loss.detach()
        self.count += 1
        return logits.detach()

    def loss(self) -> float:
        """Mean of the steps since the last look.  Raises ParameterError when it is not finite: the model is useless."""
        mean = float(self.total) / max(self.count, 1)
        self.total.zero_()
        self.count = 0
        if not abs(mean) < float("inf"):
            raise ParameterError("the loss is not finite: lower the rate")
        return mean
