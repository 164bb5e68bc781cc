"""Names of topics and groups: what is allowed, what belongs to the broker, what is derived from a group.

The rules are those of Apache's `TopicValidator` and `MixAll`; the texts are its too, as clients show them to people.
"""

from __future__ import annotations

import re

TOPIC_MAX_LENGTH = 127
GROUP_MAX_LENGTH = 120
RETRY_OR_DLQ_MAX_LENGTH = 255

RETRY_PREFIX = "%RETRY%"
DLQ_PREFIX = "%DLQ%"
SYSTEM_PREFIX = "rmq_sys_"
SYSTEM_GROUP_PREFIX = "CID_RMQ_SYS_"
#: The group whose offsets on the revive topic say what of it is settled.
REVIVE_GROUP = "CID_RMQ_SYS_REVIVE_GROUP"

#: The group whose offsets on the half and op topics say what of them is settled.
TRANSACTION_GROUP = "CID_RMQ_SYS_TRANS"

#: The topic whose settings a topic created by a send inherits.
AUTO_CREATE_TOPIC = "TBW102"
SCHEDULE_TOPIC = "SCHEDULE_TOPIC_XXXX"
HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC"
OP_HALF_TOPIC = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"
SELF_TEST_TOPIC = "SELF_TEST_TOPIC"
BENCHMARK_TOPIC = "BenchmarkTest"
OFFSET_MOVED_TOPIC = "OFFSET_MOVED_EVENT"
CHECK_MAX_TIME_TOPIC = "TRANS_CHECK_MAX_TIME_TOPIC"
TIMER_TOPIC = "rmq_sys_wheel_timer"
ROCKSDB_HALF_TOPIC = "RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC"
ROCKSDB_OP_HALF_TOPIC = "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC"

#: Topics that nobody may create, change or delete (besides those that start with :data:`SYSTEM_PREFIX`).
SYSTEM_TOPICS = frozenset(
    {
        AUTO_CREATE_TOPIC,
        SCHEDULE_TOPIC,
        BENCHMARK_TOPIC,
        HALF_TOPIC,
        OP_HALF_TOPIC,
        TRACE_TOPIC,
        CHECK_MAX_TIME_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_TOPIC,
        "CHECKPOINT_TOPIC",
        ROCKSDB_HALF_TOPIC,
        ROCKSDB_OP_HALF_TOPIC,
    }
)

#: Topics that take no messages from producers. The timer's is not in Apache's set; there one stray message in it
#: stops all timers for good.
NOT_SENDABLE = frozenset(
    {
        SCHEDULE_TOPIC,
        HALF_TOPIC,
        OP_HALF_TOPIC,
        CHECK_MAX_TIME_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_TOPIC,
        ROCKSDB_HALF_TOPIC,
        ROCKSDB_OP_HALF_TOPIC,
        TIMER_TOPIC,
    }
)

#: Queues of a topic on one broker: whoever asks for its statistics, and every client of it, looks at each.
MAX_QUEUES = 16_384

#: Groups that every broker has from its first start.
SYSTEM_GROUPS = (
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    TRANSACTION_GROUP,
)

_ILLEGAL = re.compile(r"[^%|a-zA-Z0-9_-]")


def check_topic(topic: str) -> str | None:
    """What is wrong with the name of a topic; None when nothing is."""
    if not topic.strip():
        return "The specified topic is blank."
    if _ILLEGAL.search(topic):
        return f"The specified topic: {topic}, contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    if topic.startswith((RETRY_PREFIX, DLQ_PREFIX)):
        if len(topic) > RETRY_OR_DLQ_MAX_LENGTH:
            return (
                f"The specified topic is DLQ or Retry topic: {topic}, and it's longer than topic max length: "
                f"{RETRY_OR_DLQ_MAX_LENGTH}"
            )
    elif len(topic) > TOPIC_MAX_LENGTH:
        return f"The specified topic: {topic}, is longer than topic max length: {TOPIC_MAX_LENGTH}"
    return None


def can_be_stored(topic: str) -> bool:
    """Whether the store can keep messages under this name, which becomes that of a directory.

    Old brokers allow more names than :func:`check_topic`, and a damaged record may have any.
    """
    return 0 < len(topic.encode()) <= 255 and not {"/", "\0"}.intersection(topic) and topic not in (".", "..")


def check_group(group: str) -> str | None:
    """What is wrong with the name of a group; None when nothing is."""
    if not group.strip():
        return "The specified group is blank."
    if _ILLEGAL.search(group):
        return f"The specified group: {group}, contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    if len(group) > GROUP_MAX_LENGTH:
        return f"The specified group: {group}, is longer than group max length: {GROUP_MAX_LENGTH}"
    return None


def is_system_topic(topic: str) -> bool:
    """True for topics of the broker itself."""
    return topic in SYSTEM_TOPICS or topic.startswith(SYSTEM_PREFIX)


def is_system_group(group: str) -> bool:
    """True for groups of the broker itself."""
    return group in SYSTEM_GROUPS or group.startswith(SYSTEM_GROUP_PREFIX)


def retry_topic(group: str) -> str:
    """The topic that failed messages of `group` wait in."""
    return RETRY_PREFIX + group


def dlq_topic(group: str) -> str:
    """The topic that messages end in when all attempts of `group` failed."""
    return DLQ_PREFIX + group


def pop_retry_topic(topic: str, group: str) -> str:
    """The topic in which messages of `topic` come again that `group` popped and did not acknowledge (`KeyBuilder`)."""
    return f"{RETRY_PREFIX}{group}_{topic}"


def reply_topic(cluster: str) -> str:
    """The topic to which consumers of a cluster send their replies to requests."""
    return f"{cluster}_REPLY_TOPIC"


def revive_topic(cluster: str) -> str:
    """The topic that records what POP consumers hold and acknowledge."""
    return f"{SYSTEM_PREFIX}REVIVE_LOG_{cluster}"
