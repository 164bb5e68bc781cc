"""The NameServer: who serves which topic."""
