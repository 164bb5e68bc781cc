"""Tasks that wait at the brokers until they are due can be looked at and taken back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rocketq import properties as names
from rocketq.errors import BrokerError
from rocketq.message import ReceivedMessage, decode_messages
from rocketq.names import TIMER_TOPIC
from rocketq.recall import RecallHandle
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.headers import ListTimerHeader, QueryMessageHeader
from rocketq_kombu.names import KEYED, topic_of

if TYPE_CHECKING:
    from rocketq_kombu.cluster import Cluster

#: Seconds that a broker has to tell what waits.
_TIMEOUT = 1.0
#: A task may be sent again with its id, by retries; so many are found.
_MOST = 32


def cancel(connection: Any, task_id: str, queue: str = "celery") -> bool:
    """Take back the task with that id which waits in a queue until its eta; True when there was one.

    `connection` is a `kombu.Connection`, with Celery `app.connection_for_write()`. A task that is due already is not
    taken back: revoke it. Raises RemotingError, RouteNotFound, BrokerError.
    """
    transport = connection.connection  # connects where that is still to be done
    cluster: Cluster = transport.cluster
    group = topic_of(transport.virtual_host, queue)
    found = False
    for topic in (group, group + KEYED):
        if cluster.has_topic(topic):
            for broker in sorted({one.broker_name for one in cluster.producer.queues(topic)}):
                for message in _waiting(cluster, topic, broker, task_id):
                    found |= _recall(cluster, topic, broker, message)
    return found


def waiting(connection: Any, queue: str = "celery", most: int = 100) -> list[ReceivedMessage]:
    """Up to `most` messages that wait in a queue until they are due, the next ones first; bodies are envelopes.

    `connection` is a `kombu.Connection`. Apache's brokers do not tell: nothing is found there. Raises RemotingError,
    RouteNotFound, BrokerError.
    """
    transport = connection.connection
    cluster: Cluster = transport.cluster
    group = topic_of(transport.virtual_host, queue)
    found: list[ReceivedMessage] = []
    for topic in (group, group + KEYED):
        if cluster.has_topic(topic):
            for broker in sorted({one.broker_name for one in cluster.producer.queues(topic)}):
                address = cluster.master(broker, topic)
                header = ListTimerHeader(topic=topic, max_num=most)
                answer = cluster.ask(address, RequestCode.LIST_TIMER_MESSAGES, header, timeout=_TIMEOUT)
                if answer.code == ResponseCode.SUCCESS:
                    found += decode_messages(bytes(answer.body), broker)
                elif answer.code != ResponseCode.REQUEST_CODE_NOT_SUPPORTED:
                    raise BrokerError(answer.code, answer.remark, address)
    found.sort(key=lambda message: int(message.properties.get(names.TIMER_OUT_MS) or 0))
    return found[:most]


def _waiting(cluster: Cluster, topic: str, broker: str, key: str) -> list[ReceivedMessage]:
    """What waits at a broker to be delivered to the topic later."""
    now = int(time.time() * 1000)
    header = QueryMessageHeader(
        topic=TIMER_TOPIC,
        key=key,
        max_num=_MOST,
        begin_timestamp=0,
        end_timestamp=now + 3_600_000,  # clocks differ
        index_type="K",
        unique_key_query=False,
    )
    address = cluster.master(broker, topic)
    answer = cluster.ask(address, RequestCode.QUERY_MESSAGE, header)
    if answer.code == ResponseCode.QUERY_NOT_FOUND:
        return []
    if answer.code != ResponseCode.SUCCESS:
        raise BrokerError(answer.code, answer.remark, address)
    return [
        message
        for message in decode_messages(bytes(answer.body), broker)
        if key in message.keys
        and message.properties.get(names.REAL_TOPIC) == topic
        and int(message.properties.get(names.TIMER_OUT_MS) or 0) > now
    ]


def _recall(cluster: Cluster, topic: str, broker: str, message: ReceivedMessage) -> bool:
    due = (
        int(message.properties[names.TIMER_OUT_MS]) + 1
    )  # as brokers make handles: Apache's round times down again
    handle = RecallHandle(topic, broker, due, message.properties[names.UNIQ_KEY]).encode()
    try:
        cluster.producer.recall(topic, handle)
    except BrokerError as error:
        if error.code == ResponseCode.ILLEGAL_OPERATION:  # it is due by now
            return False
        raise
    return True
