"""RocketMQ for Python: server, client and worker on Apache RocketMQ's wire protocol."""

__version__ = "0.1.0"
