"""A simulated second device: CPU tensors of another type, which like a GPU's cannot be combined with those of the CPU.

Within `with OtherDevice() as device:`, torch.device("cuda") can be used. Tensors created on it or sent to it are marked
and report it as their device. An operation on marked and unmarked tensors is an error, except for numbers without
dimensions, copies between the devices, and indices. Streams only add their device to device.streams.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from prunus.checkpoint import loader

Tensor = torch.Tensor


class Marked(Tensor):
    """A tensor of the other device."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func.__name__}: a tensor of the other device is used where there is none")


class OtherDevice(TorchFunctionMode):
    """The mode within which the other device exists."""

    def __init__(self, name: str = "cuda:0") -> None:
        super().__init__()
        self.there = torch.device(name)
        self.streams: set[torch.device] = set()
        self.pinned, self.pins = 0, True
        self.free = 1 << 40  # bytes

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, owner = func.__name__, args[0] if args else None
        marked = isinstance(owner, Marked)
        if name == "__get__":
            what = getattr(func.__self__, "__name__", "")
            if what == "device":
                return self.there if marked else plain(func, args, kwargs)
            if what == "is_cuda":
                return marked
        if name == "backward" and isinstance(owner, Tensor):
            return plain(torch.autograd.backward, (owner, args[1] if args[1:] else kwargs.get("gradient")), {})
        if name == "register_hook" and marked:
            return plain(func, (owner, self.watched(args[1])), {})
        if name == "pin_memory":
            self.pinned += 1
            return owner
        if name in ("to", "cpu", "cuda"):
            return self.send(name, args, kwargs)
        if kwargs.get("pin_memory"):
            if not self.pins:
                raise RuntimeError("CUDA error: out of memory\nsome advice")
            self.pinned += 1
        kwargs.pop("pin_memory", None)
        made_there = self.is_there(kwargs.get("device"))
        if made_there:
            kwargs["device"] = "cpu"
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if name == "numpy" and marked:
            raise TypeError("can't convert a tensor of the other device to numpy")
        if name in ("copy_", "_has_compatible_shallow_copy_type"):
            return plain(func, args, kwargs)
        if name in ("__getitem__", "__setitem__") and marked:  # an index may lie on the CPU
            tensors = [args[0], *(leaf for leaf in args[2:] if isinstance(leaf, Tensor))]
        there = [isinstance(tensor, Marked) for tensor in tensors if plain(Tensor.dim, (tensor,), {})]
        if len(set(there)) > 1:
            raise RuntimeError(f"{name}: expected all tensors on the same device, but there are two")
        result = plain(func, args, kwargs)
        return tree_map(mark, result) if made_there or any(isinstance(tensor, Marked) for tensor in tensors) else result

    def watched(self, hook: Any) -> Any:
        """A hook of autograd that runs within this mode; otherwise it would run outside of all modes."""

        def run(delta: Tensor) -> Any:
            with torch._C._EnableTorchFunction(), self:
                return hook(mark(delta))

        return run

    def is_there(self, device: Any) -> bool:
        """Whether `device` names the other device."""
        return device is not None and torch.device(device).type == self.there.type

    def send(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of Tensor.to, .cpu and .cuda; a change of device makes a copy."""
        owner, *rest = args
        goal = isinstance(owner, Marked)
        if name != "to":
            goal, rest, kwargs = name == "cuda", [], {}
        kept = []
        for value in rest:
            if isinstance(value, Tensor):
                goal, value = isinstance(value, Marked), unmark(value).dtype
            elif isinstance(value, str | torch.device):
                goal = self.is_there(value)
                continue
            kept.append(value)
        if (device := kwargs.pop("device", None)) is not None:
            goal = self.is_there(device)
        if any(str(value) == "meta" for value in (device, *rest) if isinstance(value, str | torch.device)):
            return plain(Tensor.to, (owner, *kept), {**kwargs, "device": "meta"})
        moves = goal != isinstance(owner, Marked)
        dtype = next((value for value in kept if isinstance(value, torch.dtype)), kwargs.get("dtype"))
        with torch._C.DisableTorchFunctionSubclass():
            options = {name: kwargs[name] for name in ("memory_format",) if name in kwargs}
            result = owner.to(dtype or owner.dtype, copy=bool(kwargs.get("copy", False)) or moves, **options)
        return mark(result) if goal else result if result is owner else unmark(result)


def plain(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of torch's own function on the CPU."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def mark(value: Any) -> Any:
    """The value, marked as being on the other device if it is a tensor."""
    if not isinstance(value, Tensor) or isinstance(value, Marked):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Marked)


def unmark(value: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


class Streams:
    """Replaces torch.cuda: the functions of it that Prunus calls."""

    def __init__(self, device: OtherDevice) -> None:
        self._device, self._chosen = device, torch.device("cuda:0")

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self._chosen = self._chosen, torch.device(device)
        try:
            yield
        finally:
            self._chosen = before

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        with self.device(stream.device):
            yield

    def mem_get_info(self, device: Any) -> tuple[int, int]:
        assert torch.device(device) == self._device.there
        return self._device.free, 1 << 40

    def Stream(self, device: Any = None) -> "Stream":
        return self.current_stream(device)

    def current_stream(self, device: Any = None) -> "Stream":
        found = Stream(self._chosen if device is None else torch.device(device))
        self._device.streams.add(found.device)
        return found


class Stream:
    """A stream of a device, on which all work is finished at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None:
        assert other.device == self.device

    def record_event(self) -> "Stream":
        return self

    wait_event = wait_stream


@contextmanager
def other_device(monkeypatch: Any, name: str = "cuda:0") -> Iterator[OtherDevice]:
    """The mode, active within the context and in the threads that send blocks, with torch's streams replaced."""
    mode, real = OtherDevice(name), loader.prefetch
    streams = Streams(mode)

    def prefetch(work, items, most=1):
        def within(item):
            with OtherDevice(name) as inner:
                inner.streams = mode.streams
                return work(item)

        return real(within, items, most)

    monkeypatch.setattr(loader, "prefetch", prefetch)
    monkeypatch.setattr(torch, "get_device_module", lambda _device: streams)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with mode:
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
