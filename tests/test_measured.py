"""The kept roofline: what is written comes back, other hosts stay, and a damaged file counts as none."""

import json

import pytest

from numatp.files.measured import keep_bandwidth, path, read_bandwidth


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path / "cache"))


def test_kept_by_host():
    assert read_bandwidth() == {}
    keep_bandwidth({0: 100.0, 2: 50.5}, {"remote": [1]})
    keep_bandwidth({0: 7.0}, host="other")
    keep_bandwidth({0: 8.0}, host="other")
    assert read_bandwidth() == {0: 100e9, 2: 50.5e9}
    assert read_bandwidth("other") == {0: 8e9}
    assert [file.name for file in path().parent.iterdir()] == ["bandwidth.json"]
    assert any(kept.get("remote") == [1] for kept in json.loads(path().read_text()).values())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"h": 1}', '{"h": {"nodes": []}}', '{"h": {"nodes": {"0": 3, "x": {"read_gbs": 1}, "1": {"read_gbs": "2"}}}}',
     '{"h": {"nodes": {"0": {"read_gbs": NaN}, "1": {"read_gbs": -1}}}}'],
)  # fmt: skip
def test_damaged(text):
    path().parent.mkdir(parents=True)
    path().write_text(text)
    assert read_bandwidth("h") == {}
    keep_bandwidth({0: 1.0}, host="h")
    assert read_bandwidth("h") == {0: 1e9}
