"""A store against a dict of lists: whatever is done to it, in any order, it says what the lists say."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_kit import Opener, abandon, bodies, delete_topic, send

from rocketq.errors import InvalidMessage
from rocketq.hashing import java_hash
from rocketq.store.index import index_items, key_hash
from rocketq.store.marks import Checkpoint
from rocketq.store.values import Appended

QUEUES = [("A", 0), ("A", 1), ("long" * 40, 0)]
TINY = {
    "mapped_file_size_commit_log": 2048,
    "mapped_file_size_consume_queue": 100,
    "max_hash_slot_num": 4,
    "max_index_num": 10,
}


class StoreMachine(RuleBasedStateMachine):
    """Messages are (body, key); those that were appended and not written are lost by a stop."""

    @initialize(sync=st.booleans())
    def start(self, sync):
        self.directory = Path(tempfile.mkdtemp(prefix="rocketq-model-"))
        self.opener = Opener(self.directory)
        self.settings = {**TINY, "flush_disk_type": "SYNC_FLUSH" if sync else "ASYNC_FLUSH"}
        self.store = self.opener(**self.settings)
        self.written = {key: [] for key in QUEUES}
        self.appended = []
        self.number = 0

    @rule(queue=st.sampled_from(QUEUES), size=st.integers(0, 900), count=st.integers(1, 12))
    def append(self, queue, size, count):
        for _ in range(count):
            self.number += 1
            body = b"%d:" % self.number + b"x" * size
            key = f"k{self.number % 17}"
            place = send(self.store, *queue, body, keys=key, tag="t", unique_id=f"{self.number:08X}", write=False)
            waiting = sum(1 for other, _, _ in self.appended if other == queue)
            assert place.queue_offset == len(self.written[queue]) + waiting
            self.appended.append((queue, body, key))

    @rule()
    def append_something_too_long(self):
        try:
            send(self.store, body=b"x" * 3000, write=False)
        except InvalidMessage:
            return
        raise AssertionError("it was accepted")

    @rule()
    def write(self):
        assert len(self.store.write()) == len(self.appended)
        self._count_written()

    def _count_written(self):
        for queue, body, key in self.appended:
            self.written[queue].append((body, key))
        self.appended.clear()

    @rule()
    def maintain(self):
        self.store.maintain()

    @rule()
    def save(self):
        self.store._save_now()

    @rule(queue=st.sampled_from(QUEUES))
    def delete(self, queue):
        delete_topic(self.store, queue[0])  # writes first
        self._count_written()
        for other in QUEUES:
            if other[0] == queue[0]:
                self.written[other].clear()

    @rule()
    def close_and_open(self):
        self.store.close()
        self._reopen()
        assert self.opener.recovery.clean

    @rule()
    def crash_and_open(self):
        self.opener.crash(self.store)
        self._reopen()
        assert not self.opener.recovery.clean

    def _reopen(self):
        self.opener.stores.clear()
        self.appended.clear()
        self.store = self.opener(**self.settings)
        assert self.opener.recovery.problems == []

    def flush(self):
        self.store._flusher.flush()
        self.store.advance()

    @invariant()
    def queues_are_the_lists(self):
        self.flush()
        for queue, messages in self.written.items():
            assert self.store.max_offset(*queue) == len(messages)
            assert bodies(self.store, *queue) == [body for body, _ in messages]

    @invariant()
    def keys_find_their_messages(self):
        self.flush()
        for queue in QUEUES[::2]:
            wanted = {
                body
                for other in QUEUES
                if other[0] == queue[0]
                for body, key in self.written[other]
                if key == "k3"
            }
            result = self.store.query(queue[0], "k3", begin=0, end=1 << 60, max_count=64)
            found = [bytes(buffer) for buffer in result.buffers]
            assert len(set(found)) == len(found)
            if len(found) < 64:
                assert all(any(body in record for record in found) for body in wanted)

    def teardown(self):
        if hasattr(self, "store"):
            abandon(self.store)
            shutil.rmtree(self.directory)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

keys = st.text(max_size=300) | st.from_regex(r"[0-9A-F]{32,56}", fullmatch=True)


@given(topic=st.text(max_size=20), unique_id=keys | st.none(), words=keys | st.none(), tag=keys | st.none())
@settings(max_examples=100, deadline=None)
def test_index_hashes_are_javas(topic, unique_id, words, tag):
    def hashed(text):
        value = abs(java_hash(text))
        return 0 if value == 2**31 else value

    message = Appended(topic, 0, 0, 5, 100, 6, 0, 0, None, unique_id, words, tag)
    expected = [hashed(f"{topic}#{unique_id}")] if unique_id is not None else []
    expected += [hashed(f"{topic}#{word}") for word in (words or "").split(" ") if word]
    expected += [hashed(f"{topic}#T#{tag}")] if tag else []
    assert index_items([message]) == [(value, 5, 6) for value in expected]
    assert key_hash(topic) == hashed(topic)


def test_a_hash_without_a_positive_counterpart_is_zero():
    assert java_hash("polygenelubricants") == -(2**31)
    assert key_hash("polygenelubricants") == 0


numbers = st.integers(0, 2**62)


@given(
    st.builds(Checkpoint, numbers, numbers, numbers, st.none() | numbers, numbers, numbers),
    st.binary(max_size=200),
)
def test_checkpoints_survive_their_page_and_rubbish_never_raises(checkpoint, rubbish):
    page = checkpoint.encode()
    assert len(page) == 4096
    decoded = Checkpoint.decode(page)
    if checkpoint.offset is not None:
        assert decoded == checkpoint
    else:
        assert decoded.offset is None
        assert decoded.min_timestamp == checkpoint.min_timestamp
    Checkpoint.decode(rubbish)
