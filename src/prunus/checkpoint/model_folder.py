"""A model folder, opened: its configuration, and its tensors from the headers of their files."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from prunus.checkpoint.compressed_tensors import METHOD
from prunus.checkpoint.content import content_digest
from prunus.checkpoint.foreign_weights import quant_method, quantisation_of
from prunus.checkpoint.gguf_file import read_gguf
from prunus.checkpoint.resolve import GGUF_FILE, check_folder, hub_origin, load_config
from prunus.checkpoint.safetensors_file import DTYPES, Stored, checksum_of, fingerprint_of, read_header
from prunus.disk import read_json, read_object
from prunus.errors import PrunusError
from prunus.manifest import Manifest, read_manifest
from prunus.plain_data import storable, without_twins
from prunus.settings.cache_size import CacheSize, cache_size
from prunus.settings.engines.facts import EngineFacts
from prunus.settings.engines.llama_cpp import LLAMA_CPP
from prunus.settings.serving import NO_SERVING, Serving

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UNLIMITED = 1 << 62  # tokens that a model without positions may read
MOST_POSITIONS = (1 << 31) - 1  # of a sequence, which engines keep in 32 bits
INDEX, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
MODELOPT = "hf_quant_config.json"  # where ModelOpt describes its quantisation
TEXT_PARTS = ("text_config", "llm_config", "language_config")  # of the language model in a config.json of several parts
SCALED = {"I8", "U8", "I32", "F8_E4M3", "F8_E5M2"}  # dtypes of quantised matrices


def bytes_by_kind(tensors: Mapping[str, Stored], config: "PreTrainedConfig", quantised: bool) -> dict[str, int]:
    """The bytes that an engine loads, by kind: embeddings, the head, quantised numbers, their scales, and all others.

    Zeros take as much as other weights. A head that is stored although config ties it to the embedding is not loaded.
    quantised: whether some weights are.
    """
    sizes: dict[str, int] = dict.fromkeys(("quantised", "scales", "embeddings", "head", "others"), 0)
    text = config.get_text_config(decoder=True)
    for name, tensor in tensors.items():
        last, kind = name.rpartition(".")[2], "others"
        if getattr(text, "vocab_size", None) in tensor.shape and not re.search(r"\.\d+\.", name):
            kind = "head" if re.search("head|out", name) else "embeddings"
        elif quantised and "scale" in last:
            kind = "scales"
        elif quantised and tensor.dtype not in DTYPES and last != "weight_shape":
            kind = "quantised"
        sizes[kind] += tensor.nbytes
    if sizes["embeddings"] and getattr(text, "tie_word_embeddings", False):
        sizes["head"] = 0
    return sizes


def in_text_part(
    content: Mapping[str, Any], config: "PreTrainedConfig", change: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The content of config.json with a change of the language model's part, or of all of it where it has no parts.

    change: returns the new part from the old one. config: the configuration as transformers reads it.
    """
    text = config.get_text_config(decoder=True)
    part = next((name for name in config.sub_configs if getattr(config, name, None) is text), None)
    if part is None or not isinstance(content.get(part), dict):
        return change(content)
    return {**content, part: change(content[part])}


class ModelFolder:
    """A model folder, opened: config.json and the headers of its safetensors are read, the weights are not.

    The model's own code is not run, so this suffices for a model that another program loads; `Checkpoint` also knows
    the blocks. written: the content of config.json. config: transformers' configuration. quantised: method by which the
    weights are quantised (fp8, awq, ...), None where they are not. stored: the tensors on disk by name. tensors: those
    that `read` returns.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        check_folder(self.folder)
        self.written = read_object(self.folder / "config.json")
        self._check_config()
        self.config: PreTrainedConfig = self._load_config()
        self._check_positions()
        self.quantised = quant_method(self._quantization_config)
        self.stored: Mapping[str, Stored] = self._find_tensors()
        self.tensors: Mapping[str, Stored] = self._as_read(self.stored)

    @property
    def text_config(self) -> "PreTrainedConfig":
        """The configuration of the language model; models of several parts have one for each part."""
        return self.config.get_text_config(decoder=True)

    @property
    def blocks(self) -> int:
        """Number of decoder blocks in the configuration; 0 where it does not say."""
        return getattr(self.text_config, "num_hidden_layers", None) or 0

    @property
    def context(self) -> int:
        """The most tokens of a sequence; UNLIMITED where the configuration has no limit."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return UNLIMITED if limit is None else int(limit)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.text_config.vocab_size)

    @property
    def parameters(self) -> int:
        """Number of stored weights; tied ones count once.

        In formats other than compressed-tensors, several weights that are packed into one element count as one.
        """
        if self.quantised != METHOD:
            return sum(stored.elements for stored in self.tensors.values())
        count = 0
        for name, stored in self.tensors.items():
            linear, _, last = name.rpartition(".")
            shape = self.tensors.get(f"{linear}.weight_shape")
            if last == "weight_packed" and shape is not None and shape.elements == 2:  # else the reader refuses it
                count += math.prod(shape.read().tolist())
            elif last not in ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"):
                count += stored.elements
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(stored.nbytes for stored in self.tensors.values())

    @property
    def engine_bytes(self) -> Mapping[str, int]:
        """The bytes that an engine loads, by kind."""
        return bytes_by_kind(self.stored, self.config, self.quantised is not None)

    def cache_size(
        self,
        serving: Serving = NO_SERVING,
        blocks: Collection[int] | None = None,
        engine: EngineFacts | None = None,
    ) -> CacheSize | None:
        """The size of the cache under a serving; None where the types of numbers or of layers are unknown.

        Its dtype is that of the weights, or bfloat16 where they are float32 or quantised, unless the serving or the
        engine sets another. blocks: as of the function cache_size. engine: None means llama.cpp for a folder with
        weights only in a GGUF file, else any other engine.
        """
        engine = LLAMA_CPP if engine is None and is_gguf(self.folder) else engine
        own = ("", "") if engine is None else (engine.cache, engine.states)
        dtype = own[0] or ("f16" if self.dtype == torch.float16 else "bf16")
        types = serving.cache_types(dtype)
        if types is None:
            return None
        return cache_size(self.config, *types, convolution=own[1] or dtype, recurrent=own[1] or None, blocks=blocks)

    @property
    def quantisation(self) -> str | None:
        """How the weights are quantised, for tables: `fp8`, `awq 4-bit`, `nvfp4`; None where they are not."""
        return quantisation_of(self._quantization_config)

    @property
    def _quantization_config(self) -> Any:
        """The quantization_config as plain data; None without one."""
        settings: Any = getattr(self.config, "quantization_config", None)
        return settings.to_dict() if hasattr(settings, "to_dict") else settings

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of most weights."""
        sizes: dict[str, int] = {}
        for stored in self.tensors.values():
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.elements
        return DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]), torch.bfloat16)

    def dtype_for(self, name: str) -> torch.dtype:
        """The dtype of this name; that of the weights for `auto`."""
        return self.dtype if name == "auto" else getattr(torch, name)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of this checkpoint (prunus.json); {} if nothing was done to it."""
        return read_manifest(self.folder)

    def provenance(self, name: str | Path) -> dict[str, str]:
        """Entry of this model in a manifest: name, as the user gave it, checksum, hub id and revision."""
        return {"name": storable(str(name)), "checksum": self.checksum(), **hub_origin(self.folder)}

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype in which it is stored."""
        if name not in self.tensors:
            raise PrunusError(f"{self.folder} holds no tensor '{name}'")
        return self.tensors[name].read()

    def checksum(self) -> str:
        """Stored: the BLAKE3 of all weights (checksum_of). Raises PrunusError for NaN or infinity."""
        return checksum_of(self.stored)

    def content(self) -> str | None:
        """The digest of configuration, tokenizer and chat template (content.content_digest)."""
        return content_digest(self.folder)

    def fingerprint(self) -> str:
        """A fast fingerprint of the weights, as safetensors_file.fingerprint_of describes it."""
        return fingerprint_of(self.stored)

    def _check_config(self) -> None:
        """Raise PrunusError where config.json describes a model that transformers should not try to make."""

    def _check_positions(self) -> None:
        """Raise PrunusError where max_position_embeddings is no number of tokens that an engine could take."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        if limit is not None and not (isinstance(limit, int | float) and 1 <= limit <= MOST_POSITIONS):
            raise PrunusError(
                f"{self.folder}: config.json has max_position_embeddings = {str(limit)[:100]}, which is not a number of"
                f" tokens from 1 to {MOST_POSITIONS:,}: correct it, or fetch it again"
            )

    def _load_config(self) -> "PreTrainedConfig":
        return load_config(self.folder)

    def _find_tensors(self) -> Mapping[str, Stored]:
        return find_tensors(self.folder)

    def _as_read(self, stored: Mapping[str, Stored]) -> Mapping[str, Stored]:
        return stored


class EngineFolder(ModelFolder):
    """A model folder for an engine that loads it itself: any type of model, in any quantisation.

    A configuration that transformers does not know or accept is read as plain JSON. Several safetensors files without
    an index count as one model.
    """

    def _load_config(self) -> "PreTrainedConfig":
        try:
            config: Any = super()._load_config()
        except PrunusError:
            config = plain_config(self.written)
        if getattr(config, "quantization_config", None) is None:
            config.quantization_config = self._quantisation_elsewhere()
        return cast("PreTrainedConfig", config)

    def _quantisation_elsewhere(self) -> Any:
        """Settings of a quantisation that are not in the `quantization_config` of config.json; None without any.

        Older files of compressed-tensors have another key, and those of NVIDIA's ModelOpt a file of their own.
        """
        if isinstance(older := self.written.get("compression_config"), dict):
            return {"quant_method": METHOD, **older}
        path = self.folder / MODELOPT
        settings = read_object(path).get("quantization") if path.is_file() else None
        return {"quant_method": "modelopt", **settings} if isinstance(settings, dict) else None

    def _find_tensors(self) -> Mapping[str, Stored]:
        files = sorted(self.folder.glob("*.safetensors"))
        if (self.folder / INDEX).exists() or len(files) < 2:
            return super()._find_tensors()
        return {name: stored for path in files for name, stored in read_header(path).items()}


def plain_config(written: Mapping[str, Any]) -> SimpleNamespace:
    """The content of a config.json with the attributes of transformers' configuration that ModelFolder uses."""
    inner = next((written[part] for part in TEXT_PARTS if isinstance(written.get(part), dict)), None)
    text = SimpleNamespace(**{**(written if inner is None else inner)})
    config = SimpleNamespace(**written)
    config.get_text_config = lambda decoder=True: text
    return config


def check_scaled(model: ModelFolder) -> None:
    """Raise PrunusError if matrices are of integers or 8-bit floats, and the model has no quantisation settings."""
    if model.quantised is not None or is_gguf(model.folder):
        return
    for name, stored in model.stored.items():
        if stored.dtype in SCALED and len(stored.shape) > 1 and name.rpartition(".")[2] in ("weight", "weight_packed"):
            raise PrunusError(
                f"{model.folder}: '{name}' is {stored.dtype}, but config.json has no quantization_config, which says"
                " how it is read: fetch config.json again"
            )


def is_gguf(folder: Path) -> bool:
    """Whether a folder has its weights only in a GGUF file."""
    return (folder / GGUF_FILE).is_file() and not any(folder.glob("*.safetensors"))


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder: those of its index, else those of its only safetensors file, else of its GGUF file."""
    if not (folder / INDEX).exists():
        if is_gguf(folder):
            return read_gguf(folder / GGUF_FILE).tensors
        return read_header(_only_file(folder))
    index = read_json(folder / INDEX, object_pairs_hook=without_twins)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise PrunusError(f"{folder / INDEX} is damaged: it does not say which file holds which tensor; fetch it again")
    tensors: dict[str, Stored] = {}
    for file in sorted(set(weight_map.values())):
        path = folder / file
        if path.parent != folder or not path.is_file():
            raise PrunusError(f"{folder / INDEX} names {file}, which does not exist; fetch it again")
        tensors |= {name: stored for name, stored in read_header(path).items() if weight_map.get(name) == file}
    if missing := sorted(set(weight_map) - set(tensors)):
        raise PrunusError(f"{folder / weight_map[missing[0]]} lacks the tensor '{missing[0]}'; fetch it again")
    return tensors


def _only_file(folder: Path) -> Path:
    if (folder / SINGLE_FILE).is_file():
        return folder / SINGLE_FILE
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise PrunusError(f"{folder} has {len(files)} safetensors files but no {INDEX}; fetch the index")
    return files[0]
