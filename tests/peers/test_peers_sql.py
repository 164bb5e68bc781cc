"""SQL92 filters: Java's and our consumers on our broker and on Apache's, and both brokers' opinion of expressions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peer import Peer
from wire import Server, call, create_topic, extent, wait_until

from rocketq.message import decode_messages
from rocketq.remoting.bodies import CheckClientBody, SubscriptionData

pytestmark = [pytest.mark.peer, pytest.mark.timeout(200)]

GetClient = Callable[[str], Peer]
MAKES = ["java-4.9.8", "java-5.4.0", "rocketq"]


def amounts(numbers: range) -> list[dict[str, object]]:
    return [{"body": b"%d" % n, "tag": f"t{n % 3}", "properties": {"amount": str(n)}} for n in numbers]


@pytest.mark.parametrize("make", MAKES)
def test_a_consumer_gets_what_its_expression_matches(
    server: Server, client: GetClient, name: str, make: str
) -> None:
    peer = client(make)
    create_topic(server, name)
    peer.send(server, name, amounts(range(30)))
    consumer = peer.consume(server, name, f"G_{name}", sql="amount > 20 AND TAGS IN ('t0', 't1')")
    consumer.wait(6)
    peer.send(server, name, amounts(range(10, 40)))  # while its pulls are held
    consumer.wait(6 + 12 + 1)
    wanted = [n for n in [*range(30), *range(10, 40)] if n > 20 and n % 3 < 2]
    assert sorted(int(message["body"]) for message in consumer.stop()) == sorted(wanted)
    polled = peer.ask("poll", namesrv=server.namesrv, topic=name, group=f"P_{name}", sql="amount = 29", count=2)
    assert [message["body"] for message in polled["messages"]] == [b"29"] * 2


@pytest.mark.parametrize("make", MAKES)
def test_a_bad_expression_does_not_start(server: Server, client: GetClient, name: str, make: str) -> None:
    create_topic(server, name)
    with pytest.raises(RuntimeError, match=r"(?i)position 10|MessageSelector|CODE: 23|code 23"):
        client(make).consume(server, name, f"G_{name}", sql="amount >>")


EXPRESSIONS = """
a = 5|a = '5'|5 = a|a <> 6|a > 4.5|a > 4|price > 2|price > 2.0|a > -5|- a = 5|a > b|b > a|price > a|a BETWEEN 1 AND 5
a NOT BETWEEN 6 AND 7|a BETWEEN -3 AND 9|b IN ('b', 'c')|b NOT IN ('x')|(b) IN ('b')|b CONTAINS 'b'|b NOT CONTAINS 'b'
missing CONTAINS 'x'|missing NOT CONTAINS 'x'|b STARTSWITH 'b'|b ENDSWITH 'x'|b NOT ENDSWITH 'x'|b CONTAINS ''
missing IS NULL|a IS NULL|a IS NOT NULL|missing = 1|missing <> 1|1 <> missing|missing = other|NOT (missing = 1)|NOT b
b|TRUE|NULL|NOT NULL|FALSE OR a = 5|missing = 1 OR a = 5|b = 5 OR TRUE|TRUE OR b = 5|a = 5 AND missing > 1|yes = TRUE
yes <> FALSE|b = FALSE|TRUE = yes|a = 6 OR b = 'b' AND a = 5|NOT a = 'x'|quote = 'it''s'|1 = 1.0|1 < 2|a = 5L|a = TRUE
TAGS = 'tag'|KEYS = 'k'|a = b = FALSE|a = '5' = TRUE|(a = 5) = (b = 'b')|(a = 5) <> TRUE|a > .5e1|a >= .5e1|'5' = a
missing BETWEEN 1 AND 2|missing NOT BETWEEN 1 AND 2|missing NOT IN ('x')|/* x */ a = 5|a IS NULL IS NULL|+a = 5
a > 3 > 2|NOT a > 3|a = |a BETWEEN 2 AND 1|a BETWEEN 'a' AND 'b'|a IN (5)|a IN ()|a = NULL|5|'x'|a > 'x'|TRUE < a
TRUE = 'x'|5 IN ('5')|a = 9223372036854775808|(a = 5|a = 'x|a == 5|a ! 5|a CONTAINS b
"""
#: Apache's broker ignores all that stands behind what it could read.
WITH_REST = ["a LIKE 'x'", "a + 1 = 6", "a = 007"]
PROPERTIES = "a\x015\x02b\x01b\x02price\x012.50\x02yes\x01True\x02quote\x01it's\x02TAGS\x01tag\x02KEYS\x01k\x02"


def opinion(server: Server, topic: str, expression: str) -> str:
    """What the broker makes of an expression: an error, or whether the one message of the topic matches."""
    data = SubscriptionData(topic, expression, expression_type="SQL92", sub_version=1)
    if call(server.broker, 46, body=CheckClientBody(data).encode()).code != 0:
        return "error"
    ext = {"consumerGroup": f"G_{topic}", "topic": topic, "queueId": "0", "queueOffset": "0", "maxMsgNums": "32"}
    ext |= {"sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0", "subVersion": "0"}
    answer = call(server.broker, 11, ext | {"subscription": expression, "expressionType": "SQL92"})
    assert answer.code in (0, 20), f"{expression}: {answer.code} {answer.remark}"
    return "match" if answer.code == 0 and len(decode_messages(answer.body)) == 1 else "no match"


def test_both_brokers_are_of_one_opinion(request: pytest.FixtureRequest, name: str) -> None:
    opinions = []
    servers: list[Server] = [request.getfixturevalue("rocketq"), request.getfixturevalue("apache")]
    for server in servers:
        create_topic(server, name, queues=1)
        ext = {
            "a": "PG",
            "b": name,
            "c": "TBW102",
            "d": "4",
            "e": "0",
            "f": "0",
            "g": "1",
            "h": "0",
            "i": PROPERTIES,
        }
        assert call(server.broker, 310, ext | {"j": "0", "k": "false"}, b"body").code == 0
        wait_until(lambda server=server: extent(server, name, 0)[1] == 1, "the message is in its queue")
        opinions.append(
            {
                expression: opinion(server, name, expression)
                for expression in EXPRESSIONS.strip().replace("\n", "|").split("|")
            }
        )
    ours, theirs = opinions
    assert ours == theirs
    assert set(ours.values()) == {"match", "no match", "error"}
    ours_of_rest, theirs_of_rest = ({opinion(one, name, text) for text in WITH_REST} for one in servers)
    assert (ours_of_rest, theirs_of_rest) == ({"error"}, {"no match"})
