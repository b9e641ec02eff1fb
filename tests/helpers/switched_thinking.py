"""Templates in which thinking can be switched off."""

from chat_templates import ending

EMPTY = "<think>\n\n</think>\n\n"

SWITCHED = ending("}}{% if enable_thinking is false %}{{ '" + EMPTY + "' }}{% endif %}{{ ''", "think>")
