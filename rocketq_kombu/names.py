"""Kombu's names as RocketMQ's: a queue is a topic and a consumer group of the same name.

Topics may have letters, digits, ``_``, ``-``, ``|`` and ``%``. What else a queue's name has is written as ``%XX`` for
each byte of its UTF-8; ``|`` stands between the virtual host and the name, and before what belongs to a queue.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from rocketq.names import retry_topic

#: Behind a queue's topic: the companion topic for messages with a `sharding_key`, popped in order. A broker gives one
#: of its queues to one consumer at a time, one message after the other.
KEYED = "|keyed"

_OTHER = re.compile(rb"[^A-Za-z0-9_-]")


def escape(name: str) -> str:
    """`name` with everything but letters, digits, ``_`` and ``-`` as ``%XX``."""
    return _OTHER.sub(lambda found: b"%%%02X" % found[0][0], name.encode()).decode()


def unescape(text: str) -> str:
    """The name that was escaped."""
    return unquote(text)


def topic_of(virtual_host: str, queue: str) -> str:
    """The topic, and the group, of a queue."""
    return f"{prefix_of(virtual_host)}{escape(queue)}"


def prefix_of(virtual_host: str) -> str:
    """What the names of a virtual host's topics begin with; nothing for the default one, ``/``."""
    host = virtual_host.strip("/")
    return f"{escape(host)}|" if host else ""


def sources_of(topic: str) -> tuple[str, str, str]:
    """The topics that a queue's consumers read, if they exist: its own, the companion, and the one where
    `rocketq replay` puts messages for its group."""
    return topic, topic + KEYED, retry_topic(topic)
