"""The device that computes: copies of tensors to it, numbers read from it, and the error when its memory is full.

The program does not wait for copies to a GPU, as they are made from pinned memory, and waits once for many numbers.
"""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.errors import PrunusError


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A GPU's copy is made while the program goes on, in the order of its stream's work."""
    return pinned(tensor, device).to(device, non_blocking=True)


def sent_all(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors on a device, each sent as `sent` does."""
    return {name: sent(tensor, device) for name, tensor in tensors.items()}


def read_at_once(scalars: Sequence[Sequence[Tensor]]) -> list[list[Any]]:
    """The numbers in scalar tensors of one dtype and device, read with one wait; all inner lists have equal lengths."""
    return torch.stack([torch.stack([*some]) for some in scalars]).tolist() if scalars else []


@contextmanager
def within_memory(device: torch.device, advice: str = "calibrate on shorter sequences (--seqlen)") -> Iterator[None]:
    """Within the context, turn torch's error for a device whose memory is too small into a PrunusError with advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = ". ".join(" ".join(str(error).split()).split(". ")[:2])  # more of it is about torch's allocator
        raise PrunusError(
            f"the memory of {device} is too small ({reason.rstrip('.')}); end other programs on it, {advice}, or take"
            " another --device"
        ) from error


def described(device: torch.device) -> dict[str, str]:
    """Record of a run's start: the device and, of a GPU, its model, such as `NVIDIA H100 80GB HBM3`.

    The model is recorded because GPUs of other models have other kernels, which round differently.
    """
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"device": str(device), **gpu}


@cache
def cpu_info() -> str:
    """The text of /proc/cpuinfo, which describes the processor on Linux; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def processor() -> str:
    """The model of this machine's processor, such as `AMD EPYC 9B14`."""
    name = re.search(r"model name\s*:\s*(.+)", cpu_info())
    return name[1].strip() if name else platform.processor() or platform.machine()


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in pinned memory if it is to go from the CPU to a GPU, and as it is otherwise."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def api_of(device: torch.device) -> Any:
    """The module of torch for a kind of device, such as torch.cuda, which type checkers do not know."""
    return torch.get_device_module(device)


def stream_of(device: torch.device) -> Any:
    """A new stream of this device, which may be another than torch's current device."""
    api = api_of(device)
    if device.type == "cpu":
        return api.Stream()  # a stream that does nothing
    return api.Stream(device=device)
