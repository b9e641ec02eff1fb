"""Digest of what a model computes with besides its weights: configuration, tokenizer, chat template."""

import hashlib
import re
from pathlib import Path
from typing import Any

from prunus.checkpoint.gguf_file import read_gguf
from prunus.checkpoint.resolve import GGUF_FILE, TEMPLATES
from prunus.disk import read_object
from prunus.plain_data import content_hash

# Keys of the JSON files, at any depth, that no engine computes with. Keys that are not listed count, so that models
# that differ in an unknown key never have the same digest.
NAMES = frozenset(
    {
        "_commit_hash", "_name_or_path", "finetuning_task", "id2label", "initializer_range", "label2id", "name_or_path",
        "output_attentions", "output_hidden_states", "problem_type", "processor_class", "return_dict",
        "special_tokens_map_file", "task_specific_params", "torchscript", "transformers_version", "use_cache",
    }
)  # fmt: skip
SETTINGS = ("config.json", "hf_quant_config.json", "quantize_config.json", "quant_config.json")
OF_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Files of vocabularies, which are hashed as they are.
VOCABULARIES = re.compile(r"tokenizer\.json|vocab\.(json|txt)|merges\.txt|.*\.(model|tiktoken)")
RENAMED = {"torch_dtype": "dtype"}  # by transformers 5, which reads both


def content_digest(folder: Path) -> str:
    """Stored: 16 hex digits of what a model computes with besides its weights, wherever its folder is.

    The digest covers config.json and the files that describe a quantisation, without the keys in NAMES; the tokenizer;
    the chat templates in any file; and the metadata of a GGUF file without safetensors, which llama.cpp reads instead.
    """
    names = [name for name in (*SETTINGS, *OF_TOKENIZER) if (folder / name).is_file()]
    parts = {name: computing(read_object(folder / name)) for name in names}
    for name in OF_TOKENIZER:
        parts.get(name, {}).pop("chat_template", None)
    for file in sorted(folder.iterdir()):
        if VOCABULARIES.fullmatch(file.name) and file.is_file():
            parts[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    parts["templates"] = templates(folder)
    if (folder / GGUF_FILE).is_file() and not any(folder.glob("*.safetensors")):
        parts[GGUF_FILE] = read_gguf(folder / GGUF_FILE).digest
    return content_hash(parts, 16)


def computing(content: object) -> Any:
    """The content of a JSON file without NAMES, with new names for keys in RENAMED; `architectures` in lower case."""
    if isinstance(content, list):
        return [computing(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    kept = {RENAMED.get(key, key): computing(value) for key, value in content.items() if key not in NAMES}
    if isinstance(kept.get("architectures"), list):
        kept["architectures"] = [str(name).lower() for name in kept["architectures"]]
    return kept


def templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name, from the files in which transformers looks for them."""
    texts: dict[str, str] = {}
    if (folder / "tokenizer_config.json").is_file():
        given = read_object(folder / "tokenizer_config.json").get("chat_template")
        named = given if isinstance(given, list) else [{"name": "default", "template": given}] if given else []
        texts = {
            str(template.get("name")): str(template.get("template")) for template in named if isinstance(template, dict)
        }
    if (folder / "chat_template.json").is_file():
        texts["chat_template.json"] = str(read_object(folder / "chat_template.json").get("chat_template"))
    files = [("default", folder / "chat_template.jinja")]
    files += [(file.stem, file) for file in sorted((folder / TEMPLATES).glob("*.jinja"))]
    return texts | {name: file.read_text("utf-8", "replace") for name, file in files if file.is_file()}
