"""Questions that only a running consumer can answer: passed on to it, and its answer back (codes 307, 309, 223).

An operator asks the broker, because consumers listen nowhere; the broker asks over the consumer's own connection.
"""

from __future__ import annotations

import asyncio
import logging

from rocketq import javajson
from rocketq.broker.clients import Clients, Member
from rocketq.errors import InvalidMessage, RemotingError, RequestTimeout
from rocketq.message import parse_offset_message_id
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import (
    ConsumeMessageDirectlyHeader,
    GetConsumerRunningInfoHeader,
    GetConsumerStatusHeader,
)
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

log = logging.getLogger("rocketq.broker")

#: Seconds that a consumer has for its answer; a message that it consumes on demand may take it so long.
TIMEOUT, STATUS_TIMEOUT = 10.0, 5.0


class Forward:
    """Asks consumers."""

    def __init__(self, store: MessageStore, clients: Clients) -> None:
        self._store = store
        self._clients = clients

    def handlers(self) -> dict[int, Handler]:
        return {
            RequestCode.GET_CONSUMER_RUNNING_INFO: self._running_info,
            RequestCode.CONSUME_MESSAGE_DIRECTLY: self._consume_directly,
            RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS: self._status,
        }

    async def _running_info(self, connection: Connection, request: Command) -> Reply:
        header = request.header(GetConsumerRunningInfoHeader)
        return await self._ask(request, header.consumer_group, header.client_id, dict(request.ext), b"")

    async def _consume_directly(self, connection: Connection, request: Command) -> Reply:
        """The message is ours: it goes along as it lies in the log."""
        header = request.header(ConsumeMessageDirectlyHeader)
        body = bytes(request.body)
        if header.msg_id:
            try:
                _, _, offset = parse_offset_message_id(header.msg_id)
            except InvalidMessage as error:
                return encode_response(request, ResponseCode.INVALID_PARAMETER, str(error))
            record = self._store.record_at(offset)
            if record is None:
                remark = f"message {header.msg_id} is not in this broker's log (any more)"
                return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
            body = bytes(record)
        ext = {**request.ext, "topicSysFlag": "0", "groupSysFlag": "0"}
        return await self._ask(request, header.consumer_group, header.client_id or "", ext, body)

    async def _ask(self, request: Command, group: str, client_id: str, ext: dict[str, str], body: bytes) -> bytes:
        """The consumer's own answer to the same request."""
        member = self._member(group, client_id)
        if member is None:
            remark = f"The Consumer <{group}> <{client_id}> not online"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        try:
            answer = await member.connection.call(request.code, ext, body, TIMEOUT)
        except RequestTimeout as error:
            remark = f"consumer <{group}> <{client_id}> Timeout: {error}"
            return encode_response(request, ResponseCode.CONSUME_MSG_TIMEOUT, remark)
        except RemotingError as error:
            remark = f"invoke consumer <{group}> <{client_id}> Exception: {error}"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        header = dict(answer.ext) if answer.ext else None
        return encode_response(request, answer.code, answer.remark, header, bytes(answer.body))

    def _member(self, group: str, client_id: str) -> Member | None:
        online = self._clients.consumer(group)
        members = online.members.values() if online else ()
        return next((member for member in members if member.client_id == client_id), None)

    async def _status(self, connection: Connection, request: Command) -> Reply:
        """Where each member of a group is, by queue; members that do not answer are left out."""
        header = request.header(GetConsumerStatusHeader)
        online = self._clients.consumer(header.group)
        members = list(online.members.values()) if online else []
        if header.client_addr:
            members = [member for member in members if member.client_id == header.client_addr]
        if not members:
            remark = f"No Any Consumer online in the consumer group: [{header.group}]"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        question = {"topic": header.topic, "group": header.group}
        code = RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT
        answers = await asyncio.gather(
            *[member.connection.call(code, question, b"", STATUS_TIMEOUT) for member in members],
            return_exceptions=True,
        )
        table = {}
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, RemotingError):
                log.warning("group %s: %s does not say where it is: %s", header.group, member.client_id, answer)
            elif isinstance(answer, BaseException):
                raise answer
            elif answer.code == ResponseCode.SUCCESS and answer.body:
                said = javajson.loads(answer.body)
                table[member.client_id] = said.get("messageQueueTable") or {} if isinstance(said, dict) else {}
        body = javajson.dumps({"consumerTable": table, "messageQueueTable": {}})
        return encode_response(request, ResponseCode.SUCCESS, "not set any response code", body=body)
