"""Profiles: the exact strings that open, cut and close the thinking of a model family, and their TOML files.

The TOML files in this folder are the built-in profiles. detection.py chooses one for a model by its chat template;
markers.py renders the template and encodes the profile's strings with the tokenizer. control.py switches the thinking
off, or lets the engine or the model keep the budget. catalogue.py is the content of `prunus profiles`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from prunus import plugins
from prunus.checkpoint.chat_template import DATE
from prunus.errors import PrunusError, nearest, unreadable
from prunus.evaluation.requests import Sampling
from prunus.plain_data import LineNumbers, StoredData, parse_toml
from prunus.recipes.drawing import PROFILE_FILES, Mode
from prunus.recipes.eval import check_budgets
from prunus.settings import check_settings, hints_of, misfit

FORMAT = 1
LEGACY_ANSWER_TOKENS = 32_768
MOST_BYTES = 64 * 1024  # maximum size of a profile's file, and of a file with a system prompt
CHOICES = {"match": ("auto", "token", "text"), "template_opens": ("auto", "yes", "no")}
# Arguments of apply_chat_template that are not passed to the template.
NOT_TEMPLATE_OPTIONS = (
    "add_generation_prompt", "chat_template", "continue_final_message", "messages", "tokenize", "tools",
)  # fmt: skip
PROBLEM = "{problem}"  # stands for the problem in the text of a prompt


def of_file(table: str, key: str, stored: Literal["always", "changed", "never"] = "always", **more: Any) -> Any:
    """A field of Profile. table, key: its place in the file; both empty for [template]. more: of dataclasses.field.

    stored: whether the plan of a run contains the field: `always`; `changed`: only if it differs from its default, so
    that ids of runs do not depend on a field that few profiles set; `never`: its effects are stored instead.
    """
    return field(metadata={"table": table, "key": key, "stored": stored}, **more)


@dataclass(frozen=True)
class Profile:
    """The strings and defaults of a model family.

    thinking_start: appended to the chat template's generation prompt, unless the template opens the thinking itself.
    think_stops, answer_stops: markers that end a phase. Tokens that end the model's turn are added to both: those of
        generation_config.json; if answer_stops is empty, those of all files of the model (`end_ids` in markers.py).
    match: `token`: markers must be single tokens; `text`: they are searched in the text; `auto`: single tokens are
        matched by id, other markers in the text.
    template_opens: whether the rendered prompt ends in an opened thinking; after a profile is fitted to a model
        (detection.py), `yes` means that thinking_start is not appended.
    budgets: thinking budgets of evaluations that name none; empty: those of EvalPlan.
    natural_closing: follows the thinking text if the model ended it. forced_closing: follows it if the budget ended it.
    answer_in_chain: for models without thinking markers: a chain that the model ended is the answer, and nothing is
        appended. think_stops then end the chain, and are texts only.
    forced_break, wait_break: inserted before forced_closing and wait unless the thinking text ends in a newline (an
        empty text does not). answer_lead: the end of forced_closing that is part of the answer's text.
    answer_banned: markers that must not occur in an answer in mode strict. strip: strings that are removed from both
        ends of an answer before it is graded. wait: replaces a suppressed stop.
    answer_tokens, choice_answer_tokens: caps on the answer in mode strict; the second is for multiple choice.
    temperature, top_p, top_k: default sampling settings; temperature 0 is greedy, top_k 0 is off. sampling_from_model:
        whether those of the model's generation_config.json take precedence.
    enable_thinking, template: options of the chat template; None is not passed. system: the system prompt, if any.
    model_system_file: a file in the model's folder with the system prompt. date: the date for the chat template.
    prompt: the text of the whole prompt with PROBLEM in it, for models without a chat template; empty: the template's.
    off_template: options of the chat template that switch the thinking off; those that a template does not mention are
        not passed. off_block: an empty block of thinking, which is appended if no option does so (control.py).
    native_engine, native_template, native_efforts: one of the ways in which engine or model keep a budget themselves
        (control.py): whether an engine can end the thinking, by a field of its own; the option of the chat template
        that takes a number of tokens; or the numbers of tokens that stand for the levels of `reasoning_effort`.
    """

    name: str = of_file("", "", "never")
    thinking_start: str = of_file("think", "start")
    think_stops: tuple[str, ...] = of_file("think", "stops")
    natural_closing: str = of_file("close", "natural")
    forced_closing: str = of_file("close", "forced")
    answer_stops: tuple[str, ...] = of_file("answer", "stops")
    answer_banned: tuple[str, ...] = of_file("answer", "banned")
    forced_break: str = of_file("close", "forced_break", default="")
    wait: str = of_file("think", "wait", default="Wait")
    wait_break: str = of_file("think", "wait_break", default="")
    answer_lead: str = of_file("close", "answer_lead", default="")
    answer_tokens: int = of_file("answer", "tokens", "never", default=1024)
    choice_answer_tokens: int = of_file("answer", "choice_tokens", "never", default=512)
    temperature: float = of_file("sampling", "temperature", "never", default=0.6)
    top_p: float = of_file("sampling", "top_p", "never", default=0.95)
    top_k: int = of_file("sampling", "top_k", "never", default=0)
    enable_thinking: bool | None = None
    match: str = of_file("think", "match", "never", default="auto")
    template_opens: str = of_file("think", "template_opens", "changed", default="auto")
    budgets: tuple[int, ...] = of_file("think", "budgets", "never", default=())
    answer_in_chain: bool = of_file("close", "answer_in_chain", "changed", default=False)
    strip: tuple[str, ...] = of_file("answer", "strip", "changed", default=())
    sampling_from_model: bool = of_file("sampling", "from_model", "never", default=False)
    template: Mapping[str, Any] = of_file("", "", "changed", default_factory=dict, hash=False)
    system: str = of_file("", "", "changed", default="")
    model_system_file: str = of_file("", "", "never", default="")
    date: str = of_file("", "", "changed", default=DATE)
    off_template: Mapping[str, Any] = of_file("off", "template", "never", default_factory=dict, hash=False)
    off_block: str = of_file("off", "block", "never", default="")
    native_engine: bool = of_file("native", "engine", "never", default=False)
    native_template: str = of_file("native", "template", "never", default="")
    native_efforts: Mapping[str, int] = of_file("native", "efforts", "never", default_factory=dict, hash=False)
    prompt: str = of_file("prompt", "text", "changed", default="")

    def __post_init__(self) -> None:
        check_settings(self)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise PrunusError(f"{name} must be {' or '.join(choices)}, not '{getattr(self, name)}'")
        for text in (*self.think_stops, *self.answer_stops, *self.answer_banned, *self.strip):
            if not text.strip():
                raise PrunusError("a marker is empty or has only blanks")
        for stop in self.think_stops:
            if stop in self.thinking_start and self.match != "token":
                raise PrunusError(f"the stop '{stop}' is a part of the start '{self.thinking_start}'")
        if self.answer_in_chain and self.think_stops and self.match != "text":
            raise PrunusError(
                "answer_in_chain needs `stops = []`, since after an end of thinking the answer is separate, or texts"
                ' at which the chain ends (`match = "text"`)'
            )
        if self.prompt:
            self._check_prompt()
        if self.answer_in_chain and (self.off_template or self.off_block):
            raise PrunusError("[off] needs a profile whose thinking has markers, not `answer_in_chain = true`")
        if not self.answer_in_chain and not self.think_stops:
            raise PrunusError("`stops` of [think] is empty, which needs `answer_in_chain = true`")
        if not self.forced_closing.endswith(self.answer_lead):
            raise PrunusError(f"answer_lead '{self.answer_lead}' is not the end of forced '{self.forced_closing}'")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise PrunusError("temperature must be 0 or more, top_p in (0, 1], and top_k 0 or more")
        if self.budgets:
            check_budgets(self.budgets)
        if self.answer_tokens < 1 or self.choice_answer_tokens < 1:
            raise PrunusError("tokens and choice_tokens of [answer] must be 1 or more")
        for table, options in (("template", self.template), ("off", self.off_template)):
            for key in options:
                if key in NOT_TEMPLATE_OPTIONS:
                    raise PrunusError(f"'{key}' of [{table}] is set by prunus")
        if sum(map(bool, (self.native_engine, self.native_template, self.native_efforts))) > 1:
            raise PrunusError("[native] takes one of engine, template and efforts")
        if any(type(tokens) is not int or tokens < 0 for tokens in self.native_efforts.values()):
            raise PrunusError("efforts of [native] must be numbers of tokens, such as { low = 1024, high = 16384 }")
        if self.off_block and not any(stop in self.off_block for stop in self.think_stops):
            raise PrunusError(f"the block {self.off_block!r} of [off] does not end the thinking")

    def _check_prompt(self) -> None:
        if self.prompt.count(PROBLEM) != 1:
            raise PrunusError(f"text of [prompt] needs {PROBLEM} once, where the problem is to stand")
        if self.thinking_start or self.template or self.system or self.model_system_file:
            raise PrunusError("[prompt] has the whole text, so `start` of [think] must be empty, and [template], too")
        if self.off_template or self.off_block or self.native_engine or self.native_template or self.native_efforts:
            raise PrunusError("[prompt] is for models without a chat template, so there is no [off] and no [native]")

    def strings(self) -> dict[str, object]:
        """Stored: all settings that affect the text, in the plan, of which run ids are hashes."""
        settings = dict[str, object]()
        for setting in fields(self):
            value, stored = getattr(self, setting.name), setting.metadata.get("stored", "always")
            default = setting.default if setting.default_factory is MISSING else setting.default_factory()
            if stored == "always" or (stored == "changed" and value != default):
                settings[setting.name] = list(value) if isinstance(value, tuple) else value
        return settings

    def closed_by(self, closing: str) -> "Profile":
        """This profile with another forced closing. Raises PrunusError if the text has no marker that ends thinking."""
        if self.think_stops and not any(stop in closing for stop in self.think_stops):
            raise PrunusError(
                f"the closing {closing!r} does not end the thinking: it needs {' or '.join(self.think_stops)}"
            )
        lead = self.answer_lead if closing.endswith(self.answer_lead) else ""
        return replace(self, forced_closing=closing, answer_lead=lead)

    def template_options(self) -> dict[str, Any]:
        """Keyword arguments for the chat template."""
        thinking = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return thinking | dict(self.template)

    def answer_cap(self, kind: str, mode: Mode) -> int:
        """Cap in tokens on an answer of this kind (`choice` is multiple choice)."""
        if mode == "legacy":
            return LEGACY_ANSWER_TOKENS
        return self.choice_answer_tokens if kind == "choice" else self.answer_tokens

    @property
    def sampling(self) -> Sampling:
        """Its sampling settings."""
        return Sampling(self.temperature, self.top_p, self.top_k)


@dataclass(frozen=True, kw_only=True)
class TemplateTable(StoredData):
    """The table [template] of a profile's file, whose other keys are options of the chat template."""

    enable_thinking: bool | None = None
    system: str | None = None
    system_file: str | None = None
    model_system_file: str = ""
    date: Any = DATE


# table of the file -> key in it -> field of Profile
KEYS: dict[str, dict[str, str]] = {
    table: {
        setting.metadata["key"]: setting.name for setting in fields(Profile) if setting.metadata.get("table") == table
    }
    for table in ("think", "close", "answer", "prompt", "off", "native", "sampling")
}


def read_profile(path: Path) -> Profile:
    """The profile in a TOML file. Raises PrunusError, with the file's name and the line, where the file is wrong.

    `extends` names a built-in profile, whose values apply where the file has none. A table [template], even an empty
    one, replaces that of the built-in profile.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PrunusError(f"the file is larger than {MOST_BYTES // 1024} KiB")
        text = path.read_text("utf-8")
        values = _values(path, text)
        for setting in fields(Profile):
            if setting.default is setting.default_factory is MISSING and setting.name not in values:
                raise PrunusError(f"'{setting.metadata['key']}' is missing in [{setting.metadata['table']}]")
        return Profile(**values)
    except OSError as error:
        raise unreadable(f"the profile '{path}'", error) from error
    except (PrunusError, ValueError) as error:  # ValueError: not TOML, or not UTF-8
        raise PrunusError(f"profile {path}: {error}") from error


def _values(path: Path, text: str) -> dict[str, Any]:
    """{field of Profile: value} of a profile file, with the values of the built-in profile that it extends.

    Inherited values for thinking switched off are left out where they do not fit the markers of this profile.
    """
    data = parse_toml(text)
    if data.pop("format", None) != FORMAT:
        raise PrunusError(f"the first line must be `format = {FORMAT}`")
    base = data.pop("extends", None)
    if base is not None and base not in PROFILE_FILES:
        raise PrunusError(f"extends '{base}', which is no built-in profile; there are {', '.join(PROFILE_FILES)}")
    result = {} if base is None else _values(PROFILE_FILES[base], PROFILE_FILES[base].read_text("utf-8"))
    result["name"] = data.pop("name", path.stem)
    lines = LineNumbers(text)

    def wrong_at(table: str, key: str, message: str) -> PrunusError:
        line = lines.of(table, key)
        return PrunusError(message if line is None else f"line {line}: {message}")

    for table, values in data.items():
        if table not in (*KEYS, "template") or not isinstance(values, Mapping):
            known = [f"[{name}]" for name in (*KEYS, "template")]
            raise wrong_at(table, "", f"'{table}' is none of the tables of a profile: {', '.join(known)}")
        if table == "template":
            result |= _template_values(path, values)
            continue
        for key, value in values.items():
            if key not in KEYS[table]:
                known = nearest(key, KEYS[table], "known keys are")
                raise wrong_at(table, key, f"'{key}' is not known in [{table}]; {known}")
            if key == "stops" and value == "auto":
                value = []
            if wrong := misfit(key, value, hints_of(Profile)[KEYS[table][key]]):
                raise wrong_at(table, key, wrong)
            result[KEYS[table][key]] = value
    if "off" not in data:  # what the base says applies only as far as it fits this profile's own markers
        if not any(stop in result.get("off_block", "") for stop in result.get("think_stops", ())):
            result.pop("off_block", None)
        if result.get("answer_in_chain"):
            result.pop("off_template", None)
    return result


def _template_values(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """{field of Profile: value} of a table [template]."""
    table = TemplateTable.of(values)
    if sum(key in values for key in ("system", "system_file", "model_system_file")) > 1:
        raise PrunusError("[template] takes one of system, system_file and model_system_file")
    system = table.system or ""
    if (name := table.system_file) is not None:
        if Path(name).name != name:
            raise PrunusError(f"system_file '{name}' must be a file beside the profile")
        system = read_system(path.parent / name)
    return {
        "enable_thinking": table.enable_thinking,
        "template": {key: value for key, value in values.items() if key not in TemplateTable.__annotations__},
        "system": system,
        "model_system_file": table.model_system_file,
        "date": str(table.date),
    }


def read_system(path: Path) -> str:
    """The system prompt in a file."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PrunusError(f"{path} is larger than {MOST_BYTES // 1024} KiB")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise PrunusError(f"{path} cannot be read: {error}") from error


def _readable() -> Iterator[tuple[str, Profile]]:
    """Yield name and profile of each file; wrong files of other packages are left out."""
    for name, path in PROFILE_FILES.items():
        package = plugins.origin(plugins.PROFILES, name)
        try:
            yield name, replace(read_profile(path), name=name)
        except PrunusError as error:
            if package is None:
                raise
            plugins.leave_out(plugins.PROFILES, name, package, error)


PROFILES: dict[str, Profile] = dict(_readable())
