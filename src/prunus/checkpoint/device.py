"""The device that computes: how tensors get there, how numbers come back, and what is said where its memory ends.

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
    """The numbers in scalars of one dtype and device, for which the program waits once; each inner list has as many."""
    return torch.stack([torch.stack([*some]) for some in scalars]).tolist() if scalars else []


@contextmanager
def within_memory(device: torch.device, advice: str = "calibrate on shorter sequences (--seqlen)") -> Iterator[None]:
    """Meanwhile, PrunusError with advice instead of torch's own error where the device's memory is too small."""
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

    Another model has other kernels, which round otherwise.
    """
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"device": str(device), **gpu}


@cache
def cpu_info() -> str:
    """What Linux says of the processor; empty elsewhere."""
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
