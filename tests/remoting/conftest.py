"""The fixtures of this directory; their helpers are in a module that tests can import by its name."""

from remoting_peers import certificates, run, server_tls

__all__ = ["certificates", "run", "server_tls"]
