"""What the hook of the SDK's session does to a reply before the SDK reads it."""

from __future__ import annotations

import gzip
import io
import json

import pytest
import requests
import urllib3

from llm_wrapper.detectors import dds_client
from llm_wrapper.services import CallError

KEY = "k3y-0123456789abcdef"


def replied(content: bytes, **headers: str) -> requests.Response:
    """A reply that has not been read yet."""
    response = requests.Response()
    response.status_code = 200
    response.headers.update(headers)
    response.raw = urllib3.HTTPResponse(io.BytesIO(content), headers=headers, preload_content=False)
    response.request = requests.PreparedRequest()
    response.request.method = "POST"
    return response


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDS_API_KEY", KEY)


def test_a_good_reply_is_there_for_the_sdk() -> None:
    content = json.dumps({"code": 0, "data": {"task_uuid": "t"}}).encode()
    response = replied(gzip.compress(content), **{"Content-Encoding": "gzip"})
    dds_client._judge_reply(response)
    assert response.content == content


@pytest.mark.parametrize("is_packed", [False, True], ids=["long", "packed"])
def test_a_reply_without_end_is_not_read_to_the_end(is_packed: bool) -> None:
    content = b" " * (64 << 20)
    packed = {"Content-Encoding": "gzip"} if is_packed else {}
    with pytest.raises(CallError, match="more than 16 MiB") as caught:
        dds_client._judge_reply(replied(gzip.compress(content, 1) if is_packed else content, **packed))
    assert caught.value.charged


def test_a_key_that_comes_back_is_not_shown() -> None:
    response = replied(json.dumps({"code": 7, "msg": f"token {KEY} is wrong"}).encode())
    with pytest.raises(CallError, match=r"token \*\*\* is wrong"):
        dds_client._judge_reply(response)
