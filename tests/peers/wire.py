"""The few requests that the peer tests send themselves, frame by frame: preparing topics, asking for groups."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from rocketq.record import Record, decode_record
from rocketq.remoting.command import Command, FrameDecoder, encode_request

SUCCESS, SYSTEM_ERROR, CONSUMER_NOT_ONLINE, TOPIC_NOT_EXIST, QUERY_NOT_FOUND = 0, 1, 206, 17, 22


class Server(Protocol):
    kind: str
    namesrv: str
    broker: str


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 30.0, interval: float = 0.02) -> Any:
    """Polls until `condition` gives something true, and gives that."""
    deadline = time.monotonic() + timeout
    while True:
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(interval)


def call(address: str, code: int, ext: dict[str, str] | None = None, body: bytes = b"") -> Command:
    """One request on a connection of its own, and its answer."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(encode_request(code, 1, ext, body))
        decoder = FrameDecoder()
        while True:
            data = connection.recv(1 << 20)
            assert data, f"{address} closed the connection on request {code}"
            for answer in decoder.feed(data):
                return answer


def create_topic(server: Server, topic: str, queues: int = 4) -> str:
    """UPDATE_AND_CREATE_TOPIC, and waits until the NameServer knows it."""
    ext = {
        "topic": topic,
        "defaultTopic": "TBW102",
        "readQueueNums": str(queues),
        "writeQueueNums": str(queues),
        "perm": "6",
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": "0",
        "order": "false",
    }
    answer = call(server.broker, 17, ext)
    assert answer.code == SUCCESS, answer.remark
    wait_for_route(server, topic)
    return topic


def wait_for_route(server: Server, topic: str) -> None:
    """Until the NameServer knows the topic, which Apache's broker tells it again only after 30 seconds."""
    wait_until(lambda: call(server.namesrv, 105, {"topic": topic}).code == SUCCESS, f"route of {topic}", 60)


def members(server: Server, group: str) -> list[str]:
    """GET_CONSUMER_LIST_BY_GROUP: the client ids; none when nobody is there."""
    answer = call(server.broker, 38, {"consumerGroup": group})
    if answer.code != SUCCESS:
        return []
    ids: list[str] = json.loads(answer.body)["consumerIdList"]
    return ids


def committed(server: Server, group: str, topic: str, queue: int) -> int | None:
    """QUERY_CONSUMER_OFFSET; None when the group has none for the queue."""
    answer = call(
        server.broker,
        14,
        {"consumerGroup": group, "topic": topic, "queueId": str(queue), "setZeroIfNotFound": "false"},
    )
    if answer.code == QUERY_NOT_FOUND:
        return None
    assert answer.code == SUCCESS, answer.remark
    return int(answer.ext["offset"])


def extent(server: Server, topic: str, queue: int) -> tuple[int, int]:
    """GET_MIN_OFFSET and GET_MAX_OFFSET of a queue."""
    ext: dict[str, Any] = {"topic": topic, "queueId": str(queue)}
    low, high = call(server.broker, 31, ext), call(server.broker, 30, ext)
    assert (low.code, high.code) == (SUCCESS, SUCCESS), (low.remark, high.remark)
    return int(low.ext["offset"]), int(high.ext["offset"])


def wait_in_queues(server: Server, topic: str, results: list[dict[str, Any]]) -> None:
    """Until what was sent with these results is in its queues. Apache's broker tells producers before."""
    ends: dict[int, int] = {}
    for result in results:
        end = result["queue_offset"] + len(result["offset_message_id"].split(","))  # batches have many
        ends[result["queue"]] = max(end, ends.get(result["queue"], 0))
    for queue, end in ends.items():

        def there(queue: int = queue, end: int = end) -> bool:
            answer = call(server.broker, 30, {"topic": topic, "queueId": str(queue)})
            return answer.code != SUCCESS or int(answer.ext["offset"]) >= end  # one with accounts says nothing

        wait_until(there, f"queue {queue} of {topic} has offset {end - 1}")


def stored_record(server: Server, physical_offset: int) -> Record:
    """VIEW_MESSAGE_BY_ID: the record as it lies in the CommitLog."""
    answer = call(server.broker, 33, {"offset": str(physical_offset)})
    assert answer.code == SUCCESS, answer.remark
    return decode_record(answer.body)
