"""CommitLog storage: no network, no event loop."""
