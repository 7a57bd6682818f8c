"""Faces of other packages on this library: import the module that bears the package's name."""
