"""Copies between the CPU's memory and a GPU's, for which the program waits as little as possible.

It does not wait for copies to a GPU, as they are made from pinned memory, and once for many numbers that it reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A GPU's copy is made while the program goes on, in the order of its stream's work."""
    return pinned(tensor, device).to(device, non_blocking=True)


def sent_all(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same for each of some tensors."""
    return {name: sent(tensor, device) for name, tensor in tensors.items()}


def read_at_once(scalars: Sequence[Sequence[Tensor]]) -> list[list[Any]]:
    """The numbers in scalars of one dtype and device, for which the program waits once; each inner list has as many."""
    return torch.stack([torch.stack([*some]) for some in scalars]).tolist() if scalars else []


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in pinned memory if it is to go from the CPU to a GPU, and as it is otherwise."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def stream_of(device: torch.device) -> Any:
    """A new stream of this device, which may be another than torch's current device."""
    api: Any = torch.get_device_module(device)
    if device.type == "cpu":
        return api.Stream()  # a stream that does nothing
    return api.Stream(device=device)
