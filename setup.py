"""Packaging: three folders at the top of the repository, one installed name.

The wheel installs ``mcpgw`` alone, with ``handlers`` and ``schemas`` inside it, so that nothing of a
user's (a ``handlers.py`` in the current folder, another distribution's ``schemas``) can shadow it.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mcpgw", "mcpgw.*"]), "mcpgw.pages", "mcpgw.handlers", "mcpgw.schemas"],
    package_dir={"mcpgw.handlers": "handlers", "mcpgw.schemas": "schemas"},
    package_data={"mcpgw": ["py.typed"], "mcpgw.pages": ["*"], "mcpgw.schemas": ["*.json"]},
)
