"""What users must be able to rely on: one file per promise, each run on every engine of `engines.py`."""
