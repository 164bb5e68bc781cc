"""Looks at the timer's files of a stopped store: does each unit of the log name its record, and each slot its units."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator

from rocketq.store.files import Files, read_file
from rocketq.store.timercheck import TimerCheck
from rocketq.store.timerlog import UNIT_SIZE, TimerLog
from rocketq.store.timerwheel import TimerWheel


def check_timer(root: str, files: Files, is_waiting: Callable[[int, int], bool]) -> Iterator[tuple[str, int, str]]:
    """File, byte and text for each place that is wrong.

    `is_waiting` tells of a place and a size whether there may be the record of a timer message. What Apache's broker
    has written is not looked at, as it leaves slots behind that it will not use.
    """
    check = TimerCheck.decode(read_file(files, f"{root}/config/timercheck") or b"")
    directory, path = f"{root}/timerlog", f"{root}/timerwheel"
    names = sorted(name for name in files.listdir(directory) if len(name) == 20 and name.isdigit())
    if check is None or check.log_offset is None or not names or not files.exists(path):
        return
    first = os.path.join(directory, names[0])
    if not os.path.getsize(first) and check.log_end <= int(names[0]):
        return  # a run was killed before it came to make it
    log = TimerLog(directory, os.path.getsize(first), files)
    wheel = TimerWheel(path, files)
    try:
        if log.file_size < UNIT_SIZE or not log.open() or not log.covers(check.log_end):
            what = f"the files of the timer log are not of one size, one behind the other up to {check.log_end}"
            yield first, 0, what
            return
        if not wheel.open():
            yield path, 0, "the timer wheel has not the size that it should have"
            return
        wanted = {position: second for second, slot in wheel.used() for position in (slot.first, slot.last)}
        end = start = max(log.start, check.log_start or 0)
        positions, seconds = array("q"), array("q")
        for position, unit in log.scan(start):
            if position >= check.log_end:
                break
            second = unit.at // 1000
            if not is_waiting(unit.physical, unit.size):
                yield (*_place(log, position), f"the unit names a record of {unit.size} bytes at {unit.physical}")
            before = bisect_left(positions, unit.previous)
            chained = unit.previous < start or (
                positions[before : before + 1] == array("q", [unit.previous]) and seconds[before] == second
            )
            if wanted.pop(position, second) != second or not chained:
                yield (*_place(log, position), f"the unit, of second {second}, is not chained as it should be")
            positions.append(position)
            seconds.append(second)
            end = position + UNIT_SIZE
        missing = sorted(position for position in wanted if position >= start)
        if any(end <= position < check.log_end for position in missing):
            yield (*_place(log, end), f"there is no unit, and there should be some up to {check.log_end}")
        for position in missing:
            if position < end or position >= check.log_end:
                second = wanted[position]
                yield (
                    path,
                    wheel.place(second),
                    f"the slot of second {second} names {position}, and there is no unit",
                )
    finally:
        log.close()
        wheel.close()


def _place(log: TimerLog, position: int) -> tuple[str, int]:
    start = position - position % log.file_size
    return os.path.join(log.directory, f"{start:020d}"), position - start
