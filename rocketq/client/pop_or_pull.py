"""Whether a new member of a group should pop or pull, where its user leaves that open."""

from __future__ import annotations

from functools import partial

from rocketq.client.instance import ClientInstance
from rocketq.client.pop_consumer import CONSUME_POP
from rocketq.errors import BrokerError, RemotingError, RouteNotFound
from rocketq.names import AUTO_CREATE_TOPIC
from rocketq.remoting.bodies import ConsumerConnection
from rocketq.remoting.codes import RequestCode, ResponseCode
from rocketq.remoting.headers import GetConsumerConnectionListHeader
from rocketq.remoting.headers.pop import PeekMessageHeader


async def can_pop(instance: ClientInstance, group: str, topic: str) -> bool:
    """Whether a new member of `group` should pop `topic`: all its brokers can, and the others in the group do.

    For a topic that does not exist yet any broker that creates topics is asked. Brokers that cannot be asked now are
    taken to be like the others. Raises RemotingError when none can be asked, and BrokerError.
    """
    try:
        known = await instance.topic(topic)
    except RouteNotFound:
        topic = AUTO_CREATE_TOPIC
        try:
            known = await instance.topic(topic)
        except RouteNotFound:
            return False
    answered, failure = False, None
    for broker in {queue.broker_name for queue in known.read_queues}:
        address = instance.routes.master(broker)
        if address is None:
            continue
        try:
            if not await _can_pop_from(instance, group, topic, broker, address):
                return False
            answered = True
        except RemotingError as error:
            failure = error
    if failure is not None and not answered:
        raise failure
    return answered


async def _can_pop_from(instance: ClientInstance, group: str, topic: str, broker: str, address: str) -> bool:
    call = partial(instance.remoting.call, address, timeout=instance.timeout)
    header = GetConsumerConnectionListHeader(consumer_group=group)
    answer = await call(RequestCode.GET_CONSUMER_CONNECTION_LIST, header)
    if answer.code == ResponseCode.SUCCESS:
        others = ConsumerConnection.decode(bytes(answer.body))
        if others.connection_set and others.consume_type != CONSUME_POP:
            return False
    peek = PeekMessageHeader(consumer_group=group, topic=topic, queue_id=0, max_msg_nums=1, bname=broker)
    answer = await call(RequestCode.PEEK_MESSAGE, peek)
    if answer.code in (ResponseCode.SUCCESS, ResponseCode.PULL_NOT_FOUND):
        return True
    if answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED:
        return False
    raise BrokerError(answer.code, answer.remark, address)
