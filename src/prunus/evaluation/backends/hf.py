"""Load transformers' models, and decode in our own loop: `generate` has no seed per row and cannot fork a chain.

All requests of a call are rows of one batch. A finished row leaves the batch; a follow-up request continues from the
cache, in the same row or in a copy of it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from prunus import progress
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.compressed_tensors import METHOD
from prunus.checkpoint.device import described, sent, within_memory
from prunus.checkpoint.foreign_weights import Quantisation
from prunus.checkpoint.loader import load_plain, load_whole
from prunus.checkpoint.precision import use_fast_products
from prunus.checkpoint.resolve import one_line
from prunus.disk import read_object
from prunus.errors import PrunusError
from prunus.evaluation.backends.rows import (
    Bans,
    Decoding,
    candidates_of_top_p,
    confidence,
    key_of,
    penalised,
    pick,
    rows_for,
)
from prunus.evaluation.engine import Backend
from prunus.evaluation.requests import NEUTRAL, Completion, Request, Sampling, Scores
from prunus.settings.engines import FLOAT32_PARAMETERS, EngineOptions
from prunus.store.stored import Environment

SETTINGS = ("repetition_penalty", "presence_penalty", "min_p")  # fields of requests that this backend computes itself
LEAST_PARAMETERS = 20_000_000  # in smaller models the calls take longer than the matrix products


def load_model(folder: Path, device: str = "auto", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A causal language model for inference, on its device; PrunusError if transformers cannot load it.

    device: `auto` is cuda if torch finds a GPU, else cpu. dtype: None means bfloat16 on cuda; on a cpu, float32 for up
    to a billion parameters and the checkpoint's dtype for more.
    """
    device = device_for(device)
    wanted = dtype or (torch.bfloat16 if device.startswith("cuda") else None)
    try:
        if has_integers(folder):
            checkpoint = Checkpoint(folder)
            model = load_whole(checkpoint, wanted or checkpoint.dtype)
        else:
            with quiet():
                model = load_plain(folder, wanted or "auto")
        with within_memory(torch.device(device), "evaluate a smaller model, or one in fewer bits"):
            nn.Module.to(model, torch.device(device))
    except PrunusError:
        raise
    except Exception as error:  # damaged files cause errors of many kinds
        reason = one_line(error)
        raise PrunusError(f"the model in {folder} cannot be loaded on {device}: {reason}") from error
    small = model.device.type == "cpu" and model.num_parameters() <= FLOAT32_PARAMETERS
    if dtype is None and small and not getattr(model, "is_quantized", False):
        model = model.float()
    use_fast_products(model)
    return model.eval()


def device_for(device: str) -> str:
    """The device of a name: `auto` becomes cuda or cpu. Raises PrunusError for a GPU that torch does not find."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise PrunusError(f"device '{device}' cannot be used: torch finds no CUDA GPU; use --device cpu")
    return device


def has_integers(folder: Path) -> bool:
    """Whether a folder has weights in integers of compressed-tensors, which are read without that package."""
    path = folder / "config.json"
    settings = read_object(path).get("quantization_config") if path.is_file() else None
    try:
        quantisation = Quantisation.of(settings)
    except ValueError:
        return False
    return quantisation is not None and quantisation.method == METHOD


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, transformers shows no progress bars."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


COMPACT_SHARE = 0.25  # finished rows leave the batch once they are this share of it, since leaving copies the cache


@dataclass
class ActiveRequest:
    """A request in progress: the model first reads `pending`, then samples until a stop or the cap.

    fed: the id that the model reads next. marker: as in Completion. undecided: cuts before which a marker of several
    tokens may still turn out to begin. sampled: which ids occur in ids.
    """

    request: Request
    pending: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    scores: Scores = field(default_factory=Scores.empty)
    stopped: int | None = None
    done: bool = False
    fed: int = 0
    marker: int | None = None
    undecided: list[int] = field(default_factory=list)
    sampled: set[int] = field(default_factory=set)

    @cached_property
    def of_prompt(self) -> frozenset[int]:
        """Which ids occur in the prompt."""
        return frozenset(self.request.prompt)

    def take(self, token: int, logprob: float, certainty: float) -> bool:
        """Append the sampled id, or read a pending one instead; return whether a follow-up may start now."""
        if self.pending:
            self.fed = self.pending.pop(0)
            return False
        if token in self.request.stops:
            self.stopped, self.done = token, True
        else:
            self.fed = token
            self.ids.append(token)
            self.sampled.add(token)
            self.scores.add(logprob, certainty)
            self.done = len(self.ids) == self.request.max_new_tokens
            if self.request.texts is not None:
                self.marker = self.request.texts.ending_at(self.ids)
                self.done = self.done or self.marker is not None
        return self.request.then is not None and (self.done or self.cut is not None)

    @property
    def cut(self) -> int | None:
        """The cut of the request that the last id passed, or None."""
        cut = len(self.ids) - 1 if self.stopped is None else len(self.ids)
        return cut if cut in self.request.cuts and (self.stopped is None or cut == 0) else None

    def late(self) -> list[Request]:
        """The follow-up requests of a finished row at cuts that were undecided; they do not continue the cache."""
        passed = [cut for cut in self.undecided if cut < self.completion.content]
        requests = [self.request.then and self.request.then(self.completion.first(cut), cut) for cut in passed]
        return [request for request in requests if request is not None]

    @property
    def completion(self) -> Completion:
        """The completion with the ids so far."""
        return Completion(self.ids, self.stopped, self.scores, self.marker)

    def following(self) -> tuple[Request | None, Request | None]:
        """The follow-up requests in this row and in a copy of it."""
        assert self.request.then is not None
        at_end = self.request.then(self.completion, None) if self.done else None
        cut, texts = self.cut, self.request.texts
        if cut and texts is not None and (self.marker is not None or texts.may_begin_by(self.ids, cut)):
            self.undecided.append(cut)
            cut = None
        at_cut = None if cut is None else self.request.then(self.completion.first(cut), cut)
        return (at_cut, None) if self.done and at_end is None else (at_end, at_cut)

    def continued_by(self, request: Request) -> "ActiveRequest":
        """A row for a follow-up request, which starts where the model stopped reading."""
        read = len(self.request.prompt) + len(self.ids) - (self.stopped is None)
        first, *pending = request.prompt[read:]
        return ActiveRequest(request, pending, fed=first)


class HFBackend(Backend):
    """A Backend over a transformers causal language model.

    vocabulary: number of ids of the tokenizer; ids of this size and above are never sampled. request: as of
    EngineOptions.
    """

    samples_by_key = True

    def __init__(self, model: PreTrainedModel, vocabulary: int, request: Mapping[str, float] | None = None) -> None:
        self.model = model.eval()
        self.settings = NEUTRAL | dict(request or {})
        self.vocabulary = vocabulary
        self.most_rows = sys.maxsize  # lowered when the device runs out of memory

    @classmethod
    def load(
        cls, folder: Path, device: str = "auto", vocabulary: int | None = None, engine: EngineOptions | None = None
    ) -> "HFBackend":
        """A backend for a folder. device: `auto` is cuda where present. engine: of which it uses `request`."""
        model = load_model(folder, device)
        size = vocabulary or model.config.get_text_config(decoder=True).vocab_size
        return cls(model, size, engine and engine.request)

    @property
    def processes(self) -> int:
        """As Completer.processes: one per thread on a CPU if the model is so small that calls outlast products."""
        small = self.model.device.type == "cpu" and self.model.num_parameters() < LEAST_PARAMETERS
        return torch.get_num_threads() if small and sys.platform == "linux" else 1

    @property
    def description(self) -> Environment:
        """Device, model of the GPU and dtype, stored with the run."""
        return Environment.of({**described(self.model.device), "dtype": str(self.model.dtype).removeprefix("torch.")})

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """As Completer.generate: all requests decode together, or in smaller batches if memory runs out.

        Rows do not depend on each other except by rounding, so smaller batches give the same result, in 16 bits nearly
        the same (docs/protocol.md). Raises PrunusError if the memory is too small for a single chain.
        """
        if not requests:
            return []
        if len(requests) <= self.most_rows:
            try:
                return self._decode(requests, sampling)
            except torch.OutOfMemoryError as error:
                if len(requests) == 1:
                    raise PrunusError(
                        f"{self.model.device} has too little memory for a single chain: {one_line(error)}; stored"
                        " results are kept; lower --budgets, or use --engine vllm"
                    ) from error
            self.most_rows = len(requests) // 2
            progress.say(f"out of memory with {len(requests)} chains at once: going on with {self.most_rows}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        half = len(requests) // 2
        return [*self.generate(requests[:half], sampling), *self.generate(requests[half:], sampling)]

    @torch.inference_mode()
    def _decode(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Complete the requests, and those that follow them, in one batch."""
        cache = self._rows([request.prompt for request in requests], on_tokens=self.on_tokens)
        first = rows = [ActiveRequest(request) for request in requests]
        logits_RV = cache.prefill()
        bans = Bans(self.vocabulary, logits_RV)
        late: list[Request] = []
        while True:
            added: list[tuple[int, ActiveRequest]] = []
            sampled = self._pick(logits_RV, rows, bans, sampling)
            rows, before = list(rows), rows
            for index, (row, (token, *scores)) in enumerate(zip(before, sampled, strict=True)):
                if row.done:
                    continue
                follows = row.take(int(token), *scores)
                if row.done:
                    late += row.late()
                if not follows:
                    continue
                in_row, in_copy = row.following()
                if in_row is not None:
                    rows[index] = row.continued_by(in_row)
                if in_copy is not None:
                    added.append((index, row.continued_by(in_copy)))
            live = [index for index, row in enumerate(rows) if not row.done]
            if not live and not added:
                self.generate(late, sampling)
                return [row.completion for row in first]
            if added or len(live) <= (1 - COMPACT_SHARE) * len(rows):
                cache.select([*live, *(index for index, _ in added)])
                rows = [*(rows[index] for index in live), *(row for _, row in added)]
            logits_RV = cache.step([None if row.done else row.fed for row in rows])

    def _pick(self, logits_RV: Tensor, rows: list[ActiveRequest], bans: Bans, sampling: Sampling) -> list[list[float]]:
        """Each row's sampled id, log-probability and self-certainty, in a single copy from the device."""
        repetition, presence, min_p = (self.settings[name] for name in SETTINGS)
        asked_RV = logits_RV
        if repetition != 1 or presence:
            prompts, sampled = [row.of_prompt for row in rows], [row.sampled for row in rows]
            asked_RV = penalised(logits_RV, repetition, presence, prompts, sampled)
        allowed_RV = bans.applied(asked_RV, [row.request for row in rows], [len(row.ids) for row in rows])
        key_R = None
        if sampling.temperature > 0:
            keys = [key_of(row.request.seed, len(row.ids)) for row in rows]
            key_R = sent(torch.tensor(keys), logits_RV.device)
        picked: list[list[float]] = []
        for candidates in candidates_of_top_p(logits_RV.shape[1]):
            token_R, enough_R = pick(allowed_RV, sampling, key_R, candidates, min_p)
            enough_R = torch.ones_like(token_R) if enough_R is None else enough_R
            numbers = (token_R, *confidence(logits_RV, token_R), enough_R)
            # Float64 represents every id exactly.
            picked = torch.stack([number_R.double() for number_R in numbers], 1).tolist()
            if all(row.pop() for row in picked):
                break
        return picked

    @cached_property
    def _rows(self) -> Callable[..., Decoding]:
        """The constructor of rows for this model."""
        return rows_for(self.model)
