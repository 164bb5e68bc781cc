"""Transactions with our own client, the verbs of `java/Transactions.java`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from rocketq.client import AsyncProducer
from rocketq.message import Message, ReceivedMessage

Object = dict[str, Any]
COMMIT, ROLLBACK = "COMMIT_MESSAGE", "ROLLBACK_MESSAGE"


class Transactions:
    """What becomes of a message is said by its property `now`, and when a broker asks by `asked`."""

    def __init__(self) -> None:
        self.producers: dict[str, AsyncProducer] = {}
        #: How often brokers asked about a body.
        self.times: Counter[str] = Counter()
        self.verbs: dict[str, Callable[[Object], Awaitable[Any]]] = {
            "Transactions.send": self.send,
            "Transactions.asked": self.asked,
        }

    def check(self, message: ReceivedMessage) -> bool | None:
        text = message.body.decode()
        self.times[text] += 1
        verdict = message.properties.get("asked", "")
        if not verdict or (verdict.startswith("LATER_") and self.times[text] == 1):
            return None
        return verdict.removeprefix("LATER_") == COMMIT

    async def send(self, c: Object) -> str:
        """Sends a message with the body `text`; gives how that and the transaction ended."""
        key = c["group"] + c["namesrv"]
        if key not in self.producers:
            self.producers[key] = AsyncProducer(c["group"], c["namesrv"], check=self.check, heartbeat_interval=5)
            await self.producers[key].start()
        properties = {name: c[name] for name in ("now", "asked") if name in c}
        message = Message(c["topic"], c["text"].encode(), properties=properties)
        transaction = self.producers[key].transaction(message)
        await transaction.begin()
        if c["now"] == COMMIT:
            await transaction.commit()
        elif c["now"] == ROLLBACK:
            await transaction.rollback()
        assert transaction.result is not None
        return f"{transaction.result.status} {c['now']}"

    async def asked(self, c: Object) -> int:
        return self.times[c["text"]]

    async def close(self) -> None:
        for producer in self.producers.values():
            await producer.close()
