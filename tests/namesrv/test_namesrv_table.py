from hypothesis import given, settings
from hypothesis import strategies as st

from rocketq.namesrv.table import BROKER_TIMEOUT, Master, Registration, RouteTable
from rocketq.remoting.bodies import DataVersion, QueueData, TopicConfig


def topics(*names: str, perm: int = 6, queues: int = 4) -> dict[str, TopicConfig]:
    return {
        name: TopicConfig(topic_name=name, read_queue_nums=queues, write_queue_nums=queues, perm=perm)
        for name in names
    }


def broker(name: str = "a", address: str = "h:1", broker_id: int = 0, **more) -> Registration:
    more.setdefault("topics", topics("T", "U"))
    more.setdefault("version", DataVersion(counter=1))
    return Registration("C", name, address, broker_id, **more)


def perms(table: RouteTable, topic: str) -> dict[str, int]:
    route = table.route(topic)
    return {} if route is None else {data.broker_name: data.perm for data in route.queue_datas}


def test_a_registered_broker_is_in_the_routes_of_its_topics():
    table = RouteTable()
    assert table.register(0, broker()) == Master()
    table.register(0, broker("b", "h:2"))
    route = table.route("T")
    assert {data.broker_name: data.broker_addrs for data in route.broker_datas} == {
        "a": {0: "h:1"},
        "b": {0: "h:2"},
    }
    assert sorted(data.broker_name for data in route.queue_datas) == ["a", "b"]
    assert table.cluster_info().cluster_addr_table == {"C": ["a", "b"]}
    assert table.route("unknown") is None


def test_an_incremental_registration_is_merged():
    table = RouteTable()
    table.register(0, broker())
    table.register(0, broker(topics=topics("V", queues=2), version=DataVersion(counter=2)))
    assert sorted(table.topics()) == ["T", "U", "V"]
    table.register(0, broker(topics=topics("T", queues=9), version=DataVersion(counter=3)))
    assert table.route("T").queue_datas[0].write_queue_nums == 9
    assert table.route("V").queue_datas[0].write_queue_nums == 2


def test_an_unknown_broker_cannot_register_a_single_topic():
    table = RouteTable()
    assert table.register(0, broker(topics=topics("T"))) is None
    assert table.topics() == []
    assert table.members("a") == {}
    assert table.version("C", "h:1") is None


def test_a_broker_without_heartbeat_leaves_after_its_timeout():
    table = RouteTable()
    table.register(0, broker(), owner="one")
    table.register(0, broker("b", "h:2", timeout=3000), owner="two")
    assert table.expire(3000) == []
    assert table.expire(3001) == ["two"]
    assert [data.broker_name for data in table.route("T").broker_datas] == ["a"]
    table.heartbeat(100_000, "C", "h:1")
    assert table.expire(BROKER_TIMEOUT + 1) == []
    assert table.expire(BROKER_TIMEOUT + 100_001) == ["one"]
    assert table.route("T") is None
    assert table.cluster_info().cluster_addr_table == {}


def test_time_in_which_nobody_was_heard_is_not_silence():
    table = RouteTable()
    table.register(0, broker(timeout=3000), owner="one")
    table.excuse(10_000, 9000)
    assert table.expire(12_000) == []
    table.excuse(12_000, -5)  # a clock that is a little early takes nothing away
    assert table.expire(12_000) == []
    assert table.expire(12_001) == ["one"]
    table.register(0, broker(timeout=3000), owner="one")
    table.excuse(1000, 9000)
    assert table.expire(4001) == ["one"], "nobody is credited with the future"


def test_a_heartbeat_of_an_unknown_broker_means_nothing():
    table = RouteTable()
    table.heartbeat(0, "C", "h:1")
    assert table.version("C", "h:1") is None


def test_a_lost_connection_takes_its_brokers_out():
    table = RouteTable()
    table.register(0, broker(), owner="one")
    table.register(0, broker("b", "h:2"), owner="two")
    assert table.owner_lost("one") == ["h:1"]
    assert perms(table, "T") == {"b": 6}
    assert table.owner_lost("unknown") == []


def test_the_old_connection_of_a_broker_that_came_back_does_not_take_it_out():
    table = RouteTable()
    table.register(0, broker(), owner="old")
    table.register(0, broker(), owner="new")
    assert table.owner_lost("old") == []
    assert perms(table, "T") == {"a": 6}


def test_a_broker_that_moved_is_found_at_its_new_address_only():
    table = RouteTable()
    table.register(0, broker(), owner="old")
    table.register(10, broker(address="h:9"), owner="new")
    assert table.members("a") == {0: "h:9"}
    table.owner_lost("old")
    assert table.members("a") == {0: "h:9"}
    assert perms(table, "T") == {"a": 6}


def test_an_address_has_one_id_only():
    table = RouteTable()
    table.register(0, broker())
    table.register(0, broker(broker_id=2, acting_master=True))
    assert table.members("a") == {2: "h:1"}


def test_an_older_state_version_does_not_take_an_id():
    table = RouteTable()
    table.register(0, broker(version=DataVersion(state_version=5)))
    table.register(0, broker(address="h:2", version=DataVersion(state_version=4)))
    assert table.members("a") == {0: "h:1"}
    table.register(0, broker(address="h:2", version=DataVersion(state_version=5)))
    assert table.members("a") == {0: "h:2"}


def test_a_slave_learns_its_master_and_does_not_change_topics():
    table = RouteTable()
    table.register(0, broker(ha_address="h:11"))
    assert table.register(0, broker(address="h:2", broker_id=1, topics=topics("X", "Y"))) == Master("h:1", "h:11")
    assert table.route("X") is None
    assert table.members("a") == {0: "h:1", 1: "h:2"}


def test_without_master_an_acting_slave_serves_reads():
    table = RouteTable()
    table.register(0, broker(acting_master=True))
    table.register(0, broker(address="h:2", broker_id=1, acting_master=True))
    table.unregister("C", "a", "h:1")
    assert perms(table, "T") == {"a": 4}
    assert table.route("T").broker_datas[0].broker_addrs == {1: "h:2"}
    assert table.route("T", acting_master=True).broker_datas[0].broker_addrs == {0: "h:2"}
    assert table.members("a") == {1: "h:2"}, "asking for a route must not change the table"


def test_wiped_write_permission_holds_until_the_topics_change():
    table = RouteTable()
    table.register(0, broker())
    table.register(0, broker("b", "h:2"))
    assert table.wipe_write("a") == 2
    assert table.wipe_write("nobody") == 0
    assert perms(table, "T") == {"a": 4, "b": 6}
    table.register(1, broker())
    assert perms(table, "T") == {"a": 4, "b": 6}
    assert table.add_write("a") == 2
    assert perms(table, "T") == {"a": 6, "b": 6}
    table.wipe_write("a")
    table.register(2, broker(version=DataVersion(counter=2)))
    assert perms(table, "T") == {"a": 6, "b": 6}


def test_a_topic_is_deleted_everywhere_or_in_one_cluster():
    table = RouteTable()
    table.register(0, broker())
    table.register(0, Registration("D", "d", "h:3", 0, topics=topics("T", "U")))
    table.delete_topic("T", "D")
    assert perms(table, "T") == {"a": 6}
    table.delete_topic("T")
    table.delete_topic("T")
    assert table.route("T") is None
    assert perms(table, "U") == {"a": 6, "d": 6}


def test_a_full_registration_can_take_topics_away():
    keeping, deleting = RouteTable(), RouteTable(delete_unmentioned=True)
    for table in (keeping, deleting):
        table.register(0, broker(topics=topics("T", "U", "V")))
        table.register(0, broker(topics=topics("T", "U"), version=DataVersion(counter=2)))
    assert sorted(keeping.topics()) == ["T", "U", "V"]
    assert sorted(deleting.topics()) == ["T", "U"]
    deleting.register(0, broker(topics=topics("W"), version=DataVersion(counter=3)))
    assert sorted(deleting.topics()) == ["T", "U", "W"]


def test_topic_lists_by_cluster_and_by_flag():
    table = RouteTable()
    table.register(0, broker(topics=topics("T", "U")))
    table.register(0, Registration("D", "d", "h:3", 0, topics=topics("T", "W")))
    assert sorted(table.topics_of_cluster("C")) == ["T", "U"]
    assert table.topics_of_cluster("nope") == []
    units = {
        "unit": TopicConfig(topic_name="unit", topic_sys_flag=1),
        "sub": TopicConfig(topic_name="sub", topic_sys_flag=2),
        "both": TopicConfig(topic_name="both", topic_sys_flag=3),
    }
    table.register(0, Registration("E", "e", "h:4", 0, topics=units))
    assert sorted(table.unit_topics(1)) == ["both", "unit"]
    assert sorted(table.unit_topics(2)) == ["both", "sub"]
    assert table.unit_topics(2, 1) == ["sub"]
    names, address = table.system_topics()
    assert sorted(names) == ["C", "D", "E", "a", "d", "e"]
    assert address == "h:1"


def test_topics_can_be_added_for_known_brokers_only():
    table = RouteTable()
    table.register(0, broker())
    table.register_topic("N", [QueueData("a", 1, 1, 6, 0), QueueData("stranger", 1, 1, 6, 0)])
    assert perms(table, "N") == {"a": 6}
    table.register_topic("M", [QueueData("stranger", 1, 1, 6, 0)])
    assert table.route("M") is None


_events = st.one_of(
    st.tuples(
        st.just("register"),
        st.sampled_from("ab"),
        st.sampled_from(["h:1", "h:2", "h:3"]),
        st.integers(0, 2),
        st.lists(st.sampled_from("TUV"), unique=True),
        st.integers(0, 3),
        st.sampled_from(["one", "two"]),
    ),
    st.tuples(st.just("unregister"), st.sampled_from("ab"), st.sampled_from(["h:1", "h:2", "h:3"])),
    st.tuples(st.just("lost"), st.sampled_from(["one", "two"])),
    st.tuples(st.just("expire"), st.integers(0, 300_000)),
    st.tuples(st.just("delete"), st.sampled_from("TUV")),
)


@given(st.lists(_events, max_size=30))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_routes_name_brokers_that_are_there(events):
    table = RouteTable()
    now = 0
    for kind, *arguments in events:
        if kind == "register":
            name, address, broker_id, names, version, owner = arguments
            table.register(
                now,
                Registration(
                    "C",
                    name,
                    address,
                    broker_id,
                    topics=topics(*names),
                    version=DataVersion(counter=version),
                    acting_master=True,
                ),
                owner,
            )
        elif kind == "unregister":
            table.unregister("C", *arguments)
        elif kind == "lost":
            table.owner_lost(*arguments)
        elif kind == "delete":
            table.delete_topic(*arguments)
        else:
            now += arguments[0]
            table.expire(now)
        info = table.cluster_info()
        assert sorted(info.broker_addr_table) == sorted(info.cluster_addr_table.get("C", []))
        for data in info.broker_addr_table.values():
            assert data.broker_addrs, "a broker without an address is not in the table"
            assert len(set(data.broker_addrs.values())) == len(data.broker_addrs)
        for topic in table.topics():
            route = table.route(topic)
            assert route is not None
            assert {q.broker_name for q in route.queue_datas} == {b.broker_name for b in route.broker_datas}
