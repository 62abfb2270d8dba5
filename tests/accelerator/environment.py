"""The machine, and its limits as measured: the rate of a large product and of copies, which the other steps are held against."""

import os
import platform

import torch

from tests.accelerator.context import Context
from tests.accelerator.measure import driver, seconds_each

PRODUCT = "bf16 product: rate"


def run(context: Context) -> None:
    """Write what there is, then measure."""
    device = context.device
    context.figure(
        "device",
        torch.cuda.get_device_name(device)
        if context.cuda
        else platform.processor() or platform.machine(),
    )
    context.figure("Python, torch", f"{platform.python_version()}, {torch.__version__}")
    context.figure("CPU cores", os.cpu_count() or 0)
    if context.cuda:
        properties = torch.cuda.get_device_properties(device)
        context.figure("memory", properties.total_memory / 1e9, "GB")
        context.figure("compute capability", f"{properties.major}.{properties.minor}")
        context.figure("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
        with context.part("driver"):
            context.figure("driver", driver())
    size = 256 if context.quick else 8192
    for name, dtype in ((PRODUCT, torch.bfloat16), ("fp32 product: rate", torch.float32)):
        with context.part(name):
            left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(left)
            seconds = seconds_each(
                context, lambda a=left, b=right, c=out: torch.mm(a, b, out=c), for_s=1.5, warm_up=5
            )
            context.figure(name, 2.0 * size**3 / seconds / 1e12, "TFLOP/s", size=size)
            del left, right, out
    with context.part("copies"):
        megabytes = 4 if context.quick else 1024
        source = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = seconds_each(context, lambda: target.copy_(source), for_s=1.0)
        context.figure(
            "copy on the device: read and written", 2 * source.numel() / seconds / 1e9, "GB/s"
        )
        host = torch.empty(len(source) // 4, dtype=torch.uint8)
        seconds = seconds_each(context, lambda: target[: len(host)].copy_(host), for_s=0.5)
        context.figure("copy from the host, pageable", len(host) / seconds / 1e9, "GB/s")
        if context.cuda:
            pinned = host.pin_memory()
            seconds = seconds_each(
                context, lambda: target[: len(host)].copy_(pinned, non_blocking=True), for_s=0.5
            )
            context.figure("copy from the host, pinned", len(host) / seconds / 1e9, "GB/s")
