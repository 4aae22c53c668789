"""The page at /, as a browser shows it: narrow and wide, light and dark."""

import re

import pytest
from support.browser import CHROMIUM, Browser
from support.server import Server

from numatp.server.page import FILE


@pytest.fixture(scope="module")
def server(model_path):
    server = Server(model_path, "--ranks", 1, "-c", 1024, "-np", 3, "--alias", "small")
    yield server.ready()
    server.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium: apt install chromium")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def test_the_page_is_one_small_file(server):
    answer = server.client.get("/")
    assert answer.content == FILE.read_bytes() and len(answer.content) < 30_000
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.findall(rb"https?://|@import|src=", answer.content)  # nothing from outside


def ask(browser, text):
    browser.run("document.getElementById('ask').focus()")
    browser.type(text)
    browser.press_enter()


def shown(browser):
    return browser.run("document.getElementById('talk').innerText")


@pytest.mark.parametrize("width, dark", [(1200, False), (1200, True), (380, False), (380, True)])
def test_a_conversation(server, browser, width, dark):
    browser.complaints.clear()
    browser.open(f"{server.url}/", width=width, dark=dark)
    browser.until("document.getElementById('nodes').children.length > 0")
    browser.run("document.getElementById('temperature').value = '0'; document.getElementById('max_tokens').value = '12'")
    expected = server.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Say hi"}], "temperature": 0, "max_tokens": 12}
    ).json()["choices"][0]["message"]["content"]
    ask(browser, "Say hi")
    browser.until("document.querySelector('.said')?.textContent.includes('to the first')")
    assert expected.strip() in shown(browser) and "12 tokens" in shown(browser)
    assert browser.run("document.getElementById('name').textContent") == "small"
    assert browser.run("document.getElementById('places').children.length") == 3
    assert browser.run("document.documentElement.scrollWidth") <= width  # nothing is cut off
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 3 * 128) == dark
    side = "getComputedStyle(document.querySelector('aside')).display"
    assert browser.run(side) == ("none" if width < 700 else "block")
    if width < 700:
        browser.run("document.getElementById('toggle').click()")
        assert browser.run(side) == "block"
    assert browser.complaints == [] and all(address.startswith(server.url) for address in browser.addresses)


def test_stop_ends_the_answer(server, browser):
    browser.open(f"{server.url}/")
    browser.until("document.getElementById('nodes').children.length > 0")
    browser.run("document.getElementById('max_tokens').value = ''")
    ask(browser, "Count from one to one million, and write every number as a word.")
    browser.until("document.querySelector('.text')?.textContent.length > 5")
    browser.run("document.getElementById('send').click()")
    browser.until("document.getElementById('send').textContent == 'Send'")
    assert "stopped" in shown(browser)
    for _ in range(200):
        if not server.counts()["num_requests_running"]:
            break
    assert not server.counts()["num_requests_running"]


def test_what_goes_wrong_is_shown(server, browser):
    browser.open(f"{server.url}/")
    browser.until("document.getElementById('nodes').children.length > 0")
    browser.run("document.getElementById('temperature').value = '-3'")
    ask(browser, "Hello")
    browser.until("document.querySelector('.fault')?.textContent.includes('temperature')")
