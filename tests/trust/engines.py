"""The engines that every promise is tested on: one more line is one more engine."""

ENGINES = [
    "native",
    "clarabel",
]
# Engines that refuse some cones: a test with such a cone is skipped for them, by that refusal and nothing else.
WITHOUT_SOME_CONES = {"native"}
