"""The engines that every promise is tested on: one more line is one more engine."""

ENGINES = [
    "native",
    "clarabel",
]
