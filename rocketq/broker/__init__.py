"""The Broker: one file a capability."""
