"""Several processes that are one gateway: `docs/workers.md` says how they share what they share."""
