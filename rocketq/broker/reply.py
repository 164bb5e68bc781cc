"""Replies to requests (codes 324 and 325), pushed to whoever asked (code 326).

A request is an ordinary message that says who sent it, REPLY_TO_CLIENT. Its consumer sends the reply to the topic
`<cluster>_REPLY_TOPIC`; the broker hands it to that producer over the producer's own connection and waits for the
receipt. With `storeReplyMessageEnable` the reply is stored in the topic as well, whatever became of the push.
Codes and texts follow `ReplyMessageProcessor` of Apache 5.4.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from rocketq import properties as props
from rocketq.broker.batch import Batch, full_remark
from rocketq.broker.clients import Clients
from rocketq.broker.refusal import Refused
from rocketq.broker.send import Sender, SendHeader, SendHeaderV2
from rocketq.config import BrokerConfig
from rocketq.errors import InvalidMessage, RemotingError, StoreFull
from rocketq.message import offset_message_id
from rocketq.properties import decode_properties, encode_properties
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import ReplyMessageHeader
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Seconds that the one who asked has to take the reply.
TIMEOUT = 10.0
#: Bytes of replies that may be on their way at once; further ones are asked to come later.
MAX_BYTES = 64 * 1024 * 1024


class ReplyHeader(SendHeader):
    """A send's header with the fields that are passed on."""

    producer_group: str = msgspec.field(name="producerGroup", default="")
    unit_mode: bool = msgspec.field(name="unitMode", default=False)


class ReplyHeaderV2(SendHeaderV2):
    """The same with letters."""

    producer_group: str = msgspec.field(name="a", default="")
    unit_mode: bool = msgspec.field(name="k", default=False)


class Replies:
    """Hands replies on. `address` is where clients reach this broker, `host:port`."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        sender: Sender,
        batch: Batch,
        clients: Clients,
        address: Callable[[], str],
        clock_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._sender = sender
        self._batch = batch
        self._clients = clients
        self._address = address
        self._clock_ms = clock_ms
        self._on_their_way = 0

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.SEND_REPLY_MESSAGE: self._reply, RequestCode.SEND_REPLY_MESSAGE_V2: self._reply}

    async def _reply(self, connection: Connection, request: Command) -> Reply:
        header: ReplyHeader | ReplyHeaderV2
        v2 = request.code == RequestCode.SEND_REPLY_MESSAGE_V2
        header = request.header(ReplyHeaderV2) if v2 else request.header(ReplyHeader)
        body = bytes(request.body)
        ext = self._batch.ext
        try:
            if self._on_their_way and self._on_their_way + len(body) > MAX_BYTES:
                raise Refused(ResponseCode.SYSTEM_BUSY, "too many replies wait for those who asked")
            queue_id = self._sender.accept(connection, header, body)
        except Refused as refused:
            return encode_response(request, refused.code, refused.remark, ext)
        properties = decode_properties(header.properties or "")
        self._on_their_way += len(body)
        try:
            wrong = await self._push(connection, header, properties, body)
        finally:
            self._on_their_way -= len(body)
        code = ResponseCode.SUCCESS if wrong is None else ResponseCode.SYSTEM_ERROR
        if not self._config.store_reply_message_enable:
            place = {"msgId": "0", "queueId": str(queue_id), "queueOffset": "0"} if wrong is None else {}
            return encode_response(request, code, wrong, {**place, **ext})
        try:
            appended = self._store.append(
                header.topic,
                queue_id,
                body,
                header.properties or "",
                tag=properties.get(props.TAGS),
                unique_id=properties.get(props.UNIQ_KEY),
                keys=properties.get(props.KEYS),
                flag=header.flag,
                sys_flag=header.sys_flag,
                born_timestamp=header.born_timestamp,
                born_host=connection.peer_packed,
                store_host=self._batch.store_host,
                reconsume_times=header.reconsume_times or 0,
            )
        except StoreFull as error:
            return encode_response(request, ResponseCode.SERVICE_NOT_AVAILABLE, full_remark(error), ext)
        except InvalidMessage as error:
            return encode_response(request, ResponseCode.MESSAGE_ILLEGAL, str(error), ext)
        place = {
            "msgId": offset_message_id(self._batch.store_host, appended.physical_offset),
            "queueId": str(queue_id),
            "queueOffset": str(appended.queue_offset),
        }
        wait = properties.get(props.WAIT) != "false"
        self._batch.reply(connection, request, encode_response(request, code, wrong, {**place, **ext}), wait=wait)
        self._batch.end_and_flush(connection)
        return None  # answered when it is written

    async def _push(
        self,
        connection: Connection,
        header: ReplyHeader | ReplyHeaderV2,
        properties: dict[str, str],
        body: bytes,
    ) -> str | None:
        """Hand the reply to the one who asked; what went wrong, or None."""
        client_id = properties.get(props.REPLY_TO_CLIENT)
        if client_id is None:
            return f"reply message properties[{props.REPLY_TO_CLIENT}] is null"
        asking = self._clients.producer_connection(client_id)
        if asking is None:
            return f"push reply message fail, channel of <{client_id}> not found."
        now = self._clock_ms()
        push = ReplyMessageHeader(
            producer_group=header.producer_group,
            topic=header.topic,
            default_topic=header.default_topic,
            default_topic_queue_nums=header.default_topic_queue_nums,
            queue_id=header.queue_id,
            sys_flag=header.sys_flag,
            born_timestamp=header.born_timestamp,
            flag=header.flag,
            properties=encode_properties({**properties, props.PUSH_REPLY_TIME: str(now)}),
            reconsume_times=header.reconsume_times,
            unit_mode=header.unit_mode,
            born_host=connection.peer,
            store_host=self._address(),
            store_timestamp=now,
        )
        try:
            answer = await asking.call(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, push, body, TIMEOUT)
        except RemotingError as error:
            log.info("a reply did not reach client %s: %s", client_id, error)
            return f"push reply message to {client_id} fail: {error}"
        if answer.code != ResponseCode.SUCCESS:
            log.info("client %s did not take a reply: code %d %s", client_id, answer.code, answer.remark)
            return f"push reply message to {client_id} fail: it answered code {answer.code} {answer.remark or ''}"
        return None
