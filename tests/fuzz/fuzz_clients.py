"""What clients read from others: routes (of NameServers and of the cache in Redis), and messages and texts of Kombu.

Input: one byte for the kind, then what comes. It can be used, or is a ValueError that its reader expects.
"""

import json
from types import SimpleNamespace
from typing import Any

from rocketq.client.routes import RouteTable
from rocketq.names import MAX_QUEUES
from rocketq.remoting.bodies import TopicRoute
from rocketq_kombu.envelope import QueueMessage, decode, due, dump, expired, keys_of, tag_of
from rocketq_kombu.registry import Registry


def _route(data: bytes) -> None:
    route = TopicRoute.decode(data)
    table = RouteTable()
    table.learn("T", route, 0.0)
    known = table.topics["T"]
    most = MAX_QUEUES * max(len(route.queue_datas), (route.order_topic_conf or "").count(";") + 1)
    assert len(known.write_queues) <= most
    assert len(known.read_queues) <= most
    for name in table.brokers:
        table.master(name)
        table.reader(name, 1)


def _task(data: bytes) -> None:
    payload = decode(data)
    properties, headers = payload["properties"], payload.get("headers") or {}
    message: Any = SimpleNamespace(store_timestamp=1_700_000_000_000)
    assert expired(properties, message) in (True, False)
    due(headers)
    tag_of(headers)
    keys_of(headers, properties)
    properties["delivery_tag"] = "1"
    properties["delivery_info"]["redelivered"] = False
    message = QueueMessage(payload)
    dump(message.payload_of_queue)


class _Texts:
    """A NameServer that has one text under every key."""

    def __init__(self, text: str) -> None:
        self.text = text

    def kv_get(self, namespace: str, key: str) -> str:
        return self.text

    def kv_table(self, namespace: str) -> dict[str, str]:
        return {"queue|key": self.text}

    def kv_delete(self, namespace: str, key: str) -> None: ...


def _registry(data: bytes) -> None:
    texts: Any = _Texts(data.decode())
    registry = Registry(texts, "/", lambda: 1_700_000_000.0)
    for read in (registry.exchange, registry.bindings, registry.place, registry.limit):
        try:
            read("name")
        except ValueError:
            continue


KINDS = (_route, _task, _registry)


def run_one(data: bytes) -> None:
    if data:
        try:
            KINDS[data[0] % len(KINDS)](data[1:])
        except ValueError:
            return


def seeds() -> list[bytes]:
    route = {
        "brokerDatas": [{"brokerAddrs": {"0": "h:1", "1": "h:2"}, "brokerName": "b", "cluster": "C"}],
        "queueDatas": [{"brokerName": "b", "perm": 6, "readQueueNums": 4, "writeQueueNums": 4}],
    }
    task = {
        "body": "W1tdLCB7fV0=",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "add", "id": "x", "eta": "2030-01-01T00:00:00+00:00"},
        "properties": {"body_encoding": "base64", "delivery_info": {"exchange": "e"}, "expiration": "1000"},
    }
    place = {"broker": "b", "queue_id": 0, "offset": 1, "ttl": 1000, "until": 1_800_000_000_000}
    binding = {"pattern": "a.*", "until": 1_800_000_000_000}
    found = [(0, route), (0, {**route, "orderTopicConf": "b:4;c:3"}), (1, task), (2, place), (2, binding), (2, 5)]
    return [bytes([kind]) + json.dumps(value).encode() for kind, value in found]
