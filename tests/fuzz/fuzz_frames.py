"""A fuzz target for the frame decoder: garbage sets `decoder.error`, and never raises anything.

python tests/fuzz/fuzz_frames.py [corpus …]            with atheris, if it is installed
python tests/fuzz/fuzz_frames.py --rounds N --seed S   a plain random loop otherwise
"""

import argparse
import random
import sys

from rocketq.errors import HeaderError
from rocketq.remoting.codes import BINARY, JSON
from rocketq.remoting.command import Command, FrameDecoder, encode, encode_request
from rocketq.remoting.headers import PullMessageHeader, SendMessageHeaderV2


def run_one(data: bytes) -> list[Command]:
    """Feed `data` whole and in two pieces, and use what comes out; any exception is a finding."""
    whole = FrameDecoder()
    commands = whole.feed(data)
    cut = data[0] * len(data) // 256 if data else 0
    pieces = FrameDecoder()
    again = pieces.feed(data[:cut]) + pieces.feed(data[cut:])
    assert len(commands) == len(again), "the commands depend on how the bytes arrive"
    assert (whole.error is None) == (pieces.error is None), "the error depends on how the bytes arrive"
    assert whole.buffered <= len(data)
    for command in commands:
        for kind in (SendMessageHeaderV2, PullMessageHeader):
            try:
                command.header(kind)
            except HeaderError:
                continue
        try:
            readable = command.ext is not None
        except HeaderError:
            readable = False
        if readable and -(2**31) <= command.opaque < 2**31 and -(2**31) <= command.flag < 2**31:
            again = FrameDecoder().feed(encode(command))
            assert [repr(one) for one in again] == [repr(command)]
    return commands


def seeds() -> list[bytes]:
    """Good frames to begin with."""
    ext = {"a": "group", "b": "topic", "e": "0", "i": "KEYS\x01k\x02"}
    return [
        encode_request(310, 1, ext, b"body"),
        encode_request(310, 1, ext, b"body", serialize_type=BINARY),
        encode_request(34, 2, None, b'{"clientID":"c"}', serialize_type=JSON, oneway=True),
        encode_request(11, 3, {"topic": "ü", "queueId": "x"}, serialize_type=BINARY),
        bytes.fromhex("0000000400000000"),
    ]


def mutated(rng: random.Random) -> bytes:
    """Some good frames with some bytes changed, inserted, removed or repeated."""
    data = bytearray(b"".join(rng.choices(seeds(), k=rng.randint(1, 4))))
    for _ in range(rng.randint(0, 6)):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at : at + 4] = rng.choice((0, 1, 4, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, "big")
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 40)]
    return bytes(data)


def loop(rounds: int, seed: int) -> None:
    """The plain loop. A finding names the seed and the bytes."""
    rng = random.Random(seed)
    for number in range(rounds):
        data = mutated(rng)
        try:
            run_one(data)
        except Exception as error:
            raise AssertionError(f"round {number} of seed {seed}: {data.hex()}") from error


def main() -> None:
    try:
        import atheris
    except ImportError:
        parser = argparse.ArgumentParser(description="Fuzz the frame decoder without atheris.")
        parser.add_argument("--rounds", type=int, default=100_000)
        parser.add_argument("--seed", type=int, default=random.randrange(2**32))
        options = parser.parse_args()
        sys.stdout.write(f"atheris is not installed: {options.rounds} random rounds, seed {options.seed}\n")
        loop(options.rounds, options.seed)
        return
    atheris.Setup(sys.argv, run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
