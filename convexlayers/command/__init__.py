"""What `python -m convexlayers` does: one module per command."""
