"""Async consumers and sends, a retry with a delay, signals and middleware.

rocketq worker -A examples/asynchronous.py --embedded
ROCKETQ_NAMESRV=127.0.0.1:… python examples/asynchronous.py
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from rocketq import Middleware, ReceivedMessage, Retry, RocketQ, signals
from rocketq.consumers import Consumer


class Age(Middleware):
    """Prints how long a message was under way."""

    def before_consume(self, consumer: Consumer, message: ReceivedMessage) -> None:
        print(f"{consumer.group}: {time.time() * 1000 - message.born_timestamp:.0f} ms old", flush=True)


app = RocketQ("thumbnails", middleware=[Age()])


@app.consumer("pictures", concurrency=100)
async def shrink(picture: dict[str, Any], message: ReceivedMessage) -> None:
    if picture["name"] == "late.png" and message.reconsume_times == 0:
        raise Retry("not uploaded yet", delay_level=1)
    await asyncio.sleep(0.1)
    await app.asend("thumbnails", {"name": picture["name"], "size": 64})


@app.consumer("thumbnails")
async def done(thumbnail: dict[str, Any]) -> None:
    print("done:", thumbnail["name"], flush=True)


@signals.retried.connect
def tell(app: RocketQ, *, consumer: Consumer, message: ReceivedMessage) -> None:
    print(f"{message.message_id} will come back", flush=True)


async def main() -> None:
    names = [f"{number}.png" for number in range(10)] + ["late.png"]
    await asyncio.gather(*[app.asend("pictures", {"name": name}) for name in names])
    await app.aclose()


if __name__ == "__main__":
    asyncio.run(main())
