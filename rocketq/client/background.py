"""What a blocking producer cannot do in its callers' threads: take replies and questions when they
come, send traces when due.

An asyncio producer does it, in a thread that begins when it is first needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence

from rocketq.client.producer import AsyncProducer
from rocketq.client.sending import Outgoing, SendResult
from rocketq.message import Message, ReceivedMessage
from rocketq.remoting.headers import EndTransactionHeader

#: Seconds that the thread has to end.
GOODBYE = 20.0


class Background:
    """`producer`, not started, in a thread of its own. All methods are for other threads."""

    def __init__(self, producer: AsyncProducer) -> None:
        self._producer = producer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rocketq-background", daemon=True)
        self._thread.start()
        self._starting = asyncio.run_coroutine_threadsafe(producer.start(), self._loop)

    def request(self, message: Message, timeout: float) -> ReceivedMessage:
        """As `AsyncProducer.request`."""
        self._starting.result()
        return asyncio.run_coroutine_threadsafe(
            self._producer.request(message, timeout=timeout), self._loop
        ).result()

    def introduce(self, topic: str) -> None:
        """As `AsyncProducer.introduce`."""
        self._starting.result()
        asyncio.run_coroutine_threadsafe(self._producer.introduce(topic), self._loop).result()

    def sent(
        self,
        outgoing: Outgoing,
        results: Sequence[SendResult],
        ext: Mapping[str, str],
        address: str,
        seconds: float,
    ) -> None:
        """As `Tracer.sent`; at once."""
        tracer = self._producer.tracer
        assert tracer is not None
        with contextlib.suppress(RuntimeError):  # it was closed meanwhile
            self._loop.call_soon_threadsafe(tracer.sent, outgoing, results, ext, address, seconds)

    def recalled(self, topic: str, message_id: str) -> None:
        """As `Tracer.recalled`; at once."""
        tracer = self._producer.tracer
        assert tracer is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(tracer.recalled, topic, message_id)

    def ended(self, half: Message, header: EndTransactionHeader, address: str) -> None:
        """As `Tracer.ended`; at once."""
        tracer = self._producer.tracer
        assert tracer is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(tracer.ended, half, header, address)

    def close(self) -> None:
        """Sends the last traces, ends producer and thread."""
        self._starting.result(GOODBYE)
        asyncio.run_coroutine_threadsafe(self._producer.close(), self._loop).result(GOODBYE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GOODBYE)
        self._loop.close()
