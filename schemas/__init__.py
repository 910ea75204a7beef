"""JSON Schemas (2020-12) of everything that crosses the wire; read with ``importlib.resources``."""
