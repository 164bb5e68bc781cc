"""The project's own tests: with a worker in a thread, on whatever broker SHOP_BROKER names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import shop
from celery.contrib.testing.worker import start_worker


@pytest.fixture(scope="module", autouse=True)
def worker() -> Iterator[None]:
    shop.app.amqp.queues.select_add("mail")
    with start_worker(shop.app, perform_ping_check=False, shutdown_timeout=30):
        yield


def test_a_price() -> None:
    assert shop.price.delay("apple", 3).get(timeout=20) == 9


def test_an_order_is_charged() -> None:
    assert shop.order("pear", 2).get(timeout=20) == "8 paid"


def test_a_bank_that_is_closed_is_asked_again() -> None:
    assert shop.order("pear", 1, closed_for=2).get(timeout=30) == "4 paid"


def test_an_unknown_thing_fails() -> None:
    with pytest.raises(KeyError):
        shop.price.delay("plum", 1).get(timeout=20)


def test_a_reminder_has_a_queue_of_its_own() -> None:
    assert shop.remind.apply_async(("ada",), countdown=1).get(timeout=20) == "dear ada"
