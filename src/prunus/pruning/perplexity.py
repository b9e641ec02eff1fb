"""Perplexity on a text, over windows that do not overlap: the usual first check of a pruned model."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from prunus.checkpoint.architecture import Architecture, Unstreamable
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import within_memory
from prunus.checkpoint.foreign_weights import DEQUANTISED
from prunus.checkpoint.loader import load_plain, load_whole
from prunus.checkpoint.model_folder import ModelFolder, check_scaled
from prunus.checkpoint.precision import use_fast_products
from prunus.checkpoint.resolve import one_line, resolve, typed_path
from prunus.checkpoint.runner import pick_device
from prunus.errors import PrunusError
from prunus.plain_data import Record
from prunus.progress import Steps
from prunus.pruning.calibration.hidden_states import batches as batches_of
from prunus.pruning.calibration.hidden_states import check_free, summed_loss
from prunus.pruning.calibration.text_files import check_ids, encoder, read_jsonl, read_text, render_chats


class Perplexity(Record):
    """The perplexity of a model on a text.

    perplexity: exp of nll.
    nll: mean negative log-likelihood, in nats per token.
    tokens, windows: number of predicted tokens, and of windows.
    seqlen: tokens per window.
    """

    perplexity: float
    nll: float
    tokens: int
    windows: int
    seqlen: int


def perplexity(
    model: str | Path, text: str | Path, *, seqlen: int = 2048, tokens: int | None = None, device: str = "auto"
) -> Perplexity:
    """The perplexity of model on a text, over windows that do not overlap.

        print(prunus.perplexity("tiny", "held-out.txt", seqlen=256).perplexity)

    It is exp of the mean negative log-likelihood over all tokens but the first of each window. The whole model is in
    memory, in the checkpoint's dtype; logits are in float32.

    model: a folder, a hub id or `tiny`.
    text: a .txt file, or a .jsonl file whose lines hold text (joined by blank lines), messages or token_ids (each line
        is a document of its own).
    seqlen: tokens per window. The rest at the end of a document is not used, unless the document is shorter than a
        window.
    tokens: use only the first windows, up to this many tokens.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.

    Raises PrunusError for wrong input, a text of fewer than two tokens, too little free memory, or outputs with NaN or
    infinity.
    """
    source, path = ModelFolder(resolve(model)), typed_path(text)
    check_scaled(source)
    context = source.context
    if not 2 <= seqlen <= context:
        raise PrunusError(f"seqlen {seqlen} must lie between 2 and the model's context of {context}")
    chosen = first_windows(cut(read_documents(path, source), seqlen), tokens)
    if not chosen:
        raise PrunusError(f"{path} has no text of at least two tokens")
    total, predicted, runs_on = 0.0, 0, pick_device(device)
    batches = list(batches_of(sorted(chosen, key=len)))
    advice = "or take another --device or a model in fewer bits"
    check_free(f"{source.folder}: the whole model", sum(source.engine_bytes.values()), runs_on, advice)
    with within_memory(runs_on, "take a smaller --seqlen"):
        network = load_model(source, runs_on)
        head = find_head(network)
        with torch.inference_mode(), Steps("perplexity", total=len(batches), unit="batches") as steps:
            for batch in batches:
                ids_NT = torch.tensor(batch, device=network.device)
                total += negative_log_likelihood(network, head, ids_NT)
                predicted += ids_NT.shape[0] * (ids_NT.shape[1] - 1)
                steps.advance()
    if not math.isfinite(total):
        raise PrunusError(f"{source.folder}: the model's output holds NaN or infinity on {path}; it is broken")
    nll = total / predicted
    return Perplexity(perplexity=math.exp(nll), nll=nll, tokens=predicted, windows=len(chosen), seqlen=seqlen)


def load_model(source: ModelFolder, device: torch.device) -> PreTrainedModel:
    """transformers' model in the checkpoint's dtype, on device; raises PrunusError if it cannot be loaded."""
    disable_progress_bar()  # transformers' own; prunus shows one
    try:
        network: Any  # whose `to` transformers wraps so that its type is lost
        if source.quantised in DEQUANTISED:
            plain = Checkpoint(source.folder)
            network = load_whole(plain, plain.dtype)
        else:
            network = load_plain(source.folder, source.dtype)
        network = network.eval().to(device)
        use_fast_products(network)
        return network
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise PrunusError(f"{source.folder} cannot be loaded by transformers: {one_line(error)}") from error


def read_documents(path: Path, source: ModelFolder) -> list[list[int]]:
    """Token ids of the documents of a text file; see perplexity."""
    if path.suffix == ".txt":
        return [encoder(source)(read_text(path))]
    if path.suffix != ".jsonl":
        raise PrunusError(f"{path} is neither a .txt nor a .jsonl file")
    lines = read_jsonl(path)
    if lines[0].kind == "text":
        return [encoder(source)("\n\n".join(line.value for line in lines))]
    if lines[0].kind == "messages":
        return render_chats(path, lines, source)[0]
    check_ids(lines, source.vocabulary)
    return [line.value for line in lines]


def cut(documents: Sequence[list[int]], seqlen: int) -> Iterator[list[int]]:
    """Yield consecutive windows of seqlen ids; a document shorter than that is a window of its own."""
    for ids in documents:
        if 2 <= len(ids) < seqlen:
            yield ids
        for begin in range(0, len(ids) - seqlen + 1, seqlen):
            yield ids[begin : begin + seqlen]


def first_windows(windows: Iterator[list[int]], max_tokens: int | None) -> list[list[int]]:
    """The first windows with at most max_tokens tokens in total, but at least one."""
    all_windows = [*windows]
    ends = accumulate(map(len, all_windows))
    return [
        ids for ids, end in zip(all_windows, ends, strict=True) if max_tokens is None or end <= max_tokens
    ] or all_windows[:1]


def find_head(network: PreTrainedModel) -> Architecture | None:
    """The architecture, which can compute logits for a few tokens at a time; None if the model does not allow that."""
    try:
        return Architecture(network)
    except Unstreamable:
        return None


def negative_log_likelihood(network: nn.Module, head: Architecture | None, ids_NT: Tensor) -> float:
    """Sum in nats of the negative log-likelihood over all tokens but the first of each row."""
    targets_N = ids_NT[:, 1:].flatten()
    if head is None:
        logits_NV = network(input_ids=ids_NT, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        return functional.cross_entropy(logits_NV, targets_N, reduction="none").double().sum().item()
    hidden_NX = head.whole_states(ids_NT)[:, :-1].flatten(0, 1)
    return summed_loss(head.logits, hidden_NX, targets_N)
