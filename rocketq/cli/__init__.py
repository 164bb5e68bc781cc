"""The `rocketq` command."""
