"""Handing a failed message back: the broker delivers it again later, or it goes to the dead letter queue."""

from __future__ import annotations

import contextlib
import logging

from rocketq import properties as names
from rocketq.client.dead_letters import dead_letter
from rocketq.client.instance import ClientInstance
from rocketq.client.producer import AsyncProducer
from rocketq.errors import BrokerError, RocketQError
from rocketq.message import Message, ReceivedMessage
from rocketq.names import retry_topic
from rocketq.record import CorruptRecord
from rocketq.remoting.codes import DEAD_LETTER, RequestCode, ResponseCode
from rocketq.remoting.headers import ConsumerSendMsgBackHeader

log = logging.getLogger("rocketq.client")

TIMEOUT = 5.0
#: Seconds of the delay levels, as brokers have them unless they are told otherwise.
LEVELS = (1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200)
INNER_GROUP = "CLIENT_INNER_PRODUCER"


def level_for(delay: float) -> int:
    """The delay level of `delay` seconds, or the next longer one."""
    return next((level for level, seconds in enumerate(LEVELS, 1) if seconds >= delay), len(LEVELS))


class SendBack:
    """Gives messages of one group back to their broker, or publishes them to `%RETRY%group` when that fails."""

    def __init__(self, instance: ClientInstance, group: str, max_reconsume_times: int) -> None:
        self._instance = instance
        self._group = group
        self.max_reconsume_times = max_reconsume_times
        self._producer = AsyncProducer(INNER_GROUP, instance=instance)

    async def start(self) -> None:
        await self._producer.start()

    async def close(self) -> None:
        await self._producer.close()

    async def dead_letter(self, message: ReceivedMessage, error: BaseException | None) -> bool:
        """True when the message is in the dead letter queue, with what the error says where that was possible."""
        if error is not None:
            try:
                await self._producer.send(dead_letter(message, self._group, error))
                return True
            except (RocketQError, CorruptRecord) as refused:
                log.info(
                    "group %s: the dead letter of %s will not say why: it cannot be published: %s",
                    self._group,
                    message,
                    refused,
                )
        return await self.send_back(message, DEAD_LETTER)

    async def send_back(self, message: ReceivedMessage, level: int) -> bool:
        """True when the broker has it again. `level`: 1 to 18, 0 for the broker's own, DEAD_LETTER."""
        try:
            await self._to_broker(message, level)
            return True
        except RocketQError as error:
            log.warning("group %s: %s was not taken back, publishing it: %s", self._group, message, error)
        try:
            await self._publish(message, level)
            return True
        except RocketQError as error:
            log.warning("group %s: %s cannot be handed back: %s", self._group, message, error)
        return False

    async def _to_broker(self, message: ReceivedMessage, level: int) -> None:
        unique_id: str | None = None
        topic: str | None = None
        with contextlib.suppress(CorruptRecord):  # the broker needs neither of them
            unique_id, topic = message.message_id, message.topic
        address = self._instance.routes.master(message.broker_name)
        if address is None:
            host, port = message.store_host
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        header = ConsumerSendMsgBackHeader(
            offset=message.physical_offset,
            group=self._group,
            delay_level=level,
            origin_msg_id=unique_id,
            origin_topic=topic,
            unit_mode=False,
            max_reconsume_times=self.max_reconsume_times,
            bname=message.broker_name,
        )
        answer = await self._instance.remoting.call(
            address, RequestCode.CONSUMER_SEND_MSG_BACK, header, timeout=TIMEOUT
        )
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, address)

    async def _publish(self, message: ReceivedMessage, level: int) -> None:
        again = Message(retry_topic(self._group), message.body, flag=message.flag)
        properties = again.properties
        properties.update(message.properties)
        properties.pop(names.TRAN_MSG, None)
        properties[names.RETRY_TOPIC] = message.topic
        properties.setdefault(names.ORIGIN_MESSAGE_ID, message.offset_message_id)
        times = message.reconsume_times + 1
        if level == DEAD_LETTER:
            times = max(times, self.max_reconsume_times + 1)
        properties[names.RECONSUME_TIME] = str(times)
        properties[names.MAX_RECONSUME_TIMES] = str(self.max_reconsume_times)
        properties[names.DELAY] = str(level if level > 0 else min(18, 3 + message.reconsume_times))
        await self._producer.send(again)
