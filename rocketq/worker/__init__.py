"""Runs the decorated consumers of an app: concurrency, signals, shutdown, reload."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

from rocketq.worker.exits import HANDED_BACK, STOPPED, TOLD_TWICE
from rocketq.worker.loader import load_app
from rocketq.worker.runner import Worker

__all__ = ["Worker", "load_app", "new_event_loop", "run"]

logger = logging.getLogger("rocketq.worker")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(make_worker: Callable[[], Worker]) -> int:
    """Run a worker in a new event loop until SIGTERM or SIGINT; returns the exit code (see `rocketq.worker.exits`).

    A second signal ends the process at once. When functions are still running in threads after the shutdown
    timeout, the caller has to leave with `os._exit`: an ordinary exit would wait for them.
    """

    async def main() -> bool:
        worker = make_worker()
        told = 0

        def on_signal(number: int) -> None:
            nonlocal told
            told += 1
            if told > 1:
                leave(TOLD_TWICE + number)
            logger.info("stopping: %d in flight get up to %g s", worker.in_flight, worker.shutdown_timeout)
            worker.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
        return await worker.run()

    loop = new_event_loop()
    try:
        return STOPPED if loop.run_until_complete(main()) else HANDED_BACK
    finally:
        loop.close()


def leave(code: int) -> None:
    """End the process without waiting for threads."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
