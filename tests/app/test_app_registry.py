from __future__ import annotations

import asyncio
import functools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rocketq
from rocketq import RocketQ, consumer
from rocketq import app as apps
from rocketq.client import ClientInstance
from rocketq.errors import ConfigError
from rocketq.worker import Worker
from rocketq.worker.loader import load_app


@pytest.fixture(autouse=True)
def no_leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test sees its own module-level consumers, modules and import path."""
    monkeypatch.setattr(apps, "_shared", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_decorated_function_is_still_that_function() -> None:
    app = RocketQ("shop")

    def double(number: int) -> int:
        return 2 * number

    assert app.consumer("numbers")(double) is double
    assert double(4) == 8


def test_tag_and_sql_exclude_each_other() -> None:
    app = RocketQ("shop")
    with pytest.raises(ConfigError, match="tag and sql exclude each other"):
        app.consumer("orders", "paid", sql="amount > 3")(lambda body: None)


def test_a_group_is_named_after_application_and_function() -> None:
    app = RocketQ("shop")

    @app.consumer("orders", "new || changed", concurrency=3)
    async def store(body: bytes) -> None: ...

    @app.consumer("orders", group="audit", ordered=True, max_retries=5, from_where="FIRST")
    def audit(body: bytes) -> None: ...

    one, two = app.consumers
    assert (one.topic, one.tag, one.group, one.concurrency, one.is_async) == (
        "orders",
        "new || changed",
        "shop-store",
        3,
        True,
    )
    assert (two.group, two.ordered, two.retries, two.is_async) == ("audit", True, 5, False)


def test_two_functions_in_one_group_are_refused() -> None:
    app = RocketQ("shop")

    @app.consumer("orders")
    def store(body: bytes) -> None: ...

    with pytest.raises(ConfigError, match=r"group shop-store already belongs to .*store on topic orders"):
        app.consumer("bills")(store)


@pytest.mark.parametrize(
    "options",
    [
        {"topic": "no topic"},
        {"tag": "||"},
        {"tag": ""},
        {"group": "no group"},
        {"ordered": True, "broadcast": True},
        {"concurrency": 0},
        {"max_retries": -1},
        {"lease": 0.5},
        {"grace": -1},
        {"grace": math.nan},
        {"grace": math.inf},
        {"from_where": "MIDDLE"},
    ],
)
def test_wrong_options_are_refused_where_they_are_written(options: dict[str, object]) -> None:
    app = RocketQ("shop")

    def function(body: bytes) -> None: ...

    with pytest.raises(ConfigError, match="function"):
        app.consumer(**{"topic": "t", **options})(function)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"client_id": "me"}])
def test_a_worker_has_one_client_for_each_grace_and_no_two_share_an_id(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ClientInstance] = []

    def spy(*arguments: Any, **more: Any) -> ClientInstance:
        made.append(ClientInstance(*arguments, **more))
        return made[-1]

    monkeypatch.setattr("rocketq.worker.runner.ClientInstance", spy)
    app = RocketQ("shop", **options)

    async def function(body: bytes) -> None: ...

    for number, grace in enumerate((1, 1, 2)):
        app.consumer("t", group=f"g{number}", grace=grace)(function)
    app.consumer("t", group="all", broadcast=True)(function)
    ids = set()
    for member in range(2):
        worker = Worker(app, member=member)
        worker.stop()
        assert asyncio.run(worker.run())
        one, same, two, everybody = [running.instance for running in worker._running]
        assert one is same
        ids |= {one.client_id, two.client_id, everybody.client_id}
    assert len(ids) == 6
    assert len(made) == 6


def test_an_application_needs_a_legal_name() -> None:
    with pytest.raises(ConfigError, match=r"my\.app"):
        RocketQ("my.app")


def test_producers_of_event_loops_that_are_gone_are_not_kept() -> None:
    app = RocketQ("loops", "127.0.0.1:1")
    for _ in range(3):
        asyncio.run(use(app))
    assert len(app._async_producers) == 1
    asyncio.run(app.aclose())  # a loop without a producer


async def use(app: RocketQ) -> None:
    assert await app.aproducer() is await app.aproducer()


def test_module_level_consumers_belong_to_the_application_that_is_loaded() -> None:
    @consumer("orders", "paid")
    def ship(body: bytes) -> None: ...

    app = RocketQ("shop")

    @consumer("orders", "new", group="own", ordered=True)
    def pack(body: bytes) -> None: ...

    assert [(c.group, c.tag, c.ordered) for c in app.consumers] == [
        ("shop-ship", "paid", False),
        ("own", "new", True),
    ]
    assert [c.group for c in app.consumers] == ["shop-ship", "own"]
    with pytest.raises(TypeError, match="orderly"):
        consumer("orders", orderly=True)


@pytest.mark.parametrize(
    ("environment", "namesrv"),
    [
        ({}, "127.0.0.1:9876"),
        ({"NAMESRV_ADDR": "a:1"}, "a:1"),
        ({"NAMESRV_ADDR": "a:1", "ROCKETQ_NAMESRV": "b:2"}, "b:2"),
    ],
)
def test_the_environment_names_the_nameserver(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], namesrv: str
) -> None:
    for name in ("NAMESRV_ADDR", "ROCKETQ_NAMESRV"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert RocketQ("shop").namesrv == namesrv
    assert RocketQ("shop", "c:3").namesrv == "c:3"


APP = "from rocketq import RocketQ, consumer\n"


@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        (APP + "app = RocketQ('a'); other = RocketQ('b')", "mod", "a"),
        (APP + "app = RocketQ('a'); other = RocketQ('b')", "mod:other", "b"),
        (APP + "class C: inner = RocketQ('a')", "mod:C.inner", "a"),
        (APP + "shop = RocketQ('a'); again = shop", "mod", "a"),
        (APP + "@consumer('t')\ndef f(m): ...", "mod", "mod"),
        (APP + "shop = RocketQ('a')", "mod.py", "a"),
        (APP + "app = RocketQ('a'); other = RocketQ('b')", "mod.py:other", "b"),
    ],
)
def test_an_application_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, name: str
) -> None:
    (tmp_path / "mod.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert load_app(target).name == name


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("", "nowhere", "no module 'nowhere'"),
        ("", "nowhere.deep:app", "no module 'nowhere.deep'"),
        ("", "nowhere.py", "no file nowhere.py"),
        ("", "mod", "neither a RocketQ application nor"),
        ("app = 1", "mod:app", "no RocketQ application called 'app'"),
        (APP + "a = RocketQ('a'); b = RocketQ('b')", "mod", "say which one"),
    ],
)
def test_an_application_that_is_not_there_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, text: str
) -> None:
    (tmp_path / "mod.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=text):
        load_app(target)


def test_a_module_that_fails_to_import_another_shows_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mod.py").write_text("import nothing_like_this")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nothing_like_this"):
        load_app("mod")


def test_a_worker_checks_signatures_and_groups_before_it_starts() -> None:
    app = RocketQ("shop")
    with pytest.raises(ConfigError, match="no consumers"):
        Worker(app)

    @app.consumer("t")
    def wrong(a: int, b: int) -> None: ...

    with pytest.raises(ConfigError, match="wrong"):
        Worker(app)
    with pytest.raises(ConfigError, match=r"no consumer group x; it has: shop-wrong"):
        Worker(app, groups=["x"])


def test_a_partial_of_an_async_function_is_async() -> None:
    app = RocketQ("shop")

    async def function(factor: int, body: bytes) -> None: ...

    app.consumer("t", group="g")(functools.partial(function, 3))
    assert app.consumers[0].is_async


def test_every_public_name_can_be_imported() -> None:
    for name in rocketq.__all__:
        assert getattr(rocketq, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = rocketq.nothing


def test_importing_rocketq_loads_neither_client_nor_server() -> None:
    code = "import sys, rocketq; print(sorted(m for m in sys.modules if m.startswith(('rocketq.', 'asyncio'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['rocketq.lazy']"
