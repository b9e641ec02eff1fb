"""Pretend GPUs: torch believes in devices cuda:0 and cuda:1, whose memory is the CPU's.

    import pretend_gpu; ledger = pretend_gpu.install()          # in a process of its own, before torch is imported

What a GPU would refuse is refused, and what the program would wait for is counted, with the line of Prunus that asked
for it. pretend_gpu.cpp, which is compiled at first use, registers what torch's C++ asks of a build with CUDA. Tensors
are a wrapper subclass: for C++ they lie on a GPU without memory; `host` is their value on the CPU. Every operator is
checked as a GPU would check it, counted, and computed on the CPU. Operators without a tensor, such as
torch.empty(..., device="cuda"), come to a fallback kernel of the dispatch key CUDA. No mode is active, so threads work.

It cannot tell the order of work on several streams, the order of a GPU's sums, TF32, or how much memory kernels take.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = shutil.which("g++")


def load_library() -> None:
    """Load SOURCE, compiled if that was not done yet, before torch asks its registry for the hooks of CUDA."""
    if "torch" in sys.modules:
        raise RuntimeError("import pretend_gpu before torch")
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    content = SOURCE.read_text() + (folder / "version.py").read_text()
    name = f"prunus-pretend-gpu-{os.getuid()}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"
    built = Path(tempfile.gettempdir()) / name
    if not built.exists():
        with tempfile.TemporaryDirectory() as work:
            made = Path(work) / name
            options = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{folder / 'include'}", f"-L{folder / 'lib'}"]
            command = [COMPILER or "g++", *options, SOURCE, "-o", made, "-lc10", "-ltorch_cpu"]
            subprocess.run(command, check=True)
            shutil.move(made, built)
    ctypes.CDLL(str(folder / "lib" / "libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(built))


load_library()

import torch  # noqa: E402
from torch.utils._device import _device_constructors  # noqa: E402

Tensor = torch.Tensor
CPU, FIRST = torch.device("cpu"), torch.device("cuda", 0)
COPIES = {"copy_", "_to_copy", "_copy_from", "_foreach_copy_", "record_stream"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
NUMBERS_TOO = {"fill", "fill_", "masked_fill", "masked_fill_", "where", "index_fill", "index_fill_", "full_like"}
# Operators whose kernels for CUDA wait for the device, since the shape or the status of the result is needed.
WAITS = {
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "bincount", "median"),
    *("_linalg_eigh", "_linalg_eigvals", "linalg_eig", "_linalg_svd", "linalg_lstsq", "linalg_qr"),
    *("_linalg_check_errors", "cholesky", "cholesky_inverse", "repeat_interleave"),
}
WITHOUT_INTEGERS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot"}  # CUDA has no such kernels
INTERNAL = ("/torch/", "/tests/helpers/pretend_gpu", "<")


class Ledger:
    """What the program has asked of the devices. total: bytes of each; free: what mem_get_info says, None: what is."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.live, self.pins = 0, True
        self.total, self.free = 80 << 30, None
        self.clear()

    def clear(self) -> None:
        """Forget what was counted; tensors that live stay."""
        self.waits: Counter[str] = Counter()  # by kind, operator and the line of Prunus
        self.ahead = 0  # copies for which the program does not wait
        self.streams: set[str] = set()  # devices for which streams were made or looked up

    def wait(self, kind: str, operator: str) -> None:
        """Count one."""
        key = f"{kind} {operator} {place()}"
        with self.lock:
            self.waits[key] += 1


LEDGER = Ledger()


def place() -> str:
    """file:line of the nearest caller in Prunus, otherwise of the nearest outside of torch and this file."""
    frame, other = sys._getframe(2), "autograd"
    while frame is not None:
        name = frame.f_code.co_filename
        if "/prunus/" in name:
            return f"{name.rpartition('/prunus/')[2]}:{frame.f_lineno}"
        if other == "autograd" and not any(part in name for part in INTERNAL):
            other = f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return other


class Hold:
    """The bytes of one storage on a device, which are free again when no tensor that shares it is left."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = 0
        with LEDGER.lock:
            if LEDGER.live + nbytes > LEDGER.total:
                size, total = (number / 2**20 for number in (nbytes, LEDGER.total))
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size:.2f} MiB. GPU 0 has a total capacity of {total:.2f}"
                    " MiB. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"
                )
            self.nbytes, LEDGER.live = nbytes, LEDGER.live + nbytes

    def __del__(self) -> None:
        with LEDGER.lock:
            LEDGER.live -= self.nbytes


HOLDS: "weakref.WeakValueDictionary[int, Hold]" = weakref.WeakValueDictionary()  # by the address of the storage
COMPOSITE: dict[Any, bool] = {}  # operators: whether they only call others
PINNED: set[int] = set()  # addresses of storages


class Pretend(Tensor):
    """A tensor on a pretend GPU. torch.Tensor's methods that read memory in C++ are replaced."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, device: torch.device) -> "Pretend":
        storage = host.untyped_storage()
        hold = HOLDS.get(storage._cdata)
        if hold is None:
            hold = HOLDS[storage._cdata] = Hold(storage.nbytes())
        layout: dict[str, Any] = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, host.shape, dtype=host.dtype, device=device, **layout)
        made.host, made.hold = host, hold
        return made

    def __init__(self, *_: object) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    @property
    def data(self) -> Any:
        """As of any tensor."""
        return Tensor.data.__get__(self)  # pyright: ignore[reportAttributeAccessIssue]

    @data.setter
    def data(self, value: "Pretend") -> None:
        Tensor.data.__set__(self, value)  # pyright: ignore[reportAttributeAccessIssue]
        self.host, self.hold = value.host, value.hold

    def numpy(self, *_: object, force: bool = False) -> Any:
        """Refused, as for a tensor on a GPU."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    def __array__(self, *_: object, **__: object) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        """One copy to the CPU."""
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        """The address of the value."""
        return self.host.data_ptr()

    def untyped_storage(self) -> Any:
        """That of the value."""
        return self.host.untyped_storage()

    def __repr__(self, **_: object) -> str:
        return f"{self.host!r} on {self.device}"

    def __getitem__(self, index: Any) -> Any:
        return Tensor.__getitem__(self, on_gpu_too(index, self.device))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, on_gpu_too(index, self.device), value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        is_parameter = getattr(self, "_is_param", False)
        memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if is_parameter else made
        return memo[id(self)]


def on_gpu_too(index: Any, device: torch.device) -> Any:
    """An index whose lists are tensors on the GPU, as torch makes them, but with Python's dispatch switched off."""
    if isinstance(index, tuple):
        return tuple(on_gpu_too(part, device) for part in index)
    return torch.tensor(index, device=device) if isinstance(index, list) else index


def host_of(tensor: Tensor) -> Tensor:
    """The value of a tensor on a GPU; one of the CPU as it is."""
    return tensor.host if isinstance(tensor, Pretend) else tensor


def gpu_of(device: Any) -> torch.device | None:
    """The GPU that a name or device is, with its number; None for others."""
    found = None if device is None else torch.device(device)
    return (FIRST if found.index is None else found) if found is not None and found.type == "cuda" else None


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors among arguments, with those inside lists."""
    found: list[Tensor] = []
    for value in values:
        found += [value] if isinstance(value, Tensor) else tensors_in(value) if isinstance(value, (list, tuple)) else []
    return found


def each_tensor(change: Any, value: Any) -> Any:
    """A value with change(tensor) in place of every tensor, also in tuples, lists and dicts. torch's takes longer."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([each_tensor(change, part) for part in value])
    if isinstance(value, dict):
        return {key: each_tensor(change, part) for key, part in value.items()}
    return value


def check(func: Any, name: str, args: Any, kwargs: Any) -> None:
    """Raise the errors that a GPU raises for these arguments. A CPU tensor is allowed as a number, index or source."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if name in COPIES:
        return
    values = (*args, *kwargs.values())
    if name in INDEXING:
        if not isinstance(args[0], Pretend):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        for index in tensors_in([args[1]]):
            if index.dtype in (torch.bool, torch.uint8):
                LEDGER.wait("hidden", f"{name} by a mask")
            if not isinstance(index, Pretend):
                LEDGER.wait("h2d", f"{name} by host indices")
        values = (args[0], *args[2:])
    tensors = tensors_in(values)
    if name in WITHOUT_INTEGERS and not all(t.is_floating_point() or t.is_complex() for t in tensors):
        raise NotImplementedError(f"\"{name}_cuda\" not implemented for '{tensors[0].dtype}'")
    numbers = name in INDEXING or name in NUMBERS_TOO or name.startswith("_foreach") or torch.Tag.pointwise in func.tags
    devices = {
        t.device for t in tensors if t.device.type != "meta" and (isinstance(t, Pretend) or t.dim() or not numbers)
    }
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {devices}! (argument of {func})")


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator with tensors of a device, or of one that makes them."""
    name = func.overloadpacket.__name__
    if func not in COMPOSITE:
        COMPOSITE[func] = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    if COMPOSITE[func]:  # within inference_mode these come here whole, as Tensor.to does
        return func.decompose(*args, **kwargs)
    check(func, name, args, kwargs)
    if name == "set_" and len(args) == 2:
        args[0].data = args[1]
        return args[0]
    goal = kwargs.get("device")
    tensors = tensors_in((*args, *kwargs.values()))
    here = next((tensor.device for tensor in tensors if isinstance(tensor, Pretend)), FIRST)
    if goal is not None:
        kwargs = {**kwargs, "device": torch.device(goal) if torch.device(goal).type == "meta" else CPU}
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    count(name, args, goal)
    if name == "histc" and not args[0].is_floating_point():  # CPUs have no such kernel, GPUs do
        return Pretend(func(args[0].host.float(), *args[1:], **kwargs).to(args[0].dtype), here)
    given = {id(host_of(tensor)): tensor for tensor in tensors}
    result = func(*each_tensor(host_of, args), **each_tensor(host_of, kwargs))
    device = here if goal is None else gpu_of(goal)
    if device is None:
        return result
    views = torch.is_inference_mode_enabled() and any(one.alias_info is not None for one in func._schema.returns)

    def wrapped(tensor: Tensor) -> Tensor:
        if id(tensor) in given:  # an operator that works in place returns the same tensor
            same = given[id(tensor)]
            if isinstance(same, Pretend) and same.shape != tensor.shape:  # as arange makes of an empty one
                same.data = Pretend(tensor, device)
            return same
        if tensor.device.type == "meta":
            return tensor
        if views and not tensor.is_inference():  # within inference_mode, a view of a normal tensor is one too
            with torch.inference_mode(False):
                return Pretend(tensor, device)
        return Pretend(tensor, device)

    return each_tensor(wrapped, result)


def count(name: str, args: Any, goal: Any) -> None:
    """Count an operator if the program waits for it."""
    if name == "_local_scalar_dense":
        LEDGER.wait("item", name)
    elif name in WAITS:
        LEDGER.wait("hidden", name)
    elif name == "_to_copy" and goal is not None and gpu_of(goal) is None:
        LEDGER.wait("d2h", name)
    elif name == "copy_" and (here := isinstance(args[0], Pretend)) != isinstance(args[1], Pretend):
        pinned = args[1 if here else 0].untyped_storage().data_ptr() in PINNED
        if pinned and args[2:] and args[2]:
            LEDGER.ahead += 1
        else:
            LEDGER.wait("h2d" if here else "d2h", name)


def pin(tensor: Tensor) -> Tensor:
    """Note that this CPU tensor lies in pinned memory, as long as its storage lives."""
    storage = tensor.untyped_storage()
    address = storage.data_ptr()
    PINNED.add(address)
    weakref.finalize(storage, PINNED.discard, address)  # torch keeps this object as long as the memory
    return tensor


class Stream:
    """A stream, or an event: all work on it is done at once."""

    def __init__(self, device: Any = None, **_: object) -> None:
        self.device = gpu_of(device) or CHOSEN[-1]
        LEDGER.streams.add(str(self.device))

    def wait_stream(self, other: Any) -> None:
        """Nothing; only streams of one device wait for one another."""
        assert other.device == self.device

    wait_event = wait_stream

    def record_event(self, *_: object) -> "Stream":
        """An event."""
        return self

    record = wait = synchronize = record_event


CHOSEN = [FIRST]  # torch's current device last


@contextmanager
def chosen(device: Any) -> Any:
    """Replaces torch.cuda.device."""
    CHOSEN.append(gpu_of(device) or FIRST)
    try:
        yield
    finally:
        CHOSEN.pop()


@contextmanager
def on_stream(stream: Any) -> Any:
    """Replaces torch.cuda.stream."""
    assert isinstance(stream, Stream)
    yield


def made_here_first(function: Any) -> Any:
    """torch.tensor or a function like it, which makes the tensor on the CPU and then sends it to the GPU."""

    def call(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if isinstance(data, Pretend) or gpu_of(device) is None:
            return function(data, *args, device=device, **kwargs)
        return function(data, *args, device=CPU, **kwargs).to(device)

    return call


def keeping_ties(apply: Any) -> Any:
    """Module._apply, after which parameters that were one are one again: new parameters are made for each owner."""
    running = threading.local()

    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(running, "inside", False):
            return apply(module, *args, **kwargs)
        owners = defaultdict[int, list[tuple[Any, str]]](list)
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    owners[id(parameter)].append((owner, name))
        running.inside = True
        try:
            result = apply(module, *args, **kwargs)
        finally:
            running.inside = False
        for (first, first_name), *others in owners.values():
            for owner, name in others:
                owner._parameters[name] = first._parameters[first_name]
        return result

    return call


def giving(value: Any) -> Any:
    """A new function each time, since torch.compile's tables of functions take none twice."""
    return lambda *_, **__: value


def mem_get_info(_device: Any = None) -> tuple[int, int]:
    """Free and all bytes of a device."""
    return (LEDGER.total - LEDGER.live if LEDGER.free is None else LEDGER.free), LEDGER.total


def empty_like_torch(empty: Any) -> Any:
    """torch.empty, which notes what is pinned."""

    def call(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        if pin_memory and not LEDGER.pins:
            raise RuntimeError("CUDA error: out of memory\nsome advice")
        made = empty(*args, **kwargs)
        return pin(made) if pin_memory else made

    return call


def install() -> Ledger:
    """Let torch's functions know of the pretend GPUs; returns the ledger."""
    _device_constructors()  # keeps the real functions, which `with torch.device("meta")` looks for
    name = "Pretend GPU"
    properties = SimpleNamespace(name=name, total_memory=LEDGER.total, major=9, minor=0, multi_processor_count=8)
    values = {"is_available": True, "is_initialized": True, "device_count": 2, "is_bf16_supported": True}
    values |= {"get_device_properties": properties, "get_device_name": name, "get_device_capability": (9, 0)}
    silent = ("_lazy_init", "set_device", "empty_cache", "ipc_collect", "manual_seed", "manual_seed_all")
    replaced = {name: giving(value) for name, value in (values | dict.fromkeys(silent)).items()}
    replaced |= {"device": chosen, "stream": on_stream, "Stream": Stream, "Event": type("Event", (Stream,), {})}
    replaced |= {"current_stream": Stream, "default_stream": Stream, "mem_get_info": mem_get_info}
    replaced |= {"synchronize": lambda *_: LEDGER.wait("hidden", "synchronize")}
    replaced |= {"current_device": lambda: CHOSEN[-1].index, "memory_allocated": lambda *_: LEDGER.live}
    for key, value in replaced.items():
        setattr(torch.cuda, key, value)
    library: Any = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: compute(func, args, kwargs), "CUDA")
    vars(LEDGER)["library"] = library  # kept: it lives as long as the process
    # torch.tensor fills what it made with Python's dispatch switched off, which here would end in a missing kernel.
    for key in ("tensor", "as_tensor", "asarray"):
        setattr(torch, key, made_here_first(getattr(torch, key)))
    changed: Any = Tensor
    torch.empty = empty_like_torch(torch.empty)
    changed.pin_memory = lambda tensor, *_: pin(tensor.clone())
    changed.is_pinned = lambda tensor, *_: tensor.untyped_storage().data_ptr() in PINNED
    changed.record_stream = lambda tensor, _stream: None
    changed.new_tensor = lambda tensor, data, **kwargs: torch.tensor(
        data, dtype=kwargs.get("dtype") or tensor.dtype, device=kwargs.get("device") or tensor.device
    )
    # Otherwise Module.to sets param.data, which keeps the class Parameter: such a tensor would have no value.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.nn.Module._apply = keeping_ties(torch.nn.Module._apply)
    torch.backends.cuda.enable_flash_sdp(False)  # of the CPU: the pretend GPUs take attention's plain way
    return LEDGER
