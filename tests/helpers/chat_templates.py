"""Chat templates of real models, with the profile that each must give."""

from chat_tokenizer import CHATML

CHAT = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")

QWEN = ("<think>", "</think>", *CHAT)

HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")

USER = "{% for m in messages %}{% if m['role'] == 'user' %}"

STOP = "{% endif %}{% endfor %}"


def ending(tail: str, marks: str = "") -> str:
    """ChatML whose generation prompt ends in a piece of template. marks: what else the template says."""
    return CHATML.replace("assistant\n'", f"assistant\n' {tail}") + f"{{# {marks} #}}"


EMPTY = "{{ '<think>\n\n</think>\n\n' }}"

SWITCH = "{% if enable_thinking %}{{ '<think>\n' }}{% else %}" + EMPTY + "{% endif %}"

R1 = (
    USER
    + "{{ '<User>' + m['content'] }}"
    + STOP
    + "{% if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"
)

NANO = (
    USER + "{{ '<S>User\n' + m['content'].replace('/think', '') + '\n' }}" + STOP + "{{ '<S>Assistant\n<think>\n\n' }}"
)

GLM = USER + "{{ '<|user|>\n' + m['content'] }}" + STOP + "{{ '<|assistant|>' }}{# </think> enable_thinking #}"

GPT_OSS = (
    "{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '\n\nReasoning: ' }}"
    "{{ reasoning_effort | default('medium') }}{{ '<|end|>' }}" + USER + "{{ '<|start|>user<|message|>' + m['content'] "
    "+ '<|end|>' }}" + STOP + "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    "{# <|channel|>analysis #}"
)

GEMMA = (
    "{% if enable_thinking %}{{ '<|turn>system\n<|think|>\n<turn|>\n' }}{% endif %}" + USER + "{{ '<|turn>user\n' + "
    "m['content'] + '<turn|>\n' }}" + STOP + "{{ '<|turn>model\n' }}"
    "{% if not enable_thinking %}{{ '<|channel>thought\n<channel|>' }}{% endif %}"
)

MISTRAL = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '[/INST]' }}{% endfor %}"

GRANITE = (
    "{% if thinking %}{{ 'Write Here is my thought process: first. ' }}{% endif %}" + USER + "{{ m['content'] }}" + STOP
)

TOLD = "{% if thinking %}{{ 'Think first. ' }}{% endif %}" + CHATML + "{# <think> #}"

ASKED = "{% if enable_thinking %}{{ '<think>\n' }}{% endif %}{# <think> #}"

PROMPT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"

# name: markers that are tokens, template, profile, prompt for `2+2?`, what is said
CASES = {
    "Qwen3": (QWEN, ending("", "think> enable_thinking"), "qwen3", PROMPT + "<think>\n", "<think>, markers are tokens"),
    "Qwen3.5 that is off by default": (QWEN, ending(f"}}}}{SWITCH}{{{{ ''"), "qwen3", PROMPT + "<think>\n", "qwen3"),
    "Thinking-2507": (QWEN, ending("+ '<think>\n'"), "qwen3", PROMPT + "<think>\n", "qwen3"),
    "Instruct-2507": (QWEN, CHATML, "plain", PROMPT, "never uses"),
    "OLMo-3-Think": (CHAT, ending("+ '<think>'"), "think-tags", PROMPT + "<think>", "opens the thinking itself"),
    "R1-Distill": (("<think>", "</think>"), R1, "think-tags", "<User>2+2?<Assistant><think>\n", "markers are tokens"),
    "Nemotron Nano 2": ((), NANO, "think-tags", "<S>User\n2+2?\n<S>Assistant\n<think>\n\n", "markers are text"),
    "GLM-4.5": (("<|user|>",), GLM, "think-tags", "<|user|>\n2+2?<|assistant|><think>\n", "markers are text"),
    "EXAONE-Deep": (CHAT, ending("+ '<thought>\n'"), "think-tags", PROMPT + "<thought>\n", "<thought>"),
    "history only": (QWEN[:2], ending("", "</think>"), "think-tags", PROMPT + "<think>\n", "--profile plain"),
    "gpt-oss": (
        HARMONY,
        GPT_OSS,
        "harmony",
        "<|start|>system<|message|>Current date: 2026-01-01\n\nReasoning: medium<|end|><|start|>user<|message|>2+2?"
        "<|end|><|start|>assistant<|channel|>analysis<|message|>",
        "analysis channel",
    ),
    "Gemma 4": (
        ("<|channel>", "<channel|>", "<turn|>"),
        GEMMA,
        "gemma-channel",
        "<|turn>system\n<|think|>\n<turn|>\n<|turn>user\n2+2?<turn|>\n<|turn>model\n<|channel>thought\n",
        "<channel|>",
    ),
    "Magistral": (("[THINK]", "[/THINK]"), MISTRAL, "brackets", "[user]2+2?[/INST][THINK]", "[/THINK]"),
    "Granite 3.2": ((), GRANITE, "granite", "Write Here is my thought process: first. 2+2?", "thought process"),
    "Granite 3.3": (QWEN[:2], TOLD, "think-tags", "Think first. " + PROMPT + "<think>\n", "options thinking=True"),
    "Bielik": (QWEN[:2], CHATML + ASKED, "think-tags", PROMPT + "<think>\n", "options enable_thinking=True"),
    "Qwen2.5": (CHAT, CHATML, "plain", PROMPT, "no thinking markers"),
    "SmolLM2": (CHAT[:2], CHATML, "plain", PROMPT, "no thinking markers"),
}  # fmt: skip
