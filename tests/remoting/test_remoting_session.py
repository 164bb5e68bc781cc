"""The session: requests, answers and deadlines on a clock of our own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.errors import ConnectFailed, TooManyInFlight
from rocketq.remoting.command import Command, FrameDecoder, encode, encode_request, encode_response
from rocketq.remoting.session import Backoff, Session, split_address


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def answer_to(frame: bytes, remark: str | None = None) -> bytes:
    (request,) = FrameDecoder().feed(frame)
    return encode_response(request, 0, remark)


def test_an_answer_finds_its_request() -> None:
    session = Session(Clock())
    frames = [session.request(10, {"n": str(n)}, context=f"context {n}")[1] for n in range(3)]
    events = session.receive(answer_to(frames[2]) + answer_to(frames[0]))
    assert [pending.context for pending, _ in events if pending] == ["context 2", "context 0"]
    assert [pending.context for pending in session.close()] == ["context 1"]


def test_requests_of_the_peer_come_without_context() -> None:
    session = Session(Clock())
    ((pending, command),) = session.receive(encode_request(40, 5, {"consumerGroup": "g"}))
    assert pending is None
    assert (command.code, command.opaque) == (40, 5)


def test_answers_to_nothing_are_counted_and_dropped() -> None:
    session = Session(Clock())
    _, frame = session.request(10)
    assert len(session.receive(answer_to(frame) + answer_to(frame))) == 1
    assert session.unexpected == 1


def test_requests_expire_at_their_own_deadlines() -> None:
    clock = Clock()
    session = Session(clock)
    session.request(10, timeout=3, context="c")
    session.request(10, timeout=1, context="a")
    session.request(10, timeout=2, context="b")
    assert session.next_deadline == 101.0
    assert session.expired(100.9) == []
    assert [pending.context for pending in session.expired(101.0)] == ["a"]
    assert session.next_deadline == 102.0
    assert [pending.context for pending in session.expired(110.0)] == ["b", "c"]
    assert session.next_deadline == float("inf")


def test_the_limit_of_unanswered_requests() -> None:
    session = Session(Clock(), max_in_flight=2)
    opaque, frame = session.request(10)
    session.request(10)
    with pytest.raises(TooManyInFlight, match="2 requests"):
        session.request(10)
    session.oneway(10)  # has no answer to wait for
    session.receive(answer_to(frame))
    session.request(10)
    assert opaque == 0


def test_numbers_wrap_around_and_avoid_those_in_use() -> None:
    session = Session(Clock())
    first, _ = session.request(10)
    session._opaque = 0x7FFFFFFF
    last, _ = session.request(10)
    following, _ = session.request(10)
    assert (first, last, following) == (0, 0x7FFFFFFF, 1)


def test_a_request_given_up_leaves_no_trace() -> None:
    session = Session(Clock())
    opaque, frame = session.request(10)
    session.forget(opaque)
    assert session.receive(answer_to(frame)) == []
    assert session.close() == []


def test_a_request_that_cannot_be_encoded_is_not_waited_for() -> None:
    session = Session(Clock())
    with pytest.raises((TypeError, UnicodeEncodeError)):
        session.request(10, {"a": "\ud800"})
    assert not session.pending


def test_garbage_is_told() -> None:
    session = Session(Clock())
    assert session.receive(b"\xff" * 8) == []
    assert session.error is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["request", "answer", "time"]), st.integers(1, 50)), max_size=60))
def test_every_request_ends_exactly_once(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    session = Session(clock)
    open_requests: dict[int, int] = {}
    made: list[int] = []
    ended: list[int] = []
    for step, number in steps:
        if step == "request":
            opaque, _ = session.request(10, timeout=number, context=len(made))
            open_requests[opaque] = len(made)
            made.append(len(made))
        elif step == "answer" and open_requests:
            opaque = sorted(open_requests)[number % len(open_requests)]
            answer = encode(Command(0, opaque=opaque, flag=1))
            ended += [pending.context for pending, _ in session.receive(answer + answer) if pending]
            del open_requests[opaque]
        else:
            clock.now += number / 2
            for pending in session.expired(clock.now):
                ended.append(pending.context)
                open_requests = {key: value for key, value in open_requests.items() if value != pending.context}
            assert all(pending.deadline > clock.now for pending in session.pending.values())
    ended += [pending.context for pending in session.close()]
    assert sorted(ended) == made


def test_the_back_off_doubles_up_to_its_limit_and_starts_anew() -> None:
    backoff = Backoff(first=0.1, limit=0.5, rng=lambda: 1.0)
    waits = []
    for now in range(5):
        backoff.failed(float(now), "why")
        waits.append(round(backoff.remaining(float(now)), 3))
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff.reason == "why"
    assert backoff.remaining(100.0) == 0.0
    backoff.succeeded()
    backoff.failed(200.0, "again")
    assert round(backoff.remaining(200.0), 3) == 0.1


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("::1:80", ("::1", 80)),
        (" broker.example:10911 ", ("broker.example", 10911)),
    ],
)
def test_addresses_are_split(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:-1", "host:x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConnectFailed):
        split_address(address)


def test_a_connection_on_which_nothing_comes_any_more_seems_dead() -> None:
    clock = Clock()
    session = Session(clock)
    answer = encode(Command(0, opaque=5, flag=1))
    clock.now = 100.0
    session.receive(answer)
    clock.now = 300.0  # silence is nothing to worry about while nobody asks for anything
    for sent in (299.0, 300.0):  # requests of 1 s
        clock.now = sent + 1
        assert not session.seems_dead(sent)
    clock.now = 302.0
    assert session.seems_dead(301.0)
    session.receive(answer)
    clock.now = 304.0
    assert not session.seems_dead(303.0)
    clock.now = 320.0
    session.receive(answer)
    clock.now = 330.0  # something came meanwhile: only this answer is late
    assert not session.seems_dead(315.0)
