"""Failed messages come back later, or go to the dead-letter queue (code 36, CONSUMER_SEND_MSG_BACK).

The consumer names the record that it could not consume; the broker stores a copy under ``%RETRY%<group>`` with a
delay that grows with the number of attempts, or under ``%DLQ%<group>`` when they are used up
(`SendMessageProcessor`).
"""

from __future__ import annotations

import random

from rocketq import properties as names
from rocketq.broker.groups import Groups
from rocketq.broker.send import Sender, redelivery_limit
from rocketq.broker.statistics import Statistics
from rocketq.broker.topics import Topics
from rocketq.message import offset_message_id
from rocketq.names import dlq_topic, retry_topic
from rocketq.properties import decode_properties
from rocketq.record import decode_record
from rocketq.remoting.codes import FAQ, Perm, RequestCode, ResponseCode
from rocketq.remoting.command import Command, encode_response
from rocketq.remoting.headers import ConsumerSendMsgBackHeader
from rocketq.remoting.server import Connection, Handler, Reply
from rocketq.store.store import MessageStore

#: The first retry waits for level 3 (10 s), each further one a level longer.
FIRST_RETRY_LEVEL = 3


class Retry:
    """Takes back what consumers could not consume."""

    def __init__(
        self, groups: Groups, topics: Topics, sender: Sender, store: MessageStore, statistics: Statistics
    ) -> None:
        self._groups = groups
        self._topics = topics
        self._sender = sender
        self._store = store
        self._statistics = statistics

    def handlers(self) -> dict[int, Handler]:
        return {RequestCode.CONSUMER_SEND_MSG_BACK: self._send_back}

    def _send_back(self, connection: Connection, request: Command) -> Reply:
        header = request.header(ConsumerSendMsgBackHeader)
        group = self._groups.get(header.group)
        if group is None:
            remark = f"subscription group not exist, {header.group} \n{FAQ}"
            return encode_response(request, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, remark)
        if group.retry_queue_nums <= 0:
            return encode_response(request, ResponseCode.SUCCESS)
        topic = self._topics.create_retry(retry_topic(group.group_name), group.retry_queue_nums)
        if not topic.perm & Perm.WRITE:
            remark = f"the topic[{topic.topic_name}] sending message is forbidden"
            return encode_response(request, ResponseCode.NO_PERMISSION, remark)
        data = self._store.record_at(header.offset)
        if data is None:
            remark = f"look message by offset failed, {header.offset}"
            return encode_response(request, ResponseCode.SYSTEM_ERROR, remark)
        record = decode_record(data)
        properties = decode_properties(record.properties)
        properties.setdefault(names.RETRY_TOPIC, record.topic)
        properties.setdefault(
            names.ORIGIN_MESSAGE_ID, offset_message_id(record.store_host, record.physical_offset)
        )
        properties[names.WAIT] = "false"

        limit = redelivery_limit(group, header.max_reconsume_times, request.version)
        if record.reconsume_times >= limit or header.delay_level < 0:
            topic = self._topics.create_retry(dlq_topic(group.group_name), 1)
            level = 0
        else:
            level = header.delay_level or FIRST_RETRY_LEVEL + record.reconsume_times
        properties[names.DELAY] = str(level)
        self._statistics.sent_back(group.group_name, properties[names.RETRY_TOPIC])
        self._sender.store(
            connection,
            request,
            topic=topic.topic_name,
            queue_id=random.randrange(max(1, topic.write_queue_nums)),
            body=record.body,
            properties=properties,
            flag=record.flag,
            sys_flag=record.sys_flag,
            born_timestamp=record.born_timestamp,
            born_host=record.born_host,
            reconsume_times=min(record.reconsume_times + 1, 2**31 - 1),
        )
        return None  # answered when the batch is written
