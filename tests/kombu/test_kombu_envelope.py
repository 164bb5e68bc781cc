"""What other producers put into a queue is a message of Kombu's, or is told apart before anybody is handed it."""

from __future__ import annotations

import pytest

from rocketq_kombu.envelope import QueueMessage, decode


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"properties":[]}',
        b'{"properties":{},"headers":[1]}',
        b'{"properties":{"delivery_info":"x"}}',
        b'{"properties":{"expiration":"soon"}}',
        b'{"properties":{"expiration":[1]}}',
        b'{"properties":{"body_encoding":"base64"},"body":"x"}',
        b'{"properties":{"body_encoding":"base64"},"body":5}',
    ],
)
def test_a_text_that_is_no_message_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode(text)


def test_a_message_needs_nothing_but_properties() -> None:
    payload = decode(b'{"properties":{"delivery_tag":"1","expiration":""},"body":"text"}')
    assert QueueMessage(payload).body == b"text"
