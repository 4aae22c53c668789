"""Requests that schemathesis makes of what the server says of itself, good and bad ones: none is a mistake of the server's."""

import importlib

import pytest
from hypothesis import HealthCheck, given, settings
from support.server import Server

FEW = settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def server(model_path):
    server = Server(model_path, "--ranks", 1, "-c", 48, "-np", 8)
    yield server.ready()
    server.close()


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_is_a_mistake_of_the_servers(server, mode):
    schemathesis = importlib.import_module("schemathesis")  # which takes a second: every worker collects this file
    generation_mode = schemathesis.GenerationMode[mode]
    schema = schemathesis.openapi.from_dict(server.client.get("/openapi.json").json())
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.body:
            given(case=operation.as_strategy(generation_mode=generation_mode))(FEW(lambda case: check(server, case)))()
            asked += 1
    assert asked >= 9


def check(server, case):
    answer = case.call(base_url=server.url)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert "message" in answer.json()["error"]
    server.read()
    assert "mistake" not in server.said, server.said
