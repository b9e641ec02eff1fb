"""Find the model folder that the user names (a built-in model, a folder, or a hub id), and read its small files."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from prunus import progress
from prunus.disk import read_json, read_object
from prunus.errors import PrunusError
from prunus.recipes.drawing import PROFILE_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

TINY = "tiny"
BUILT_IN = (TINY, "tiny-moe")  # the reasoners inside the package: a dense model, and a mixture of experts
# Weights are read as safetensors only, because other formats can run code when they are read.
SMALL_PATTERNS = ["*.json", "*.txt", "*.jinja", "*.model", PROFILE_FILE]
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", *SMALL_PATTERNS]
HUB_PATTERNS += ["README.md", "LICENSE", "LICENSE.md", "NOTICE"]  # for the licence of what is made from the model
TEMPLATES = "additional_chat_templates"  # a folder
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
# Texts whose ids change if transformers replaces a tokenizer's own way of splitting words.
TOKENIZER_PROBES = ("<think>\nOkay", "\n\nhello", " 12345", "</think>\n\n**", "it's 3.5\u00a0km")
GGUF_SUFFIX = ".gguf"
GGUF_FILE = "model.gguf"  # weights in the form of llama.cpp
CALIBRATION = "calibration.jsonl"  # beside a pruned model: the tokens on which it was calibrated
MOST_IDS = 1 << 24  # of a tokenizer; the largest have a quarter of a million
MOST_OF_TEMPLATE = 1 << 19  # characters of a chat template; long ones have twenty thousand
UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}


def resolve(model: str | Path) -> Path:
    """The folder of a model, with its config.json and safetensors.

    model: `tiny` or `tiny-moe` (the reasoners inside the package; write ./tiny for a folder of that name), a folder, or
    a hub id such as org/name, which is downloaded into the hub's cache. Raises PrunusError if there is no such model.
    """
    folder = _find_folder("model", str(model), HUB_PATTERNS)
    check_folder(folder)
    return folder


def resolve_tokenizer(name: str) -> Path:
    """The folder with the tokenizer of a built-in model, a folder or a hub id; weights are not needed.

    Raises PrunusError if there is none.
    """
    folder = _find_folder("tokenizer", name, SMALL_PATTERNS)
    check_regular(folder)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise PrunusError(f"{folder} has no tokenizer (tokenizer.json); give the folder of the model's tokenizer")
    return folder


def typed_path(path: str | Path) -> Path:
    """A path that the user or a file names, with ~ expanded; PrunusError if the system cannot look it up."""
    try:
        expanded = Path(path).expanduser()
        expanded.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, no permission, no such user
        reason = getattr(error, "strerror", None) or error
        raise PrunusError(f"'{str(path)[:200]}' cannot be opened: {reason}") from error
    return expanded


def tiny_folder() -> Path:
    """The folder of the built-in dense reasoner."""
    return _built_in(TINY)


def is_built_in(folder: Path) -> bool:
    """Whether a folder is that of a built-in model."""
    return folder in map(_built_in, BUILT_IN)


def without_installation(text: str) -> str:
    """A text in which the folders of the built-in models are replaced by the models' names."""
    for name in BUILT_IN:
        text = text.replace(str(_built_in(name)), name)
    return text


def _built_in(name: str) -> Path:
    return Path(str(files("prunus"))) / "data" / name


def _find_folder(what: str, name: str, patterns: Sequence[str]) -> Path:
    """The folder of a built-in model, a folder or a hub id; of a hub id, files that match patterns are downloaded."""
    folder = _built_in(name) if name in BUILT_IN else typed_path(name)
    if folder.suffix == GGUF_SUFFIX and folder.is_file():
        if folder.name == GGUF_FILE and (folder.parent / "config.json").is_file():
            return folder.parent
        raise PrunusError(
            f"{folder} has no {GGUF_FILE} beside a config.json: evaluate it by --engine llama.cpp --tokenizer HUB-ID of"
            " the model that it is of"
        )
    if folder.exists():
        return folder
    if not is_hub_id(name):
        raise PrunusError(f"{what} '{name}' does not exist; give a folder, a hub id such as Qwen/Qwen3-0.6B, or tiny")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client raises errors of several libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        offline = " (is there no network?)" if isinstance(error, OSError | LocalEntryNotFoundError) else ""
        raise PrunusError(f"'{name}' is not a folder here and could not be downloaded{offline}: {reason}") from error


def is_hub_id(text: str) -> bool:
    """Whether text has the form org/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def hub_origin(folder: Path) -> dict[str, str]:
    """{"hub": id, "revision": commit} of a folder in the hub's cache, which has both in its path; else {}."""
    commit, snapshots, repository = folder.name, folder.parent.name, folder.parent.parent.name
    if snapshots != "snapshots" or not repository.startswith("models--"):
        return {}
    return {"hub": repository.removeprefix("models--").replace("--", "/"), "revision": commit}


def check_folder(folder: Path) -> None:
    """Raise PrunusError unless folder has a config.json and weights in safetensors, or in a GGUF file."""
    if not folder.is_dir():
        raise PrunusError(f"{folder} is a file; give the folder that holds config.json")
    if not (folder / "config.json").is_file():
        raise PrunusError(f"{folder} has no config.json; give the folder of a Hugging Face model")
    check_regular(folder)
    if any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.safetensors.index.json", GGUF_FILE)):
        return
    if any(path.suffix in UNSAFE_SUFFIXES for path in folder.iterdir()):
        raise PrunusError(f"{folder} has weights only as .bin or .pt, which can run code; convert them to safetensors")
    raise PrunusError(f"{folder} has no *.safetensors file; its weights are missing")


def check_regular(folder: Path) -> None:
    """Raise PrunusError if a folder holds a pipe, a socket or a device, for which a reader might wait for ever."""
    for path in (*folder.glob("*"), *folder.glob(f"{TEMPLATES}/*")):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise PrunusError(f"{path} is not a regular file but a pipe, a socket or a device: remove it")


def load_config(folder: Path) -> "PreTrainedConfig":
    """The transformers configuration of a model folder; PrunusError if transformers does not know or accept it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    config = read_object(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise PrunusError(f"{folder}: model_type '{model_type}' needs its own code, which prunus never runs")
        written = config.get("transformers_version")
        by = f"; config.json was written by {written}" if isinstance(written, str) else ""
        raise PrunusError(
            f"{folder}: model_type '{model_type}' is not known to transformers {version('transformers')}; a newer one"
            f" may know it (pip install -U transformers{by})"
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers' checks of fields raise many kinds of errors
        raise PrunusError(f"{folder / 'config.json'} is not accepted by transformers: {one_line(error)}") from error


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder; PrunusError if there is none or it cannot be loaded."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_regular(folder)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise PrunusError(f"{folder} has no tokenizer (tokenizer.json); copy it from the original model")
    check_ids(folder)
    try:
        has_file = (folder / "tokenizer.json").is_file()
        by_file = has_file and not is_known_type(folder)  # AutoTokenizer chooses by the type of the model
        kind = PreTrainedTokenizerFast if by_file else AutoTokenizer
        tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.encode("a")  # settings of a wrong type show only here
        if has_file and not by_file and differs_from_file(tokenizer, folder):
            say_once(
                f"warning: transformers {version('transformers')} does not load the tokenizer of {folder} as its"
                " tokenizer.json has it; the file is used"
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        check_templates(tokenizer.chat_template, folder)
        return tokenizer
    except PrunusError:
        raise
    except Exception as error:  # the libraries below raise many kinds of errors
        if "trust_remote_code" in str(error):
            raise PrunusError(f"the tokenizer in {folder} needs its own code, which prunus never runs") from error
        raise PrunusError(f"the tokenizer in {folder} cannot be loaded: {one_line(error)}") from error


def check_ids(folder: Path) -> None:
    """Raise PrunusError if a file of a tokenizer has an id of MOST_IDS or more, for which libraries would take memory.

    Other faults of these files are left to the libraries.
    """
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file() or not isinstance(content := read_json(path), dict):
            continue
        if name == "tokenizer_config.json":
            decoder = content.get("added_tokens_decoder")
            ids = [int(key) for key in decoder if key.isdecimal()] if isinstance(decoder, dict) else []
        elif name == "tokenizer.json":
            model, added = content.get("model"), content.get("added_tokens")
            vocabulary = model.get("vocab") if isinstance(model, dict) else None
            ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
            ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
        else:
            ids = [*content.values()]
        for number in ids:
            if isinstance(number, int | float) and number >= MOST_IDS:
                raise PrunusError(f"{path} has a token with id {number}, more than any vocabulary has: fetch it again")


def check_templates(templates: object, folder: Path) -> None:
    """Raise PrunusError if a chat template is longer than MOST_OF_TEMPLATE; reading it would take minutes.

    templates: a text, or several by name.
    """
    for text in templates.values() if isinstance(templates, Mapping) else [templates]:
        if len(str(text)) > MOST_OF_TEMPLATE:
            raise PrunusError(
                f"the chat template in {folder} has {len(str(text)):,} characters, more than the {MOST_OF_TEMPLATE:,}"
                " that are read: give the model's own"
            )


def lacks_chat_template(folder: Path) -> bool:
    """Whether a folder has a tokenizer whose files have no chat template; False where that cannot be told from them."""
    path = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not path.is_file():
        return False
    beside = any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json", TEMPLATES))
    return not beside and not read_object(path).get("chat_template")


def is_known_type(folder: Path) -> bool:
    """Whether the folder has no config.json, or one of a type of model that transformers knows."""
    from transformers import CONFIG_MAPPING

    path = folder / "config.json"
    return not path.is_file() or read_object(path).get("model_type") in [*CONFIG_MAPPING]


def differs_from_file(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> bool:
    """Whether a tokenizer encodes a probe to other ids than the tokenizer.json that it was loaded from."""
    from tokenizers import Tokenizer

    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return any(
        tokenizer.encode(text, add_special_tokens=False) != file.encode(text, add_special_tokens=False).ids
        for text in TOKENIZER_PROBES
    )


@cache
def say_once(text: str) -> None:
    """Print a message unless it was printed before."""
    progress.say(text)


def load_end_ids(folder: Path, vocabulary: int) -> frozenset[int]:
    """The token ids that end a text, from eos_token_id of generation_config.json; empty if there are none.

    vocabulary: the number of token ids; larger ids are left out, since the model cannot sample them. Raises PrunusError
    if eos_token_id is neither a token id nor a list of them.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return frozenset()
    value = read_object(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if type(token) is not int or token < 0:
            raise PrunusError(f"{path}: eos_token_id must be a token id or a list of them, not {str(value)[:100]}")
    return frozenset(token for token in ids if token < vocabulary)


def one_line(error: Exception) -> str:
    """An error's message on one line; without a message, the name of its class."""
    return " ".join(str(error).split()) or type(error).__name__
