"""The face of `ddn.pytorch`: see `node`."""
