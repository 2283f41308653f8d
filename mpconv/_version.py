"""Which version this is: the package's metadata are made of it. Pure."""

__version__ = "0.1.0"
