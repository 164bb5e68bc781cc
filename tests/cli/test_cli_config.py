import logging
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocketq.config import (
    BrokerConfig,
    NamesrvConfig,
    load,
    parse_addresses,
    parse_properties,
    parse_settings,
)
from rocketq.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def conf(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "broker.conf"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_an_apache_broker_conf_works(conf, caplog):
    path = conf(
        "# the file that Apache ships\n"
        "brokerClusterName = DefaultCluster\n"
        "brokerName = broker-a\n"
        "brokerId = 0\n"
        "deleteWhen = 04\n"
        "brokerIP1=10.0.0.5\n"
        "brokerRole = ASYNC_MASTER\n"
        "flushDiskType = SYNC_FLUSH\n"
    )
    with caplog.at_level(logging.WARNING):
        config = load(BrokerConfig, path, env={})
    assert (config.broker_name, config.broker_ip1, config.flush_disk_type) == (
        "broker-a",
        "10.0.0.5",
        "SYNC_FLUSH",
    )
    assert (config.host, config.delete_when) == ("10.0.0.5", "04")
    assert config.broker_role == "ASYNC_MASTER"
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("brokerName=a\nlistenPort=http", "line 2: listenPort: 'http' is not an integer"),
        ("listenPort=70000", "line 1: listenPort: 70000 is above 65535"),
        ("flushDiskType=SOMETIMES", "line 1: flushDiskType: 'SOMETIMES' is not one of ASYNC_FLUSH, SYNC_FLUSH"),
        ("autoCreateTopicEnable=yes", "line 1: autoCreateTopicEnable: 'yes' is neither true nor false"),
    ],
)
def test_a_bad_value_is_named_with_file_line_and_key(conf, text, problem):
    path = conf(text)
    with pytest.raises(ConfigError) as caught:
        load(BrokerConfig, path, env={})
    assert str(caught.value) == f"{path} {problem}"


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load(BrokerConfig, tmp_path / "nope.conf", env={})


def test_later_places_win(conf):
    path = conf("brokerName=file\nregionId=file\nbrokerClusterName=file\n")
    config = load(
        BrokerConfig,
        path,
        env={"ROCKETQ_REGION_ID": "env", "ROCKETQ_BROKER_CLUSTER_NAME": "env", "NAMESRV_ADDR": "a:1"},
        defaults={"broker_name": "default", "bind_address": "127.0.0.1"},
        overrides={"broker_cluster_name": "option", "listen_port": None},
    )
    assert config.bind_address == "127.0.0.1"
    assert config.broker_name == "file"
    assert config.region_id == "env"
    assert config.broker_cluster_name == "option"
    assert config.listen_port == 10911
    assert config.namesrv_addresses == ["a:1"]


def test_a_bad_variable_is_named():
    with pytest.raises(ConfigError, match="environment variable ROCKETQ_LISTEN_PORT: 'x' is not an integer"):
        load(NamesrvConfig, env={"ROCKETQ_LISTEN_PORT": "x"})


def test_settings_of_the_command_line():
    assert parse_settings(BrokerConfig, ["brokerName=x", "brokerIP1=h", "listenPort=0"]) == {
        "broker_name": "x",
        "broker_ip1": "h",
        "listen_port": 0,
    }
    for wrong in ("brokerName", "noSuchKey=1", "listenPort=x"):
        with pytest.raises(ConfigError):
            parse_settings(BrokerConfig, [wrong])


def test_address_lists():
    assert parse_addresses("a:1; b:2 ;;a:1,[::1]:3") == ["a:1", "b:2", "[::1]:3"]
    for wrong in ("a", "a:", ":1", "a:x", "a:70000"):
        with pytest.raises(ConfigError):
            parse_addresses(wrong)


def test_properties_are_read_as_java_reads_them():
    text = (
        "# comment\n! comment\n\n"
        "plain=value\n"
        "  spaces  =  around kept \n"
        "colon:value\n"
        "blank value\n"
        "key\n"
        "long=one, \\\n    two\n"
        "escaped\\ key\\==\\u00e9\\t!\n"
        "path=C\\:\\\\dir\n"
    )
    assert parse_properties(text) == [
        ("plain", "value", 4),
        ("spaces", "around kept ", 5),
        ("colon", "value", 6),
        ("blank", "value", 7),
        ("key", "", 8),
        ("long", "one, two", 9),
        ("escaped key=", "é\t!", 11),
        ("path", "C:\\dir", 12),
    ]


@given(st.text())
def test_no_properties_text_breaks_the_reader(text):
    for key, value, line in parse_properties(text):
        assert isinstance(key, str)
        assert isinstance(value, str)
        assert line >= 1


@pytest.mark.parametrize("kind", [BrokerConfig, NamesrvConfig])
def test_what_is_printed_can_be_read_again(kind, conf):
    config = load(kind, env={}, overrides={"bind_address": "127.0.0.9"})
    entries = {key: value for key, value in config.as_properties().items() if value}
    path = conf("".join(f"{key}={value}\n" for key, value in entries.items()))
    assert load(kind, path, env={}) == config


def test_the_reference_page_is_current():
    page = runpy.run_path(str(DOCS / "generate_configuration.py"))["page"]()
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == page, (
        "run python docs/generate_configuration.py"
    )


@pytest.mark.parametrize("kind", [BrokerConfig, NamesrvConfig])
def test_every_setting_does_something(kind):
    """Each field is read somewhere in the code besides its definition."""
    package = DOCS.parent / "rocketq"
    code = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    outside = "\n".join(text for path, text in code.items() if path != package / "config.py")
    inside = code[package / "config.py"]
    unused = [
        option.name
        for option in kind.options()
        if f".{option.name}" not in outside and f"self.{option.name}" not in inside
    ]
    assert unused == []


def test_tls_needs_a_certificate():
    assert BrokerConfig().tls() is None
    assert BrokerConfig(tls_server_mode="disabled", tls_server_cert_path="c").tls() is None
    with pytest.raises(ConfigError, match=r"tls\.server\.certPath"):
        BrokerConfig(tls_server_mode="enforcing").tls()
    overrides = parse_settings(
        BrokerConfig,
        [
            "tls.server.certPath=c",
            "tls.server.keyPath=k",
            "tls.server.trustCertPath=t",
            "tls.server.keyPassword=s",
        ],
    )
    config = load(BrokerConfig, env={}, overrides=overrides)
    tls = config.tls()
    assert (tls.mode, tls.cert, tls.key, tls.ca, tls.key_password) == ("permissive", "c", "k", "t", "s")
    assert "s" not in config.as_properties().values(), "a password is not shown to whoever asks for the settings"


def test_tls_towards_nameservers():
    assert BrokerConfig().client_tls() is None
    overrides = parse_settings(
        BrokerConfig, ["tls.enable=true", "tls.client.trustCertPath=t", "tls.client.authServer=true"]
    )
    tls = load(BrokerConfig, env={}, overrides=overrides).client_tls()
    assert (tls.ca, tls.verify_server, tls.cert) == ("t", True, "")


def test_the_store_gets_its_settings_from_the_broker_record():
    from rocketq.store.config import StoreConfig

    config = load(BrokerConfig, env={}, overrides={"store_path_root_dir": "/x", "max_index_num": 7})
    store = config.store()
    assert isinstance(store, StoreConfig)
    assert str(store.store_path_root_dir) == "/x"
    assert store.max_index_num == 7
