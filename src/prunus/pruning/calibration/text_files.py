"""Reading text, messages and token ids from files, for calibration and perplexity."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus.checkpoint.chat_template import DATE, TemplateError, dated, rendered, template_of
from prunus.checkpoint.resolve import lacks_chat_template, load_tokenizer, one_line
from prunus.errors import PrunusError, unreadable
from prunus.plain_data import parse_json
from prunus.questions import held_out_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prunus.checkpoint.model_folder import ModelFolder

KINDS = ("text", "messages", "token_ids")


class JsonLine(NamedTuple):
    """One line of a JSONL file: its place for messages, kind (one of KINDS), value of that key, and all keys."""

    place: str
    kind: str
    value: Any
    row: Mapping[str, Any]


def read_text(path: Path) -> str:
    """The content of a text file; raises PrunusError if it cannot be read or is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise unreadable(str(path), error) from error
    except UnicodeDecodeError as error:
        raise PrunusError(f"{path} cannot be read as UTF-8 text: {one_line(error)}") from error


def read_jsonl(path: Path, kinds: Sequence[str] = KINDS) -> list[JsonLine]:
    """The lines of a JSONL file, which must all be of one kind; PrunusError names the file and line of a bad entry."""
    lines: list[JsonLine] = []
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = parse_json(text)
        except ValueError as error:
            raise PrunusError(f"{place}: not JSON ({error})") from error
        kind = next((kind for kind in kinds if isinstance(row, dict) and kind in row), None)
        if kind is None or not _well_formed(kind, row[kind]):
            wanted = " or ".join(f'{{"{kind}": ...}}' for kind in kinds)
            raise PrunusError(f"{place}: expected {wanted}, with text, messages or integers in it")
        if lines and kind != lines[0].kind:
            raise PrunusError(f"{place}: '{kind}' after '{lines[0].kind}'; keep one kind per file")
        prompt = row.get("prompt_tokens", 0)
        if kind == "token_ids" and not (type(prompt) is int and 0 <= prompt <= len(row[kind])):
            raise PrunusError(f"{place}: prompt_tokens {prompt} is not between 0 and {len(row[kind])}")
        lines.append(JsonLine(place, kind, row[kind], row))
    if not lines:
        raise PrunusError(f"{path} is empty; give at least one line")
    return lines


def _well_formed(kind: str, value: object) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if not isinstance(value, list) or not value:
        return False
    if kind == "token_ids":
        return all(type(token) is int for token in value)
    return all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in value)


def check_ids(lines: Sequence[JsonLine], vocabulary: int) -> None:
    """Raise PrunusError if a token id is not in the vocabulary."""
    for line in lines:
        if (wrong := next((token for token in line.value if not 0 <= token < vocabulary), None)) is not None:
            raise PrunusError(f"{line.place}: token id {wrong} is not in the vocabulary of {vocabulary}")


def check_text(where: str, text: str) -> None:
    """Raise PrunusError where a text holds a question of a built-in evaluation set, as far as held_out_in finds it."""
    if name := held_out_in(text):
        raise held_out_error(where, name)


def held_out_error(where: str, name: str) -> PrunusError:
    """The error of calibration that holds a question of an evaluation set."""
    return PrunusError(
        f"{where}: holds a question of the evaluation set {name}; a model must not be calibrated on what measures it, "
        "so take it out"
    )


def check_readable(path: Path, folder: Path, kinds: Sequence[str] = KINDS) -> list[JsonLine] | str:
    """The lines of a .jsonl file, or the text of another; PrunusError if a model's tokenizer cannot take them.

    folder: of the model. Its tokenizer is not loaded.
    """
    if path.suffix != ".jsonl" and "token_ids" not in kinds[:1]:
        return read_text(path)
    lines = read_jsonl(path, kinds)
    if lines[0].kind == "messages" and lacks_chat_template(folder):
        raise no_template(path, folder)
    return lines


def no_template(path: Path, folder: Path) -> PrunusError:
    """The error of messages for a model without a chat template."""
    return PrunusError(f"{path} holds messages, but {folder} has no chat template; give text or token ids")


def encoder(source: "ModelFolder") -> Callable[[str], list[int]]:
    """A function from text to token ids, including the special tokens that the model's tokenizer adds."""
    tokenizer = load_tokenizer(source.folder)
    return lambda text: _encoded(tokenizer, text, source)


def _encoded(tokenizer: "PreTrainedTokenizerBase", text: str, source: "ModelFolder", special: bool = True) -> list[int]:
    """The token ids of a text; PrunusError where the model has no embedding for an id."""
    ids: list[int] = tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"]
    check_ids([JsonLine(f"the tokenizer of {source.folder}", "token_ids", ids, {})], source.vocabulary)
    return ids


def render_chats(path: Path, lines: Sequence[JsonLine], source: "ModelFolder") -> tuple[list[list[int]], list[str]]:
    """Token ids of each line's messages in the model's chat template, and a warning if the template drops thinking.

    Raises PrunusError if there is no template or if it rejects a line.
    """
    tokenizer = load_tokenizer(source.folder)
    if (template := template_of(tokenizer)) is None:
        raise no_template(path, source.folder)
    texts: list[str] = []
    try:
        texts.extend(rendered(tokenizer, [line.value for line in lines], chat_template=dated(template, DATE)))
    except TemplateError as error:
        raise PrunusError(f"{lines[len(texts)].place}: the chat template rejects it: {error}") from error
    documents = [_encoded(tokenizer, text, source, special=False) for text in texts]
    pairs = zip(texts, lines, strict=True)
    dropped = sum(any(thought not in text for thought in map(_thinking, line.value)) for text, line in pairs)
    warning = (
        f"{path}: the chat template drops the thinking of {dropped} of {len(lines)} lines; give token ids to keep it"
    )
    return documents, [warning] if dropped else []


def _thinking(message: dict[str, object]) -> str:
    """The thinking in a message, between its <think> marks; empty if it has none."""
    before, close, _ = str(message["content"]).partition("</think>")
    return before.removeprefix("<think>").strip() if close else ""
