"""Requests and their replies: who waits for what, and what a broker pushes when the reply is there.

A request is a message that says who asked (REPLY_TO_CLIENT), under which number (CORRELATION_ID) and for how long it
matters (TTL, ms). Its consumer sends a reply, which the broker pushes to the client that asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable

from rocketq import properties as names
from rocketq.errors import RequestTimeout
from rocketq.message import Message, ReceivedMessage
from rocketq.properties import decode_properties, encode_properties
from rocketq.record import Record, pack_host
from rocketq.remoting.codes import ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import ReplyMessageHeader

log = logging.getLogger("rocketq.client")


class Requests:
    """The requests of a client that wait for their replies."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[ReceivedMessage]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def reply_to(
        self,
        message: Message,
        client_id: str,
        send: Callable[[float], Awaitable[object]],
        timeout: float,
        deadline: float,
    ) -> ReceivedMessage:
        """Make `message` a request, have it sent by `send(seconds)`, and wait for its reply.

        `timeout` in seconds, which end at `deadline` of the loop's clock. Raises RequestTimeout when none came by then,
        and what `send` raises.
        """
        loop = asyncio.get_running_loop()
        number = str(uuid.uuid4())
        message.properties[names.CORRELATION_ID] = number
        message.properties[names.REPLY_TO_CLIENT] = client_id
        message.properties[names.TTL] = str(int(timeout * 1000))
        future = self._waiting[number] = loop.create_future()
        try:
            await send(max(0.0, deadline - loop.time()))  # the reply may be here first
            return await asyncio.wait_for(future, max(0.0, deadline - loop.time()))
        except asyncio.TimeoutError:
            raise RequestTimeout(
                f"no reply to message {message.unique_id} of topic {message.topic} within {timeout:g} s"
            ) from None
        finally:
            del self._waiting[number]

    def replied(self, request: Command) -> bytes:
        """Hand a pushed reply to whoever waits for it; the answer for the broker."""
        header = request.header(ReplyMessageHeader)
        properties = decode_properties(header.properties or "")
        future = self._waiting.get(properties.get(names.CORRELATION_ID, ""))
        if future is None or future.done():
            log.info("a reply from %s came when nobody waited for it any more", header.born_host)
        else:
            future.set_result(_received(header, properties, bytes(request.body)))
        return encode_response(request, ResponseCode.SUCCESS)


def _received(header: ReplyMessageHeader, properties: dict[str, str], body: bytes) -> ReceivedMessage:
    """A reply in the shape of a message; it has no place in a queue."""
    properties[names.ARRIVE_TIME] = str(int(time.time() * 1000))
    return ReceivedMessage(
        Record(
            size=0,
            magic=0,
            body_crc=0,
            queue_id=header.queue_id,
            flag=header.flag,
            queue_offset=0,
            physical_offset=0,
            sys_flag=header.sys_flag,
            born_timestamp=header.born_timestamp,
            born_host=_packed(header.born_host),
            store_timestamp=header.store_timestamp,
            store_host=_packed(header.store_host),
            reconsume_times=header.reconsume_times or 0,
            prepared_transaction_offset=0,
            body=body,
            topic=header.topic,
            properties=encode_properties(properties),
        )
    )


def _packed(address: str) -> bytes:
    """A host as records have it; 0.0.0.0 for a name."""
    host, _, port = address.rpartition(":")
    try:
        return pack_host(host.strip("[]"), int(port))
    except ValueError:
        return bytes(8)
