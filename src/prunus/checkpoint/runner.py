"""Run single blocks of a checkpoint as the whole model would, with no more of the model in memory than needed.

Tensors outside the blocks are read once, with two exceptions: of embeddings only the rows that are looked up are read,
and the output head is read when it is first used. A block's arguments are those that the model's own forward passes
to it (architecture.py). If they depend only on the shape of a batch, as in most families, they are cached by shape;
else they are recorded again from the batch's token ids whenever a block needs them.
Shapes: N sequences, T tokens, W numbers per token between two blocks, X input width of the head, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from prunus.checkpoint.architecture import Architecture, Call, Carried, Recording, Unstreamable, leaves, skeleton
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import sent, sent_all
from prunus.checkpoint.experts import layouts_in, split_experts, split_tensors
from prunus.checkpoint.linears import is_state
from prunus.checkpoint.precision import attention_for, use_fast_products
from prunus.errors import PrunusError

# Arguments are cached for the latest shapes of batches, up to this many bytes.
CACHED_BYTES = 1 << 26


class Batch:
    """Token ids of sequences of equal length, and the values that blocks computed from them for later blocks.

    carried: values other than hidden states that blocks returned. state: objects in which blocks store values.
    counted_NT1: whether each token counts in what is measured on them; None: all do.
    """

    def __init__(self, ids_NT: Tensor, counted_NT1: Tensor | None = None) -> None:
        self.ids_NT, self.counted_NT1 = ids_NT, counted_NT1
        self.carried: dict[Carried, Any] = {}
        self.state: list[Any] = []

    def copy(self) -> "Batch":
        """A copy of the batch and its state, so that later blocks can be run twice from here."""
        twin = Batch(self.ids_NT, self.counted_NT1)
        twin.carried, twin.state = dict(self.carried), deepcopy(self.state)
        return twin


class Runner:
    """Runs blocks of one checkpoint on one device in one dtype; parameters that transformers keeps in float32 stay so.

    Sequences of a batch have equal length and no padding. batch: the batch on which a block runs, or last ran. Raises
    Unstreamable for a model that cannot be run block by block in this dtype.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device, self._checkpoint = dtype, device, checkpoint
        self.architecture = Architecture(skeleton(checkpoint.config, dtype))
        model, attention = self.architecture.model, attention_for(dtype, device)
        if model.config._attn_implementation == "sdpa" != attention:
            model.set_attn_implementation(attention)
        self._dtypes = dtypes_of(model, dtype)
        self.batch = Batch(torch.zeros(0, 0, dtype=torch.long))
        self._lookups: dict[str, nn.Embedding] = {}
        self._head_is_read = False
        self._index_of: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self._cached_calls: dict[tuple[int, ...], list[Call]] = {}
        self._depends_on_ids: bool | None = None
        self._read_outside()

    @property
    def width(self) -> int:
        """Numbers per token between two blocks."""
        return self.architecture.width

    def embed(self, batch: Batch) -> Tensor:
        """(N, T, W) input of block 0."""
        recording = self._record(batch.ids_NT)
        batch.carried, batch.state = {}, states_in(recording.calls)
        if not self._depends_on_ids:
            self._depends_on_ids = not _equal(recording.calls, self._calls_of_shape(batch.ids_NT))
        return self.architecture.to_rows(recording.first)

    def make_block(self, index: int, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A copy of block `index` with these weights, on the device; matrices of experts are Linears (experts.py).

        tensors: by names within the block; others are ignored. Raises Unstreamable if a weight is missing.
        """
        block = self._copy_of(self.architecture.layers[index])
        tensors = split_tensors(layouts_in(block), sent_all(tensors, self.device))
        split_experts(block)
        prefix = self.architecture.block_prefix(index)
        state = {name: self._cast(prefix + name, tensors[name]) for name in block.state_dict() if name in tensors}
        block.load_state_dict(state, strict=False, assign=True)
        if lacking := [name for name, parameter in block.named_parameters() if parameter.is_meta]:
            raise Unstreamable(f"block {index} lacks the tensor '{lacking[0]}'")
        _send_buffers(block, self.device)
        use_fast_products(block)
        self._index_of[block] = index
        return block.eval().requires_grad_(False)

    def read_block(self, index: int) -> nn.Module:
        """A copy of block `index` with the checkpoint's weights, on the device."""
        return self.make_block(index, self._checkpoint.read_block(index))

    def run_block(self, block: nn.Module, rows_NTW: Tensor, batch: Batch) -> Tensor:
        """(N, T, W) output of a block for a batch, before any final norm."""
        self.batch = batch
        index, hidden = self._index_of[block], self.architecture.from_rows(rows_NTW)
        call = self.call_of(block, batch)
        return self.architecture.to_rows(self.architecture.call_block(index, block, hidden, call, batch.carried))

    def states(self, rows_NTW: Tensor, batch: Batch) -> Tensor:
        """(N, T, X) input of the head, from the last block's output by the model's own final norm."""
        with self._reading_rows():
            return self.architecture.states(sent(batch.ids_NT, self.device), self.architecture.from_rows(rows_NTW))

    def logits(self, states_NTX: Tensor) -> Tensor:
        """(N, T, V) logits of the model's own head, with its scaling and soft caps; tokens may be passed in parts."""
        self._read_head()
        with self._reading_rows():
            return self.architecture.logits(states_NTX)

    def call_of(self, block: nn.Module, batch: Batch) -> Call:
        """The arguments of a block for a batch, without the hidden states."""
        index = self._index_of[block]
        calls = self._record(batch.ids_NT).calls if self._depends_on_ids else self._calls_of_shape(batch.ids_NT)
        call = calls[index]
        if not batch.state:
            return call
        own = {id(old): new for old, new in zip(states_in(calls), batch.state, strict=True)}
        return Call(
            tuple(own.get(id(value), value) for value in call.args),
            {name: own.get(id(value), value) for name, value in call.kwargs.items()},
        )

    def _calls_of_shape(self, ids_NT: Tensor) -> list[Call]:
        """The arguments of all blocks for batches of this shape, if they do not depend on ids; cached."""
        shape = tuple(ids_NT.shape)
        if shape not in self._cached_calls:
            self._cached_calls[shape] = self._record(torch.zeros_like(ids_NT)).calls
            while len(self._cached_calls) > 1 and sum(map(_nbytes, self._cached_calls.values())) > CACHED_BYTES:
                del self._cached_calls[next(iter(self._cached_calls))]
        return self._cached_calls[shape]

    def _record(self, ids_NT: Tensor) -> Recording:
        with self._reading_rows():
            return self.architecture.record(sent(ids_NT, self.device))

    def _read_outside(self) -> None:
        """Read the tensors outside the blocks, except embeddings and the head, which are read when they are used."""
        architecture, model = self.architecture, self.architecture.model
        later = {id(parameter) for parameter in architecture.layers.parameters()}
        later |= {id(parameter) for tower in _towers(architecture) for parameter in tower.parameters()}
        self._lookups = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding) and _is_lookup(module) and self._plain(f"{name}.weight")
        }
        looked_up = {id(module.weight) for module in self._lookups.values()}
        if architecture.head is not None:
            later |= {id(parameter) for parameter in architecture.head.parameters()} - looked_up
        now = later | looked_up
        self._assign(lambda key: key not in now)
        try:
            recording = self._record(torch.arange(8)[None])
            by_rows = not recording.first.is_meta
        except (RuntimeError, NotImplementedError):  # the model does more with an embedding than look up rows
            by_rows = False
        if not by_rows:
            self._lookups = {}
            self._assign(lambda key: key not in later)
        use_fast_products(model)

    def _assign(self, wanted: Callable[[int], bool]) -> None:
        """Read the tensors without values whose id() is wanted, and those tied to them."""
        model = self.architecture.model
        names = [name for name, t in model.state_dict(keep_vars=True).items() if t.is_meta and wanted(id(t))]
        tensors = self._checkpoint.names.read(names, self._checkpoint.read)
        known = model.state_dict()
        state = {name: self._cast(name, sent(t, self.device)) for name, t in tensors.items() if name in known}
        with torch.no_grad():
            model.load_state_dict(state, strict=False, assign=True)
            model.tie_weights()
        model.requires_grad_(False)
        _send_buffers(model, self.device)

    def _plain(self, name: str) -> bool:
        """Whether a tensor of the model is stored without conversion."""
        origin = self._checkpoint.names.origins.get(name)
        return origin is not None and origin.converter is None

    def _read_head(self) -> None:
        """Read the output head, or the embedding to which it is tied, unless that was done."""
        head = self.architecture.head
        assert head is not None
        if self._head_is_read:
            return
        self._assign({id(parameter) for parameter in head.parameters()}.__contains__)
        use_fast_products(head)
        self._head_is_read = True

    @contextmanager
    def _reading_rows(self) -> Iterator[None]:
        """Within the context, embeddings read only the rows that they look up; a large vocabulary takes much memory."""
        with ExitStack() as stack:
            for name, module in self._lookups.items():
                if module.weight.is_meta:
                    stack.enter_context(self._reading_rows_of(name, module))
            yield

    @contextmanager
    def _reading_rows_of(self, name: str, module: nn.Embedding) -> Iterator[None]:
        """Within the context, an embedding reads only the rows that it looks up."""
        stored = self._checkpoint.tensors[self._checkpoint.names.origins[f"{name}.weight"].stored[0]]
        meta, padding = module.weight, module.padding_idx

        def before(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            used, place = args[0].unique(return_inverse=True)
            # Few at a time, because the system maps whole pages around each row into memory.
            rows = torch.cat([stored.read_rows(some.tolist()) for some in used.cpu().split(64)])
            rows = self._cast(f"{name}.weight", sent(rows, self.device))
            module.weight, module.padding_idx = nn.Parameter(rows, requires_grad=False), None
            return place, *args[1:]

        def after(*_: object) -> None:
            module.weight, module.padding_idx = meta, padding

        with module.register_forward_pre_hook(before), module.register_forward_hook(after):
            try:
                yield
            finally:
                after()

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        """A stored tensor in the dtype of the model's tensor with this name."""
        return tensor.to(self._dtypes.get(name, self.dtype)) if tensor.is_floating_point() else tensor

    def _copy_of(self, layer: nn.Module) -> nn.Module:
        """A copy of a block; its references to the rest of the model (configuration, other modules) stay shared."""
        own = {id(module) for module in layer.modules()}
        shared = [m for m in self.architecture.model.modules() if id(m) not in own]
        shared += [m.config for m in self.architecture.model.modules() if hasattr(m, "config")]
        return deepcopy(layer, {id(thing): thing for thing in shared})


def pick_device(device: str) -> torch.device:
    """The torch device of a name; `auto` is a GPU where present. Raises PrunusError if it cannot be used."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # meta has no values
    except (RuntimeError, AssertionError) as error:
        raise PrunusError(f"device '{device}' cannot be used here; try --device cpu") from error
    return chosen


def dtypes_of(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each tensor when transformers loads a model in dtype; some stay in float32."""
    plan = model._get_dtype_plan(dtype)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if plan:
        pattern, names, _ = build_glob_alternation(list(plan))
        for name in dtypes:
            if (match := pattern.search(name)) is not None and match.lastgroup is not None:
                dtypes[name] = plan[names[match.lastgroup]]
    return dtypes


def states_in(calls: list[Call]) -> list[Any]:
    """The objects in which blocks store values for later ones, each once, in the order of the calls."""
    values = [value for call in calls for value in (*call.args, *call.kwargs.values()) if is_state(value)]
    return list({id(value): value for value in values}.values())


def _towers(architecture: Architecture) -> list[nn.Module]:
    """The models inside the model that do not process text, such as those for images and sound."""
    around = {id(m) for n, m in architecture.model.named_modules() if architecture.name.startswith(n)}
    return [m for m in architecture.model.modules() if isinstance(m, PreTrainedModel) and id(m) not in around]


def _is_lookup(module: nn.Module) -> bool:
    """Whether a module returns rows of its weight, possibly multiplied by a number."""
    return type(module) is nn.Embedding or type(module).__name__.endswith("ScaledWordEmbedding")


def _send_buffers(module: nn.Module, device: torch.device) -> None:
    """Move all buffers of a module to a device; parameters are moved when they are read."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = sent(buffer, device)


def _equal(left: list[Call], right: list[Call]) -> bool:
    """Whether two recordings have equal arguments. Shared objects are compared once, as a GPU has to be waited for."""
    both = zip(leaves([list(call) for call in left]), leaves([list(call) for call in right]), strict=True)
    pairs = {(id(a), id(b)): (a, b) for a, b in both}
    return all(torch.equal(a, b) if isinstance(a, Tensor) else is_state(a) or a == b for a, b in pairs.values())


def _nbytes(calls: list[Call]) -> int:
    tensors = {id(leaf): leaf for leaf in leaves([list(call) for call in calls]) if isinstance(leaf, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())
