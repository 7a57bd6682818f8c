"""The face of `ddn.basic`: `node` and `composition`."""
