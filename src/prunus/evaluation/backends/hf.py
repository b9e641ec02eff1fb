"""Decoding with transformers' models: our own loop, because `generate` has no seed per row and cannot fork a chain.

Rows that are done leave the batch; a chain that a budget cuts goes on twice, thinking and answering, from one cache.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunus import progress
from prunus.errors import PrunusError
from prunus.evaluation.backends.loading import describe, is_sparse, load_model
from prunus.evaluation.backends.sampling import Uniforms, confidence, pick
from prunus.evaluation.backends.separate_rows import Decoding, rows_for
from prunus.evaluation.budget import Completion, Continuation, Continue, Sampling, Scores, Thought
from prunus.evaluation.profiles import Markers

COMPACT_SHARE = 0.25  # rows leave the batch when so many of them are done: leaving copies the cache

_T = TypeVar("_T")


@dataclass
class Track:
    """What one row is doing: first it is fed `pending`, then it samples until a stop or its cap.

    chain, cut: whose row it is; cut is the budget after which it answers, None while it thinks or after a natural end.
    masked: which of the batch's masks applies. min_new_tokens: before so many ids no stop is sampled.
    """

    chain: int
    cut: int | None
    stops: frozenset[int]
    masked: int
    cap: int
    uniforms: Uniforms | None
    pending: list[int] = field(default_factory=list)
    min_new_tokens: int = 0
    thinks: bool = False
    ids: list[int] = field(default_factory=list)
    scores: Scores = field(default_factory=Scores.none_yet)
    stopped: int | None = None
    done: bool = False
    fed: int = 0

    def take(self, token: int, logprob: float, certainty: float) -> None:
        """The model's next id and its scores, which count only if nothing is pending."""
        if self.pending:
            self.fed = self.pending.pop(0)
        elif token in self.stops:
            self.stopped, self.done = token, True
        else:
            self.fed = token
            self.ids.append(token)
            self.scores.add(logprob, certainty)
            self.done = len(self.ids) == self.cap

    @property
    def completion(self) -> Completion:
        """What came of it."""
        return Completion(self.ids, self.stopped, self.scores)


class HFBackend:
    """A Backend and ForkingBackend over a transformers causal language model.

    vocabulary: number of ids the tokenizer knows; the model's rows beyond are never sampled.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int) -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        self.most_rows = sys.maxsize  # that the device's memory has not been too small for

    @classmethod
    def load(
        cls, folder: Path, device: str = "auto", vocabulary: int | None = None, sparse: bool = True
    ) -> "HFBackend":
        """The model of a folder. device: `auto` is cuda where there is one, else cpu. sparse: as in load_model."""
        model = load_model(folder, device, sparse=sparse)
        return cls(model, vocabulary or model.config.get_text_config(decoder=True).vocab_size)

    @property
    def description(self) -> dict[str, str]:
        """Where and how it computes, for the record."""
        found = {"device": str(self.model.device), "dtype": str(self.model.dtype).removeprefix("torch.")}
        return found | ({"kernel": str(describe(self.model))} if is_sparse(self.model) else {})

    @torch.inference_mode()
    def time_tokens(self, context: int, tokens: int) -> tuple[float, list[float]]:
        """As TimedBackend: a forward and the choice of the likeliest token each.

        On one thread of a CPU seconds are CPU seconds: those of the wall on an idle machine.
        """
        on_one_thread = self.model.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.thread_time if on_one_thread else time.perf_counter
        ids = torch.randint(self.vocabulary, (context,), generator=torch.Generator().manual_seed(0)).tolist()
        rows = self._rows([ids])
        marks = [clock()]
        chosen = int(rows.prefill().argmax())  # int() waits for a GPU
        marks.append(clock())
        for _ in range(tokens):
            chosen = int(rows.step([min(chosen, self.vocabulary - 1)]).argmax())
            marks.append(clock())
        reading, *steps = (end - begin for begin, end in pairwise(marks))
        return reading, steps

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: Sequence[int],
        stops: frozenset[int],
        banned: frozenset[int],
        seeds: Sequence[int],
        sampling: Sampling,
        min_new_tokens: int = 0,
    ) -> list[Completion]:
        """As Backend.generate; all rows decode together, or as many as the device's memory holds."""

        def work(rows: range) -> list[Completion]:
            some, own = [prompts[row] for row in rows], [seeds[row] for row in rows]
            caps = [max_new_tokens[row] for row in rows]
            return self._generate(some, caps, own, stops, banned, sampling, min_new_tokens)

        return self._in_parts(range(len(prompts)), work)

    @torch.inference_mode()
    def _generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: Sequence[int],
        seeds: Sequence[int],
        stops: frozenset[int],
        banned: frozenset[int],
        sampling: Sampling,
        min_new_tokens: int,
    ) -> list[Completion]:
        tracks = [
            Track(row, None, stops, 0, cap, _uniforms(seed, sampling), min_new_tokens=min_new_tokens)
            for row, (cap, seed) in enumerate(zip(max_new_tokens, seeds, strict=True))
        ]
        if prompts:
            self._decode(prompts, list(tracks), [(stops, banned)], sampling)
        return [track.completion for track in tracks]

    def think_and_answer(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        budgets: Sequence[int],
        markers: Markers,
        sampling: Sampling,
        continue_: Continue,
    ) -> list[Thought]:
        """As prunus.evaluation.budget.think_and_answer, in one pass over every chain."""

        def work(rows: range) -> list[Thought]:
            some, own = [prompts[row] for row in rows], [seeds[row] for row in rows]

            def go_on(chain: int, ids: list[int], cut: int | None) -> Continuation:
                return continue_(rows[chain], ids, cut)

            return self._think_and_answer(some, own, budgets, markers, sampling, go_on)

        return self._in_parts(range(len(prompts)), work)

    @torch.inference_mode()
    def _think_and_answer(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        budgets: Sequence[int],
        markers: Markers,
        sampling: Sampling,
        continue_: Continue,
    ) -> list[Thought]:
        thinkers = [
            Track(chain, None, markers.think_stops, 0, max(budgets) + 1, _uniforms(seed, sampling), thinks=True)
            for chain, seed in enumerate(seeds)
        ]
        answers: list[Track] = []

        def answer(thinker: Track, cut: int | None) -> Track:
            how = continue_(thinker.chain, thinker.ids[:cut], cut)
            uniforms, pending = _uniforms(how.seed, sampling), list(how.closing)
            track = Track(thinker.chain, cut, markers.answer_stops, 1, how.max_new_tokens, uniforms, pending)
            track.take(-1, 0.0, 0.0)  # the closing begins where the chain was left
            answers.append(track)
            return track

        def fork(tracks: list[Track], sampled: int) -> list[tuple[int, Track]]:
            """Chains that ended turn into answers in place; those still thinking at a budget get a second row."""
            cut = sampled - 1  # the id just sampled is not part of a chain that is cut here
            added = []
            for index, track in enumerate(tracks):
                if not track.thinks:
                    continue
                # Budget 0 cuts every chain, even one that would stop at once.
                is_cut = cut in budgets and (cut == 0 or track.stopped is None)
                if is_cut and track.done and track.stopped is None:
                    tracks[index] = answer(track, cut)
                elif is_cut:
                    added.append((index, answer(track, cut)))
                if track.stopped is not None and max(budgets) > 0:
                    tracks[index] = answer(track, None)
            return added

        if prompts:
            masks = [(markers.think_stops, frozenset[int]()), (markers.answer_stops, markers.answer_banned)]
            self._decode(prompts, list(thinkers), masks, sampling, fork)
        thoughts = [Thought(thinker.completion) for thinker in thinkers]
        for track in answers:
            thoughts[track.chain].answers[track.cut] = track.completion
        return thoughts

    def _in_parts(self, rows: range, work: Callable[[range], list[_T]]) -> list[_T]:
        """What work finds for the rows, in halves of halves where the device's memory is too small for all at once.

        A row depends on nothing but itself, rounding aside, so parts find what the whole would; in 16 bits only nearly
        so (docs/protocol.md). PrunusError where one row is too much.
        """
        if len(rows) <= self.most_rows:
            try:
                return work(rows)
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    reason = " ".join(str(error).split())
                    raise PrunusError(
                        f"{self.model.device} has too little memory for a single chain: {reason}; what is stored stays;"
                        " lower --budgets, or use --backend vllm"
                    ) from error
            self.most_rows = len(rows) // 2
            progress.say(f"out of memory with {len(rows)} chains at once: going on with {self.most_rows}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        half = len(rows) // 2
        return [*self._in_parts(rows[:half], work), *self._in_parts(rows[half:], work)]

    def _decode(
        self,
        prompts: Sequence[list[int]],
        tracks: list[Track],
        masks: list[tuple[frozenset[int], frozenset[int]]],
        sampling: Sampling,
        fork: Callable[[list[Track], int], list[tuple[int, Track]]] | None = None,
    ) -> None:
        """Run the tracks to their ends. fork: (tracks, ids sampled so far) -> rows to copy, and what the copies do."""
        rows = self._rows(prompts)
        logits_RV = rows.prefill()
        never = self._never(masks, logits_RV.shape[1])
        sampled = 0
        while True:
            for track, (token, *scores) in zip(tracks, self._pick(logits_RV, tracks, never, sampling), strict=True):
                if not track.done:
                    track.take(int(token), *scores)
            sampled += 1
            added = fork(tracks, sampled) if fork else []
            live = [index for index, track in enumerate(tracks) if not track.done]
            if not live and not added:
                return
            if added or len(live) <= (1 - COMPACT_SHARE) * len(tracks):
                rows.select([*live, *(index for index, _ in added)])
                tracks = [*(tracks[index] for index in live), *(track for _, track in added)]
            logits_RV = rows.step([track.fed for track in tracks])

    def _pick(self, logits_RV: Tensor, tracks: list[Track], never_MV: Tensor, sampling: Sampling) -> list[list[float]]:
        """For each row the id picked, its log-probability and its self-certainty; in one copy from the device."""
        masks = [2 * track.masked + (len(track.ids) < track.min_new_tokens) for track in tracks]
        allowed_RV = logits_RV + never_MV[torch.tensor(masks, device=logits_RV.device)]
        uniform_R = None
        if sampling.temperature > 0:
            drawing = (track.uniforms if not (track.done or track.pending) else None for track in tracks)
            drawn = [uniforms.next() if uniforms else 0.0 for uniforms in drawing]
            uniform_R = torch.tensor(drawn, dtype=torch.float64, device=logits_RV.device)
        token_R = pick(allowed_RV, sampling, uniform_R)
        # Float64 holds every id exactly.
        return torch.stack([number_R.double() for number_R in (token_R, *confidence(logits_RV, token_R))], 1).tolist()

    @cached_property
    def _rows(self) -> Callable[[Sequence[list[int]]], Decoding]:
        """What makes rows of prompts."""
        return rows_for(self.model)

    def _never(self, masks: list[tuple[frozenset[int], frozenset[int]]], size: int) -> Tensor:
        """(2M, V) to add to logits: for each mask -inf on banned ids and unknown ones; then the same with its stops."""
        never_MV = torch.zeros(2 * len(masks), size, dtype=self.model.dtype)
        never_MV[:, self.vocabulary :] = -torch.inf
        for index, (stops, banned) in enumerate(masks):
            never_MV[2 * index, sorted(banned)] = -torch.inf
            never_MV[2 * index + 1, sorted(banned | stops)] = -torch.inf
        return never_MV.to(self.model.device)


def _uniforms(seed: int, sampling: Sampling) -> Uniforms | None:
    return Uniforms(seed) if sampling.temperature > 0 else None
