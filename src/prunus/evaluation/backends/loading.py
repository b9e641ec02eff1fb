"""Load a transformers model from a folder, dense or packed, onto a GPU or a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.compressed_tensors import METHOD
from prunus.checkpoint.loader import load_whole
from prunus.checkpoint.model_folder import is_packed
from prunus.checkpoint.packed_files import PackedCheckpoint
from prunus.checkpoint.precision import use_fast_products
from prunus.checkpoint.quantised import quant_method, why_unreadable
from prunus.checkpoint.resolve import one_line, read_object
from prunus.errors import PrunusError
from prunus.native.load import kernel, say_why_dense
from prunus.sparse import describe, load
from prunus.sparse.sixteen_bits import compute_dtype, kept_of, to_float32

__all__ = ["compute_dtype", "describe", "is_sparse", "kept_of", "load_model", "runs_sparse"]

FLOAT32_PARAMETERS = 1_000_000_000  # up to this size a model runs in float32 on a CPU
SPARSE = "prunus_sparse"  # attribute of a model that runs on the sparse kernel


def load_model(
    folder: Path, device: str = "auto", dtype: torch.dtype | None = None, sparse: bool = True
) -> PreTrainedModel:
    """A causal language model for inference, on its device; PrunusError if transformers cannot load it.

    device: `auto` is cuda if torch finds a GPU, else cpu. dtype: None means bfloat16 on cuda; on a cpu, float32 for up
    to a billion parameters and the checkpoint's dtype for more. sparse: use the project's kernel where the cpu supports
    it. A packed folder then stays packed, otherwise it is unpacked in memory. A dense model that computes in float32
    keeps 16-bit weights in 16 bits where that is faster (sparse/sixteen_bits.py).
    """
    device = pick(device)
    wanted = dtype or (torch.bfloat16 if device.startswith("cuda") else None)
    try:
        if runs_sparse(folder, device, sparse):
            return load_sparse(folder, dtype)
        if is_packed(folder):
            model = unpacked(folder, wanted)
        elif has_integers(folder):
            plain = Checkpoint(folder)
            model = load_whole(plain, wanted or plain.dtype)
        else:
            with quiet():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=wanted or "auto",
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
            model, info = loaded
            if missing := sorted(info["missing_keys"]):  # transformers initialises them at random
                raise PrunusError(f"{folder} lacks the tensor '{missing[0]}' that its config.json asks for")
        nn.Module.to(model, torch.device(device))
    except PrunusError:
        raise
    except Exception as error:  # damaged files cause errors of many kinds
        reason = one_line(error)
        raise PrunusError(f"the model in {folder} cannot be loaded on {device}: {reason}") from error
    small = model.device.type == "cpu" and model.num_parameters() <= FLOAT32_PARAMETERS
    if dtype is None and small and not getattr(model, "is_quantized", False):
        model = to_float32(model) if sparse else model.float()
    use_fast_products(model)
    return model.eval()


def pick(device: str) -> str:
    """The device of a name: `auto` becomes cuda or cpu. Raises PrunusError for a GPU that torch does not find."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise PrunusError(f"device '{device}' cannot be used: torch finds no CUDA GPU; use --device cpu")
    return device


def runs_sparse(folder: Path, device: str, sparse: bool) -> bool:
    """Whether load_model uses the sparse kernel: `sparse` is set, the folder is packed, and the CPU supports it.

    If only the last condition fails, one line on stderr says so.
    """
    if not sparse or not is_packed(folder) or pick(device) != "cpu":
        return False
    if kernel().library is None:
        say_why_dense(kernel().reason)
        return False
    return True


def is_sparse(model: PreTrainedModel) -> bool:
    """Whether a model from load_model runs on the sparse kernel."""
    return getattr(model, SPARSE, False)


def load_sparse(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model of a packed folder, on the sparse kernel. dtype: None as in load_model."""
    if dtype is None and PackedCheckpoint(folder).parameters <= FLOAT32_PARAMETERS:
        dtype = torch.float32
    model = load(folder, dtype=dtype)
    setattr(model, SPARSE, True)
    return model


def unpacked(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model of a packed folder, unpacked in memory. dtype: None means the checkpoint's."""
    checkpoint = PackedCheckpoint(folder)
    state = {name: stored.read() for name, stored in checkpoint.tensors.items()}
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(checkpoint.config)]
    with quiet():
        return family.from_pretrained(
            None,
            config=checkpoint.config,
            state_dict=state,
            dtype=dtype or checkpoint.dtype,
        )


def has_integers(folder: Path) -> bool:
    """Whether a folder has weights in integers of compressed-tensors, which are read without that package."""
    path = folder / "config.json"
    settings = read_object(path).get("quantization_config") if path.is_file() else None
    return quant_method(settings) == METHOD and why_unreadable(settings) is None


@contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile, transformers shows no progress bars."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
