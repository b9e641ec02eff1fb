"""The structure of any transformers decoder, learnt from its own code: its blocks and what the model does around them.

No code here is specific to a model family. The model is made without its weights, and every block's forward is replaced
by a recorder. The model's own forward pass then shows the arguments of each block (masks, rotary tables, per-layer
inputs) and, from the last block's output, what follows (final norm, head, soft caps). This is only sound for a model
that does nothing to hidden states between its blocks. So each model is checked when it is opened, and refused with a
one-line error (Unstreamable) if

- its list of blocks cannot be found, or a block is called more than once or not at all;
- a block does not read the output of its predecessor: the same memory, shape and strides, not written to since;
- an argument of a block, or the computation after the last block, depends on earlier hidden states: blocks are made to
  return NaN, which must appear nowhere else.

What a block returns is found by trial: a tensor, or a tuple of one to three values. Values other than hidden states are
passed on to the later blocks that receive them (Carried). All of this needs only the configuration.

Related files:

- names.py     Names(model, names on disk): which stored tensors each tensor of the model is made from, by transformers'
               conversion mapping; `read` makes tensors of the model, `as_stored` converts them back for writing.
- linears.py   find_linears(architecture): for each block its prunable Linears in the order of a forward pass, each with
               its kind and the leader of its group (the Linears that read the same tensor); why the rest stays dense.
- runner.py    Runner(checkpoint, dtype, device): the same model with the weights outside its blocks.
                   batch = Batch(ids_NT)                       a batch's ids, and what blocks store for later ones
                   rows_NTW = runner.embed(batch)              input of block 0
                   block = runner.make_block(index, tensors)   tensors by their names within the block
                   rows_NTW = runner.run_block(block, rows_NTW, batch)
                   states_NTX = runner.states(rows_NTW, batch) input of the head; differentiable, as run_block is
                   logits_NTV = runner.logits(states_NTX)      may be called on parts of states_NTX
               Blocks are separate modules: several can exist at once, also with the same index.

Shapes: N sequences, T tokens, D hidden width, W numbers per token between two blocks (D, except in a few families that
carry several streams), X input width of the head, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prunus.checkpoint.names import replace_conv1d
from prunus.checkpoint.resolve import one_line
from prunus.errors import PrunusError

# Sizes unlikely to occur in a model, by which the axes of sequences and tokens are recognised.
_PROBE_SEQUENCES, _PROBE_TOKENS = 3, 24
MOST_OUTPUTS = 3


class Unstreamable(PrunusError):
    """The model cannot be run block by block; the message says which check it fails."""


class Carried(NamedTuple):
    """Placeholder in a later block's arguments for a value other than hidden states that `block` returns.

    place: its position in the returned tuple: 1, 2, ...
    """

    block: int
    place: int


class Call(NamedTuple):
    """The arguments of a block, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Recording(NamedTuple):
    """A forward pass around the blocks: the input of the first block, and the arguments of each block."""

    first: Tensor
    calls: list[Call]


class _StopForward(Exception):
    """Ends a forward pass once everything needed has been recorded."""


class Architecture:
    """A transformers causal language model, mostly without its weights, divided into its blocks and the rest.

    name: name of the list of blocks. outputs: number of values in the tuple that a block returns; 0 if it returns a
    tensor. carried: which of these values later blocks receive. probe: the recording of a forward pass over a few
    tokens, without weights. The constructor runs all checks, and raises Unstreamable if one fails.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.name, self.layers = find_layers(self.model)
        inside = {id(module) for module in self.layers.modules()}
        self._outside = [module for module in model.modules() if id(module) not in inside]
        self.head: nn.Module | None = self.model.get_output_embeddings()
        self.outputs, self._axis = 0, 0
        self.carried: set[Carried] = set()
        self.probe: Recording
        of_blocks = set(self.layers.parameters())
        with torch.inference_mode(False), torch.no_grad(), hollow(model, lambda module: module not in of_blocks):
            self._find_structure()

    def block_prefix(self, index: int) -> str:
        """The prefix of the names of all tensors of a block: `model.layers.3.`"""
        return f"{self.name}.{index}."

    def record(self, ids_NT: Tensor, *, poison: bool = False, apart: bool = False) -> Recording:
        """The recording of a forward pass up to the last block, with blocks that return their input.

        apart: blocks return copies of it, so that the check of each block's input is complete. poison: they return NaN.
        """
        calls: list[Call] = []
        with torch.inference_mode(False), torch.no_grad():
            first = self._run(ids_NT, calls, poison, apart)
        return Recording(first, calls)

    def states(self, ids_NT: Tensor, final: Tensor) -> Tensor:
        """(N, T, X) input of the head, from the output of the last block; differentiable where `final` is."""
        return self._read_by_head(lambda: self._run(ids_NT, [], True, False, final))

    def whole_states(self, ids_NT: Tensor) -> Tensor:
        """(N, T, X) input of the head, from a forward pass of a model that has all its weights."""
        return self._read_by_head(lambda: self.model(input_ids=ids_NT, use_cache=False))

    def _read_by_head(self, run: Callable[[], Any]) -> Tensor:
        """The input of the head in the forward pass `run`, which is stopped there."""
        if self.head is None:
            raise Unstreamable("it has no output head")
        read: list[Tensor] = []

        def capture(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            read.append(args[0])
            raise _StopForward

        with self.head.register_forward_pre_hook(capture), suppress(_StopForward):
            run()
        if len(read) != 1:
            raise Unstreamable("its output head is not called")
        return read[0]

    def logits(self, states_NTX: Tensor) -> Tensor:
        """(N, T, V) logits from the input of the head, with the scaling and soft caps of the model.

        A long text may be passed in parts.
        """
        assert self.head is not None
        ids_11 = torch.zeros(1, 1, dtype=torch.long, device=states_NTX.device)
        with (
            self.head.register_forward_pre_hook(lambda _module, _args: (states_NTX,)),
            self._replacing_blocks(lambda _index, hidden, _call: self._pack(hidden, len(self.layers))),
        ):
            return self.model(input_ids=ids_11, use_cache=False).logits

    def call_block(
        self, index: int, block: Callable[..., Any], hidden: Tensor, call: Call, carried: dict[Carried, Any]
    ) -> Tensor:
        """The hidden states that a block (the layer itself, or a copy) returns.

        carried: the other values that earlier blocks returned; those of this block that later ones need are added.
        """

        def real(value: Any) -> Any:
            return carried[value] if isinstance(value, Carried) else value

        out = block(hidden, *map(real, call.args), **{name: real(value) for name, value in call.kwargs.items()})
        out = out if isinstance(out, (tuple, list)) else (out,)
        for at in self.carried:
            if at.block == index and at.place < len(out):
                carried[at] = out[at.place]
        return out[0]

    def to_rows(self, hidden: Tensor) -> Tensor:
        """(N, T, W) view or copy of hidden states, which blocks may lay out otherwise."""
        return hidden.movedim((self._axis, self._axis + 1), (0, 1)).flatten(2)

    def from_rows(self, rows_NTW: Tensor) -> Tensor:
        """Hidden states in the layout of blocks, from (N, T, W)."""
        return rows_NTW.unflatten(2, self._others).movedim((0, 1), (self._axis, self._axis + 1))

    @property
    def width(self) -> int:
        """Numbers per token between two blocks."""
        return torch.Size(self._others).numel()

    def _run(self, ids_NT: Tensor, calls: list[Call], poison: bool, apart: bool, final: Tensor | None = None) -> Tensor:
        """The input of the first block in a forward pass, which appends the arguments of each block to calls.

        The pass ends when the last block is called, or, if that block's output is given (final), when the head is.
        """
        first: list[Tensor] = []
        given: list[tuple[Tensor, int]] = []

        def respond(index: int, hidden: Tensor, call: Call) -> Any:
            if index != len(calls):
                raise Unstreamable(f"block {index} is called as number {len(calls)} of the blocks")
            if given and not _same(hidden, *given[-1]):
                raise Unstreamable(f"block {index} does not read the output of block {index - 1}")
            first.append(hidden)
            calls.append(call)
            last = index == len(self.layers) - 1
            if last and final is None:
                raise _StopForward
            if last:
                out = final
            elif poison:
                out = torch.full_like(hidden, torch.nan)
            else:
                out = hidden.clone() if apart else hidden
            assert out is not None
            given.append((out, _version(out)))
            return self._pack(out, index)

        with suppress(_StopForward), self._replacing_blocks(respond), self._restoring_state():
            self.model(input_ids=ids_NT, use_cache=False)
        if len(calls) != len(self.layers):
            raise Unstreamable(f"{len(calls)} of {len(self.layers)} blocks are called")
        return first[0]

    @contextmanager
    def _restoring_state(self) -> Iterator[None]:
        """Restore buffers and numbers of modules afterwards: a dynamic NTK embedding stores the longest sequence."""
        modules = [module for module in self._outside if module._buffers]
        numbers = [{name: value for name, value in vars(m).items() if isinstance(value, (int, float))} for m in modules]
        buffers = [dict(m._buffers) for m in modules]
        try:
            yield
        finally:
            for module, own, more in zip(modules, buffers, numbers, strict=True):
                module._buffers.update(own)
                vars(module).update(more)

    def _pack(self, out: Tensor, index: int) -> Any:
        """Output of a block: hidden states, and placeholders for its other values."""
        return (out, *(Carried(index, place) for place in range(1, self.outputs))) if self.outputs else out

    def _replacing_blocks(self, respond: Callable[[int, Tensor, Call], Any]) -> AbstractContextManager[None]:
        """Within the context, respond(index, hidden states, other arguments) replaces the forward of every block."""

        def stand_in(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if args:
                    return respond(index, args[0], Call(args[1:], kwargs))
                hidden = kwargs.pop("hidden_states")
                return respond(index, hidden, Call((), kwargs))

            return forward

        return with_forwards((layer, stand_in(index)) for index, layer in enumerate(self.layers))

    def _find_structure(self) -> None:
        """Find what blocks return and the axes of hidden states, and run the checks; Unstreamable if one fails."""
        if len(set(map(id, self.layers))) < len(self.layers):
            raise Unstreamable("blocks are called more than once")
        device = next((p.device for p in self.model.parameters() if not p.is_meta), torch.device("cpu"))
        ids_S = torch.arange(_PROBE_SEQUENCES * _PROBE_TOKENS, device=device) % 20
        ids_NT = ids_S.view(_PROBE_SEQUENCES, _PROBE_TOKENS)
        recording = self.probe = self._try_outputs(ids_NT)
        self._find_axes(recording.first)
        everything = [tree for call in recording.calls for tree in (call.args, call.kwargs)]
        self.carried = {leaf for leaf in leaves(everything) if isinstance(leaf, Carried)}
        for index, call in enumerate(self.record(ids_NT, poison=True).calls):
            if _has_nan((call.args, call.kwargs)):
                raise Unstreamable(f"an argument of block {index} depends on earlier hidden states")
        if self.head is not None and _has_nan(self.states(ids_NT, torch.zeros_like(recording.first))):
            raise Unstreamable("the computation after the last block reads earlier hidden states")

    def _try_outputs(self, ids_NT: Tensor) -> Recording:
        """A recording with the smallest number of outputs with which the model's forward pass succeeds."""
        reasons: list[str] = []
        for self.outputs in range(MOST_OUTPUTS + 1):
            try:
                recording = self.record(ids_NT, apart=True)
                if self.head is not None:
                    read = self.states(ids_NT, torch.zeros_like(recording.first))
                    if read.shape[:2] != ids_NT.shape:  # a model of one block has no other that would miss the axis
                        raise Unstreamable(f"its head reads {tuple(read.shape)}, not by sequence and token")
                return recording
            except Unstreamable as error:
                reasons.insert(0, str(error))
            except Exception as error:  # the model's own code fails on an output that it did not expect
                reasons.append(f"{type(error).__name__}: {one_line(error)[:120]}")
        raise Unstreamable(reasons[0])

    def _find_axes(self, hidden: Tensor) -> None:
        """Find the axes of sequences and tokens in hidden states; Unstreamable unless they are adjacent and unique."""
        shape = tuple(hidden.shape)
        pairs = [axis for axis in range(len(shape) - 1) if shape[axis : axis + 2] == (_PROBE_SEQUENCES, _PROBE_TOKENS)]
        if len(pairs) != 1:
            raise Unstreamable(f"its hidden states, {shape}, are not laid out by sequence and token")
        self._axis = pairs[0]
        self._others = (*shape[: self._axis], *shape[self._axis + 2 :])


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within the context, new modules have parameters without values, and real buffers (rotary tables, masks).

    torch's own initialisation of such parameters, which changes nothing and takes most of the time, is skipped.
    """
    register = nn.Module.register_parameter
    initialisers = {name: getattr(nn.init, name) for name in ("kaiming_uniform_", "uniform_", "normal_")}

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        if param is not None:
            param._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]  transformers then skips it
        register(self, name, param)

    def with_values_only(initialise: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda tensor, *args, **kwargs: tensor if tensor.is_meta else initialise(tensor, *args, **kwargs)

    nn.Module.register_parameter = on_meta
    for name, initialise in initialisers.items():
        setattr(nn.init, name, with_values_only(initialise))
    try:
        yield
    finally:
        nn.Module.register_parameter = register
        for name, initialise in initialisers.items():
            setattr(nn.init, name, initialise)


@contextmanager
def with_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within the context, each of these modules computes the function that it is paired with."""
    pairs = list(forwards)
    try:
        for module, forward in pairs:
            module.forward = forward
        yield
    finally:
        for module, _ in pairs:
            module.__dict__.pop("forward", None)


@contextmanager
def hollow(module: nn.Module, which: Callable[[nn.Parameter], bool] = lambda _: True) -> Iterator[None]:
    """Within the context, a module's parameters without values are zeros that take no memory. which: selects them."""
    zeros = {
        parameter: nn.Parameter(torch.zeros((), dtype=parameter.dtype).expand(parameter.shape), requires_grad=False)
        for parameter in module.parameters()
        if parameter.is_meta and which(parameter)
    }
    owners = [owner for owner in module.modules() if owner._parameters]
    before = [dict(owner._parameters) for owner in owners]
    for owner in owners:
        owner._parameters.update({n: zeros.get(p, p) for n, p in owner._parameters.items() if p is not None})
    try:
        yield
    finally:
        for owner, parameters in zip(owners, before, strict=True):
            owner._parameters.update(parameters)


def skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The transformers model of a configuration, without the values of its parameters, as it would run in dtype."""
    with parameters_on_meta():
        model: Any = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype)
    replace_conv1d(model)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder blocks: a list of modules that transformers checkpoints or never splits over devices.

    If there is none, a list at the top of the model with num_hidden_layers modules is taken. Raises Unstreamable if no
    list, or more than one, qualifies.
    """
    whole = set(model._no_split_modules or ())
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    candidates = [
        (name, modules)
        for name, modules in lists
        if all(isinstance(m, GradientCheckpointingLayer) or type(m).__name__ in whole for m in modules)
    ]
    candidates = candidates or [
        (n, m) for n, m in lists if len(m) == count and "." not in n.removeprefix("transformer.")
    ]
    if len(candidates) > 1:
        candidates = [(name, modules) for name, modules in candidates if len(modules) == count] or candidates
    if len(candidates) != 1:
        listed = ", ".join(name for name, _ in candidates) or "none"
        raise Unstreamable(f"its list of blocks cannot be identified (candidates: {listed})")
    return candidates[0]


def leaves(tree: object) -> Iterator[Any]:
    """The leaves of nested tuples, lists and dicts."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)) and not isinstance(tree, Carried):
        for item in tree:
            yield from leaves(item)
    else:
        yield tree


def _has_nan(tree: object) -> bool:
    tensors = [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]
    return any(bool(t.isnan().any()) for t in tensors if t.is_floating_point() or t.is_complex())


def _same(seen: Tensor, given: Tensor, version: int) -> bool:
    """Whether `seen` is the tensor `given`, or a view of all of it, and has not been written to since."""
    places = [(t.data_ptr(), t.shape, t.stride()) for t in (seen, given)]
    return places[0] == places[1] and _version(given) == version


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
