"""Daemons that speak TLS only."""

import shutil
import subprocess

import pytest
from servers import ServerProcess, start_server

from rocketq.errors import RemotingError
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.bodies import ClusterInfo
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.tls import TlsConfig


@pytest.fixture
def certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_a_broker_registers_with_a_nameserver_that_demands_tls(tmp_path, certificate):
    cert, key = certificate
    server = ["--set", "tls.server.mode=enforcing", "--set", f"tls.server.certPath={cert}"]
    server += ["--set", f"tls.server.keyPath={key}", "--host", "127.0.0.1", "--port", "0"]
    client = ["--set", "tls.enable=true", "--set", "tls.client.authServer=true"]
    client += ["--set", f"tls.client.trustCertPath={cert}"]
    with (
        ServerProcess("namesrv", "--data", tmp_path / "ns", *server) as namesrv,
        ServerProcess("broker", "-n", namesrv.namesrv, "--data", tmp_path / "store", *server, *client) as broker,
    ):
        plain, secure = BlockingClient(), BlockingClient(tls=TlsConfig(ca=str(cert), verify_server=True))
        try:
            answer = secure.call(namesrv.namesrv, RequestCode.GET_BROKER_CLUSTER_INFO)
            (data,) = ClusterInfo.decode(bytes(answer.body)).broker_addr_table.values()
            assert data.broker_addrs == {0: broker.broker}
            assert secure.call(broker.broker, RequestCode.GET_BROKER_RUNTIME_INFO).code == 0
            for address in (namesrv.namesrv, broker.broker):
                with pytest.raises(RemotingError):
                    plain.call(address, RequestCode.GET_BROKER_CLUSTER_INFO)
        finally:
            plain.close()
            secure.close()
        assert broker.stop() == 0
        assert namesrv.stop() == 0


@pytest.mark.parametrize("brokers", ["1", "2"])
def test_one_file_makes_a_whole_server_demand_tls(tmp_path, certificate, brokers):
    cert, key = certificate
    file = tmp_path / "broker.conf"
    file.write_text(f"tls.server.mode=enforcing\ntls.server.certPath={cert}\ntls.server.keyPath={key}\n")
    with start_server(tmp_path / "data", "-c", str(file), "--brokers", brokers) as server:
        client = BlockingClient(tls=TlsConfig())
        answer = client.call(server.namesrv, RequestCode.GET_BROKER_CLUSTER_INFO)
        assert len(ClusterInfo.decode(bytes(answer.body)).broker_addr_table) == int(brokers)
        client.close()
        assert server.stop() == 0
