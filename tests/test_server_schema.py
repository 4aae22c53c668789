"""Requests that schemathesis makes of what the server says of itself, good and bad ones: none is a mistake of the server's."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from support.server import Server


@pytest.fixture(scope="module")
def server(model_path):
    server = Server(model_path, "--ranks", 1, "-c", 96, "-np", 4)
    yield server.ready()
    server.close()


@pytest.fixture(scope="module")
def described(server):
    return schemathesis.openapi.from_dict(server.client.get("/openapi.json").json())


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_mistake_of_the_servers(case, server):
    answer = case.call(base_url=server.url)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert "message" in answer.json()["error"]
    server.read()
    assert "mistake" not in server.said, server.said
