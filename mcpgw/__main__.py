"""``python -m mcpgw``: the same door as the ``mcpgw`` command."""

from mcpgw.cli import main

if __name__ == "__main__":
    main()
