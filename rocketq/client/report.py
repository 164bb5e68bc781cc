"""How a consumer is doing, for administrators (GET_CONSUMER_RUNNING_INFO)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rocketq.client.assigned import Assigned
from rocketq.client.pulling import Statistics
from rocketq.remoting.bodies import ConsumerRunningInfo
from rocketq.remoting.codes import VERSION

if TYPE_CHECKING:
    from rocketq.client.member import GroupMember
    from rocketq.client.pop_consumer import PopConsumer


def running_info(consumer: GroupMember | PopConsumer) -> ConsumerRunningInfo:
    """The report that brokers pass on; rates are averages since the start."""
    instance = consumer.instance
    seconds = max(1e-3, time.time() - instance.started_at)
    properties = {
        "PROP_NAMESERVER_ADDR": f"{instance.namesrv};",
        "PROP_CONSUMEORDERLY": "true" if consumer.ordered else "false",
        "PROP_CONSUME_TYPE": consumer.membership.consume_type,
        "PROP_CLIENT_VERSION": f"V{VERSION}",
        "PROP_CONSUMER_START_TIMESTAMP": str(int(instance.started_at * 1000)),
        "PROP_THREADPOOL_CORE_SIZE": str(consumer.concurrency),
        "consumerGroup": consumer.group,
        "messageModel": consumer.membership.model,
        "clientLanguage": "PYTHON",
    }
    return ConsumerRunningInfo(
        properties=properties,
        subscription_set=consumer.membership.subscription_data(),
        mq_table={queue: _queue_info(one) for queue, one in consumer.assigned.items()},
        status_table={topic: _status(statistics, seconds) for topic, statistics in consumer.statistics.items()},
    )


def _queue_info(one: Assigned) -> dict[str, Any]:
    process = one.process
    return {
        "cachedMsgCount": len(process),
        "cachedMsgMaxOffset": process.last_offset,
        "cachedMsgMinOffset": process.first_offset,
        "cachedMsgSizeInMiB": process.bytes >> 20,
        "commitOffset": process.commit_offset,
        "droped": process.dropped,
        "lastConsumeTimestamp": one.last_consume_ms,
        "lastLockTimestamp": int((time.time() - time.monotonic() + one.locked_at) * 1000) if one.locked else 0,
        "lastPullTimestamp": one.last_pull_ms,
        "locked": one.locked,
        "transactionMsgCount": 0,
        "transactionMsgMaxOffset": 0,
        "transactionMsgMinOffset": 0,
        "tryUnlockTimes": 0,
    }


def _status(statistics: Statistics, seconds: float) -> dict[str, Any]:
    handled = statistics.ok + statistics.failed
    return {
        "consumeFailedMsgs": statistics.failed,
        "consumeFailedTPS": statistics.failed / seconds,
        "consumeOKTPS": statistics.ok / seconds,
        "consumeRT": statistics.seconds * 1000 / handled if handled else 0.0,
        "pullRT": statistics.pull_seconds * 1000 / statistics.pulls if statistics.pulls else 0.0,
        "pullTPS": statistics.pulled / seconds,
    }
