"""Fields of a run's requests that its plan does not set, such as penalties: their types, ranges and engines."""

from collections.abc import Collection, Iterable, Mapping

from prunus.errors import PrunusError, nearest
from prunus.settings import Setting, misfit

# Defaults are the values that change nothing.
PRESENCE = Setting("presence_penalty", float, 0.0, "taken off logits of ids that occurred", at_least=-2, at_most=2)
FREQUENCY = Setting("frequency_penalty", float, 0.0, "the same, as often as they occurred", at_least=-2, at_most=2)
MIN_P = Setting("min_p", float, 0.0, "ids of a smaller share of the highest probability go", at_least=0, at_most=1)
REPETITION = Setting("repetition_penalty", float, 1.0, "divides logits of ids that occurred", above=0)

# Under the names of vLLM, which SGLang and others share.
COMMON = (MIN_P, PRESENCE, FREQUENCY, REPETITION)
# For each field a value with which draws of a few ids cannot stay the same, to test whether a server ignores it.
EXTREME: Mapping[str, float] = {
    "min_p": 1.0,
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "repetition_penalty": 2.0,
}
# Thinking budgets for the same test: one that ends the thinking at once, and one that short replies cannot reach.
EXTREME_BUDGETS = (1, 64)
# Of llama.cpp, by the sampler that uses them.
LLAMA_CPP: Mapping[str, tuple[Setting, ...]] = {
    "penalties": (
        Setting("repeat_penalty", float, 1.0, "divides logits of the last ids", above=0),
        Setting("repeat_last_n", int, None, "number of the last ids; -1: all", at_least=-1),
        PRESENCE,
        FREQUENCY,
    ),
    "dry": (
        Setting("dry_multiplier", float, 0.0, "strength of the penalty of repeated sequences", at_least=0),
        Setting("dry_base", float, None, "its growth with their length", at_least=1),
        Setting("dry_allowed_length", int, None, "longest sequence without a penalty", at_least=0),
        Setting("dry_penalty_last_n", int, None, "number of the last ids that are searched; -1: all", at_least=-1),
    ),
    "min_p": (MIN_P,),
}
# Names of the fields that backends take; more is known of a server's kind once it is reached.
OF_TRANSFORMERS = frozenset({"min_p", "presence_penalty", "repetition_penalty"})
OF_SERVERS = frozenset(sampler.name for sampler in COMMON)
OF_LLAMA_CPP = frozenset(sampler.name for settings in LLAMA_CPP.values() for sampler in settings)
KNOWN = {sampler.name: sampler for settings in (COMMON, *LLAMA_CPP.values()) for sampler in settings}
# Fields that the plan and the protocol set, under the names of any engine.
PLANNED = frozenset(
    {
        "best_of", "cache_prompt", "chat_template_kwargs", "detokenize", "dynatemp_range", "echo", "ignore_eos",
        "include_stop_str_in_output", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages",
        "min_tokens", "mirostat", "model", "n", "n_predict", "output_kind", "preserved_tokens", "prompt",
        "return_token_ids", "return_tokens", "return_tokens_as_token_ids", "samplers", "seed", "skip_special_tokens",
        "spaces_between_special_tokens", "stop", "stop_token_ids", "stream", "temperature", "top_k", "top_p",
    }
)  # fmt: skip


def checked(request: Mapping[str, object]) -> dict[str, float]:
    """The fields, sorted by name, with numbers of their type, so that equal settings are equal.

    Raises PrunusError that names a field which no backend knows or the plan sets, or whose value does not fit.
    """
    values = {}
    for name, value in sorted(request.items()):
        if name in PLANNED:
            raise PrunusError(f"the request field '{name}' is set by prunus, as the plan says: leave it out of request")
        if name not in KNOWN:
            raise PrunusError(f"the request field '{name}' is not known; {nearest(name, sorted(KNOWN))}")
        sampler = KNOWN[name]
        if wrong := misfit(name, value, sampler.type):
            raise PrunusError(f"of request, {wrong}")
        sampler.check(value)
        values[name] = sampler.type(value)
    return values


def check_taken(request: Iterable[str], who: str, taken: Collection[str]) -> None:
    """Raise PrunusError that names a field which an engine does not take."""
    for name in request:
        if name not in taken:
            raise PrunusError(f"{who} does not take the request field '{name}': it takes {', '.join(sorted(taken))}")
