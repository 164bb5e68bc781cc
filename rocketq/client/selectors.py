"""Which queue a message goes to: selector functions ``(queues, message, key) -> queue``.

The list holds every writable queue of the topic in order (topic, broker, id); an ordered send gives the same key
the same queue as long as the list stays the same.
"""

from __future__ import annotations

import itertools
import random as _random
from collections.abc import Callable, Sequence

from rocketq.hashing import java_hash
from rocketq.message import Message, MessageQueue

Selector = Callable[[Sequence[MessageQueue], Message, object], MessageQueue]


def hash_of(key: object) -> int:
    """Java's `hashCode` of a key: a string by its text, a number by its value, anything else by ``str(key)``."""
    if isinstance(key, bool):
        return 1231 if key else 1237
    if isinstance(key, int):
        if -0x8000_0000 <= key < 0x8000_0000:
            return key
        folded = (key ^ (key & 0xFFFF_FFFF_FFFF_FFFF) >> 32) & 0xFFFF_FFFF
        return folded - 0x1_0000_0000 if folded & 0x8000_0000 else folded
    return java_hash(key if isinstance(key, str) else str(key))


def by_hash(queues: Sequence[MessageQueue], message: Message, key: object) -> MessageQueue:
    """The queue of the key's hash, as the Java client's `SelectMessageQueueByHash` chooses it.

    Without a key the message's `sharding_key` counts. Raises ValueError when there is neither.
    """
    if key is None:
        key = message.sharding_key
        if key is None:
            raise ValueError(f"by_hash needs a key or a sharding_key to choose a queue of {message.topic}")
    value = abs(hash_of(key))
    return queues[0 if value == 0x8000_0000 else value % len(queues)]


_turn = itertools.count(_random.randrange(1 << 16))


def round_robin(queues: Sequence[MessageQueue], message: Message, key: object) -> MessageQueue:
    """The next queue in turn; the turn is shared by the whole process."""
    return queues[next(_turn) % len(queues)]


def random(queues: Sequence[MessageQueue], message: Message, key: object) -> MessageQueue:
    """Any queue."""
    return _random.choice(queues)
