"""`rocketq store check` and `repair` of any damaged file: they say what is wrong, and what they repaired has nothing
left to repair and starts, or the damage is told with a StoreError.

Input: as for the target `files`.
"""

import logging
from pathlib import Path

import fuzz_files
from broker_wire import config
from scratch import lay_out, scratch, small_wheel
from store_kit import abandon

from rocketq.errors import StoreError
from rocketq.store import MessageStore
from rocketq.store.check import StoreCheck, mend

seeds = fuzz_files.seeds


def _check(directory: Path) -> None:
    settings = config(directory, **fuzz_files.SETTINGS).store()
    problems = StoreCheck(settings).run()
    for problem in problems:
        assert problem.text
        assert problem.position >= 0
    mend(settings, problems)
    if any(problem.kind in ("log", "tail") for problem in problems):
        store = MessageStore(settings)
        store.open()  # cuts tails, makes ConsumeQueues
        abandon(store)
        (directory / "abort").unlink()
    left = [problem for problem in StoreCheck(settings).run() if problem.kind == "log"]
    assert not left, left


def run_one(data: bytes) -> None:
    if len(data) < 2:
        return
    logging.disable(logging.CRITICAL)
    try:
        with scratch() as directory, small_wheel():
            lay_out(directory, fuzz_files.changed(data))
            try:
                _check(directory)
            except StoreError:
                return
    finally:
        logging.disable(logging.NOTSET)
