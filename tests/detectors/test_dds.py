"""The paid detector through its real SDK, against a local server that misbehaves by a script."""

from __future__ import annotations

import base64
import gzip
import importlib
import io
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests
import urllib3
import yaml
from PIL import Image
from requests.adapters import HTTPAdapter

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detectors import PaidDetector, Question, dds, detect_sample
from llm_wrapper.detectors.dds import DDSDetector, DDSSettings, create_dds
from llm_wrapper.detectors.paid_calls import PaidCalls
from llm_wrapper.errors import LLMWrapperError, ModelError, RecipeError
from llm_wrapper.records import Detections, Sample
from llm_wrapper.services import CallError
from tests.detectors.dds_cases import CASES, RUNNING, Case
from tests.detectors.misbehaving_server import GOOD, MisbehavingServer, Step
from tests.detectors.test_paid_calls import FakeTime

RECIPE = Path(__file__).parents[2] / "recipes" / "vlm" / "gd15.yaml"
KEY = "k3y-0123456789abcdef"
SETTINGS = {"model": "GroundingDino-1.5-Pro", "price_per_call": 0.02, "max_cost": 1.0, "task_seconds": 10}
_MISSING = [name for name in ("dds_cloudapi_sdk", "sentry_sdk", "flask", "cv2", "pycocotools") if not find_spec(name)]
needs_sdk = pytest.mark.skipif(bool(_MISSING), reason=f"the extra `dds` is not installed: {', '.join(_MISSING)}")


class Impatient(HTTPAdapter):
    """Gives up at once where the server never answers by its script, and only there: no test depends on speed."""

    def __init__(self, server: MisbehavingServer) -> None:
        super().__init__()
        self.server = server
        self.timeouts: list[Any] = []

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        self.timeouts.append(kwargs["timeout"])
        hangs = self.server.hangs_next(str(request.method))
        kwargs["timeout"] = 0.02 if hangs else 60
        try:
            return super().send(request, *args, **kwargs)
        except requests.ReadTimeout:
            # On a busy machine the server may not even have read the request by now.
            assert hangs
            assert self.server.hanging.acquire(timeout=60)
            raise


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        monkeypatch.setenv("DDS_CLOUDAPI_ENDPOINT", server.url)
        monkeypatch.setenv("DDS_API_KEY", KEY)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        dds.load_sdk()
        session = importlib.import_module("dds_cloudapi_sdk.tasks.base").http_session
        session.mount(server.url, Impatient(server))
        yield server
        session.adapters.pop(server.url).close()


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    path = tmp_path / "zebra.png"
    Image.new("RGB", (8, 6), (200, 30, 10)).save(path)
    return Sample("s1", "r1", "i1", str(path), (8, 6), "left zebra", None)


def detector(time: FakeTime, **settings: Any) -> DDSDetector:
    chosen = DDSSettings(**{**SETTINGS, **settings})
    calls = PaidCalls(chosen.model.lower(), chosen, clock=time.clock, sleep=time.sleep, chance=lambda: 1.0)
    return DDSDetector(chosen, calls)


def as_rows(found: Detections) -> list[Any]:
    return [(item.box.xyxy, item.label, item.score, item.source) for item in found.items]


def sent_image(server: MisbehavingServer) -> Image.Image:
    head, _, data = server.seen[0].body["image"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


ZEBRA = [((1.0, 2.0, 6.5, 5.0), "left zebra", 0.75, "api")]


@needs_sdk
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_each_misbehaviour(case: Case, server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    server.submits.extend(case.submits)
    server.polls.extend(case.polls)
    asked = detector(time)
    if case.error is None:
        assert as_rows(detect_sample(asked, sample)) == ZEBRA
    else:
        with pytest.raises(ModelError, match=case.error) as caught:
            detect_sample(asked, sample)
        assert "sample 's1'" in str(caught.value)
    assert (server.count("POST"), server.count("GET")) == (case.num_submits, case.num_polls)
    assert asked.calls.num_charged == server.num_maybe_charged == case.charged
    assert len(server.tasks) == case.tasks <= asked.calls.num_charged
    assert asked.calls.num_answers == (case.error is None)
    assert max(time.slept, default=0.0) >= case.waited
    assert not [each for each in server.seen if each.path == "/elsewhere"]


@needs_sdk
def test_what_is_sent(server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    detect_sample(detector(time, bbox_threshold=0.3, iou_threshold=0.7, request_seconds=12), sample)
    submitted, polled = server.seen
    image = submitted.body.pop("image")
    assert image.startswith("data:image/png;base64,")
    assert submitted.body == {
        "model": "GroundingDino-1.5-Pro",
        "prompt": {"type": "text", "text": "left zebra"},
        "targets": ["bbox"],
        "bbox_threshold": 0.3,
        "iou_threshold": 0.7,
    }
    assert submitted.path == "/v2/task/grounding_dino/detection"
    assert polled.path == "/v2/task_status/task-0"
    assert [each.headers["Token"] for each in server.seen] == [KEY, KEY]
    session = importlib.import_module("dds_cloudapi_sdk.tasks.base").http_session
    assert session.adapters[server.url].timeouts == [12, 12]


@needs_sdk
@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("GroundingDino-1.6-Pro", "/v2/task/grounding_dino/detection"),
        ("DINO-X-1.0", "/v2/task/dinox/detection"),
    ],
)
def test_newer_models(model: str, path: str, server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    asked = detector(time, model=model)
    assert as_rows(detect_sample(asked, sample)) == ZEBRA
    assert (server.seen[0].path, server.seen[0].body["model"], asked.name) == (path, model, model.lower())


@needs_sdk
@pytest.mark.parametrize(
    ("expression", "text"),
    [
        pytest.param("man in blue. left", "man in blue left", id="full-stop"),
        pytest.param(" a\n\tdog ", "a dog", id="white-space"),
        pytest.param("no. 5 ## <x>", "no 5 ## <x>", id="signs"),
        pytest.param("左边的人 ё", "左边的人 ё", id="scripts"),
        pytest.param("far " * 4999 + "dog", "far " * 4999 + "dog", id="5000-words"),
        pytest.param(". .. ", None, id="no-words"),
        pytest.param("", None, id="empty"),
    ],
)
def test_expressions(
    expression: str, text: str | None, server: MisbehavingServer, sample: Sample, time: FakeTime
) -> None:
    other = Sample("s1", "r1", "i1", sample.image_path, (8, 6), expression, None)
    found = detect_sample(detector(time), other)
    assert [each.body["prompt"]["text"] for each in server.seen if each.body] == ([text] if text else [])
    assert as_rows(found) == (ZEBRA if text else [])


@needs_sdk
def test_odd_boxes_are_counted(server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    odd = [[5, 1, 2, 4], [1, 1, 1, 4], [1, 2, 3], [1, 2, 3, 4, 5], [], [float("nan"), 0, 1, 1], [0, 0, float("inf"), 1]]
    objects = [{"bbox": box, "category": "a\nb<|eot|>", "score": 0.5} for box in odd]
    objects += [{"bbox": [0, 0, 1, 1], "category": "a", "score": float("nan")}]
    objects += [{"bbox": [-5, 0, 999, 4], "category": "", "score": None, "mask": {"new": 1}}]
    server.objects = objects
    found = detect_sample(detector(time), sample)
    assert found.num_dropped == len(odd)
    assert as_rows(found) == [((0.0, 0.0, 1.0, 1.0), "a", None, "api"), ((-5.0, 0.0, 999.0, 4.0), "", None, "api")]


@needs_sdk
def test_hundreds_of_boxes_and_none(server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    asked = detector(time)
    server.objects = [{"bbox": [0, 0, 1, 1], "category": "a", "score": 0.5}] * 700
    assert len(detect_sample(asked, sample).items) == 700
    server.objects = []
    assert detect_sample(asked, sample) == Detections(())


@needs_sdk
def test_a_photograph_is_sent_upright(server: MisbehavingServer, tmp_path: Path, time: FakeTime) -> None:
    stored = Image.new("RGB", (6, 8), "white")
    stored.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "a.png", exif=exif)
    detect_sample(detector(time), Sample("s", "r", "i", str(tmp_path / "a.png"), (8, 6), "dog", None))
    image = sent_image(server)
    assert (image.size, image.mode, image.getpixel((7, 0))) == ((8, 6), "RGB", (255, 0, 0))
    assert not image.getexif()


@needs_sdk
@pytest.mark.parametrize(
    ("size", "sent", "box", "found"),
    [
        pytest.param((64, 40), (64, 40), [8, 4, 16, 20], (8.0, 4.0, 16.0, 20.0), id="as-it-is"),
        pytest.param((128, 40), (64, 20), [8, 4, 16, 20], (16.0, 8.0, 32.0, 40.0), id="half"),
        pytest.param((30, 80), (24, 64), [6, 8, 24, 64], (7.5, 10.0, 30.0, 80.0), id="upright"),
        pytest.param((20000, 1), (64, 1), [0, 0, 64, 1], (0.0, 0.0, 20000.0, 1.0), id="20000-wide"),
        pytest.param((1, 1), (1, 1), [0, 0, 1, 1], (0.0, 0.0, 1.0, 1.0), id="one-pixel"),
    ],
)
def test_large_images_are_sent_smaller_and_boxes_are_scaled_back(
    *, size: Any, sent: Any, box: Any, found: Any, server: MisbehavingServer, tmp_path: Path, time: FakeTime
) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    server.objects = [{"bbox": box, "category": "a", "score": 0.5}]
    sample = Sample("s", "r", "i", str(tmp_path / "a.png"), size, "dog", None)
    (item,) = detect_sample(detector(time, max_edge=64), sample).items
    assert sent_image(server).size == sent
    assert item.box.xyxy == pytest.approx(found)


@needs_sdk
def test_each_submission_of_a_question_has_one_key_and_each_question_its_own(
    server: MisbehavingServer, sample: Sample, time: FakeTime
) -> None:
    server.submits.extend([Step(500, b""), Step(how="never", taken=True), GOOD])
    other = Sample("s2", "r1", "i1", sample.image_path, (8, 6), "left zebra", None)
    asked = detector(time)
    for each in (sample, other):
        detect_sample(asked, each)
    keys = [each.headers["Idempotency-Key"] for each in server.seen if each.method == "POST"]
    assert keys[0] == keys[1] == keys[2] != keys[3]


@needs_sdk
@pytest.mark.parametrize(
    ("submits", "polls"),
    [
        pytest.param((), (Step(500, b""), Step(500, b"")), id="polling-failed"),
        pytest.param((Step(how="never", taken=True),) * 2, (), id="the-reply-was-lost"),
        pytest.param((), (RUNNING,) * 20, id="not-finished-in-time"),
    ],
)
def test_a_later_run_finds_the_task_that_is_paid(
    submits: Any, polls: Any, server: MisbehavingServer, sample: Sample, time: FakeTime
) -> None:
    server.submits.extend(submits)
    server.polls.extend(polls)
    with pytest.raises(ModelError):
        detect_sample(detector(time, max_tries=2), sample)
    assert as_rows(detect_sample(detector(time), sample)) == ZEBRA
    assert len(server.tasks) == 1


@needs_sdk
def test_no_connection_is_not_charged(
    server: MisbehavingServer, sample: Sample, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDS_CLOUDAPI_ENDPOINT", "http://127.0.0.1:1")
    asked = detector(time)
    with pytest.raises(ModelError, match="Given up after 6 tries"):
        detect_sample(asked, sample)
    assert asked.calls.num_charged == 0


@needs_sdk
@pytest.mark.parametrize("address", ["http://[::1", "http://:80:80"], ids=str)
def test_an_address_that_is_none_is_refused_at_once(
    address: str, server: MisbehavingServer, sample: Sample, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDS_CLOUDAPI_ENDPOINT", address)
    asked = detector(time)
    with pytest.raises(ModelError, match="Invalid"):
        detect_sample(asked, sample)
    assert (asked.calls.num_charged, time.slept) == (0, [])


def ask_all(asked: DDSDetector, sample: Sample, names: str) -> list[str]:
    """Ask one question after the other; return the samples whose answers came back."""
    kept = []
    for name in names:
        detect_sample(asked, Sample(name, "r", "i1", sample.image_path, (8, 6), f"dog {name}", None))
        kept.append(name)
    return kept


@needs_sdk
@pytest.mark.parametrize(
    ("submits", "answered_before"),
    [
        pytest.param((), 3, id="all-good"),
        pytest.param((Step(429, {}), Step(429, {})), 3, id="refusals-are-free"),
        pytest.param((GOOD, Step(500, b"")), 2, id="a-retry-counts"),
        pytest.param((Step(500, b""), Step(how="half"), Step(how="nothing")), 0, id="nothing-but-retries"),
    ],
)
def test_the_budget_counts_what_the_server_counts(
    submits: Any, answered_before: int, server: MisbehavingServer, sample: Sample, time: FakeTime
) -> None:
    server.submits.extend(submits)
    asked = detector(time, max_cost=0.06)
    with pytest.raises(RecipeError, match=f"Answers kept in this run: {answered_before};"):
        ask_all(asked, sample, "abcde")
    assert asked.calls.num_charged == server.num_maybe_charged == 3
    assert len(server.tasks) == answered_before


@needs_sdk
def test_each_answer_is_on_disk_before_the_next_call_and_a_new_budget_goes_on(
    server: MisbehavingServer, sample: Sample, time: FakeTime, tmp_path: Path
) -> None:
    names = [f"s{number}" for number in range(5)]
    samples = [Sample(name, "r", "i1", sample.image_path, (8, 6), f"dog {name}", None) for name in names]
    dataset = Dataset("mine", "val", samples, "digest")
    on_disk: list[int] = []
    server.on_submit = lambda: on_disk.append(
        sum(pq.read_metadata(path).num_rows for path in (tmp_path / "cache").glob("*.parquet"))
    )
    with pytest.raises(RecipeError, match="Answers kept in this run: 3;"):
        fill_cache(detector(time, max_cost=0.06), dataset, tmp_path / "cache", progress=False)
    assert on_disk == [0, 1, 2]
    fill_cache(detector(time, max_cost=9), dataset, tmp_path / "cache", progress=False)
    assert on_disk == [0, 1, 2, 3, 4]
    assert len(server.tasks) == 5


@needs_sdk
def test_requests_keep_their_distance(server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    start = time.now
    ask_all(detector(time, requests_per_second=0.5), sample, "ab")
    assert time.now - start == pytest.approx(6.0)


@needs_sdk
def test_the_user_is_asked_once_and_before_the_first_call(
    server: MisbehavingServer, sample: Sample, time: FakeTime
) -> None:
    asked = detector(time)
    shown_to_user: list[str] = []
    asked.confirm = lambda estimate: bool(shown_to_user.append(str(estimate)))
    with pytest.raises(RecipeError, match="not confirmed"):
        asked.begin(300)
    with pytest.raises(RecipeError, match="not confirmed"):
        detect_sample(asked, sample)
    assert not server.seen
    assert "300 paid calls at 0.02 dollars, 6.00 dollars in all" in shown_to_user[0]
    asked.confirm = lambda estimate: not shown_to_user.append(str(estimate))
    asked.begin(2)
    ask_all(asked, sample, "ab")
    assert len(shown_to_user) == 3


@needs_sdk
def test_without_a_budget_nothing_is_called(server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    asked = detector(time, max_cost=None)
    with pytest.raises(RecipeError, match=r"300 paid calls .*max_cost=6\.00"):
        asked.begin(300)
    with pytest.raises(RecipeError, match="max_cost="):
        detect_sample(asked, sample)
    assert not server.seen


@needs_sdk
def test_two_questions_at_once_are_refused(server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    asked = detector(time)
    question = Question(sample, "expression")
    prepared = {"i1": asked.prepare(sample)}
    with pytest.raises(ModelError, match="2 questions at once"):
        asked.detect([question, question], prepared)
    assert asked.detect([], prepared) == []
    assert not server.seen


ECHOES = {
    "good": (GOOD, None),
    "401": (Step(401, {"msg": f"the token {KEY} is not known"}), "key is refused"),
    "400": (Step(400, {"msg": [KEY]}), "refuses the request"),
    "500": (Step(500, f'{{"msg": "{KEY}"}}'.encode()), "in trouble"),
    "quota": (Step(body={"code": 9, "msg": f"{KEY}: Token out of Quota"}), "quota"),
    "form": (Step(body={"code": 0, "data": {"task_uuid": [KEY]}}), "form that this version"),
    "failed": (Step(body={"code": 0, "data": {"status": "failed", "error": KEY}}), "could not do the task"),
    "status": (Step(body={"code": 0, "data": {"status": KEY}}), "form that this version"),
    "closed": (Step(how="nothing"), "Given up"),
}


@needs_sdk
@pytest.mark.parametrize("name", ECHOES)
def test_the_key_is_shown_nowhere(
    name: str,
    server: MisbehavingServer,
    sample: Sample,
    time: FakeTime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    step, error = ECHOES[name]
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    (server.polls if name in ("failed", "status") else server.submits).extend([step] * 3)
    asked = detector(time, max_tries=3)
    texts = []
    if error is None:
        texts.append(repr(detect_sample(asked, sample)))
    else:
        with pytest.raises(LLMWrapperError, match=error) as caught:
            detect_sample(asked, sample)
        texts += traceback.format_exception(caught.type, caught.value, caught.tb)
    texts += [repr(asked), repr(vars(asked)), repr(vars(asked.calls)), json.dumps(asked.identity()), caplog.text]
    texts += [str(capfd.readouterr()), *(str(row.__dict__) for row in caplog.records)]
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert server.seen[0].headers["Token"] == KEY
    assert [text for text in texts if KEY in text] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "DDS_API_KEY is not set", id="unset"),
        pytest.param(" \n", "DDS_API_KEY is not set", id="blank"),
        pytest.param("abc\ndef", "copy the key again", id="two-lines"),
        pytest.param("abc def", "copy the key again", id="space"),
        pytest.param("schlüssel", "copy the key again", id="not-ascii"),
    ],
)
def test_keys_that_cannot_be_one(value: str | None, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDS_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("DDS_API_KEY", value)
    with pytest.raises(RecipeError, match=text) as caught:
        dds.api_key()
    assert not value or not value.strip() or value not in str(caught.value)


def test_a_line_break_after_the_key_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDS_API_KEY", KEY + "\r\n")
    assert dds.api_key() == KEY


@needs_sdk
def test_crash_reports_of_the_sdk_are_off(server: MisbehavingServer, sample: Sample, time: FakeTime) -> None:
    detect_sample(detector(time), sample)
    sentry = importlib.import_module("sentry_sdk")
    assert sentry.get_client().transport is None
    assert not sentry.get_client().integrations
    for scope in (sentry.get_isolation_scope(), sentry.get_current_scope()):
        assert not [name for name in scope.__slots__ if KEY in repr(getattr(scope, name, None))]


def test_without_the_sdk_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(RecipeError, match=r"pip install 'llm-wrapper-rec\[paid-api\]'"):
        dds.load_sdk.__wrapped__()


def test_building_and_the_identity_need_neither_sdk_nor_key_nor_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDS_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "dds_cloudapi_sdk", None)
    settings = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["detector"]["settings"]
    assert "max_cost" not in settings
    built = create_dds(settings)
    assert built.name == "groundingdino-1.5-pro"
    assert (built.levels, built.reads_images, isinstance(built, PaidDetector)) == (("expression",), True, True)
    assert built.identity() == {
        "id": "GroundingDino-1.5-Pro",
        "api": "/v2/task/grounding_dino/detection",
        "prompt": "text",
        "image": "png",
        "max_edge": 1536,
        "bbox_threshold": 0.2,
        "iou_threshold": 0.8,
    }


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"price_per_call": 0.5, "max_cost": 3, "requests_per_second": 1, "max_tries": 2}, True),
        ({"request_seconds": 1, "task_seconds": 1}, True),
        ({"model": "DINO-X-1.0"}, False),
        ({"bbox_threshold": 0.4}, False),
        ({"iou_threshold": 0.4}, False),
        ({"max_edge": 1000}, False),
    ],
    ids=str,
)
def test_the_identity_is_what_decides_the_answers(changed: dict[str, Any], same: bool, time: FakeTime) -> None:
    assert (detector(time, **changed).identity() == detector(time).identity()) == same


def test_all_wrong_settings_are_told_at_once() -> None:
    wrong = {"model": "../gd", "price": 0.02, "bbox_threshold": 2, "max_edge": "big", "api_key": "x"}
    with pytest.raises(RecipeError) as caught:
        create_dds(wrong)
    text = str(caught.value)
    assert "5 problems" in text
    for part in ("model:", "key 'price_per_call' is missing", "unknown keys 'price', 'api_key'", "bbox_threshold:"):
        assert part in text


# The hook of the SDK's session, before the SDK reads a reply


def replied(content: bytes, **headers: str) -> requests.Response:
    """A reply that has not been read yet."""
    response = requests.Response()
    response.status_code = 200
    response.headers.update(headers)
    response.raw = urllib3.HTTPResponse(io.BytesIO(content), headers=headers, preload_content=False)
    response.request = requests.PreparedRequest()
    response.request.method = "POST"
    return response


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DDS_API_KEY", KEY)
    return KEY


def test_a_good_reply_is_there_for_the_sdk(key: str) -> None:
    content = json.dumps({"code": 0, "data": {"task_uuid": "t"}}).encode()
    response = replied(gzip.compress(content), **{"Content-Encoding": "gzip"})
    dds._judge_reply(response)
    assert response.content == content


@pytest.mark.parametrize("is_packed", [False, True], ids=["long", "packed"])
def test_a_reply_without_end_is_not_read_to_the_end(key: str, is_packed: bool) -> None:
    content = b" " * (64 << 20)
    packed = {"Content-Encoding": "gzip"} if is_packed else {}
    with pytest.raises(CallError, match="more than 16 MiB") as caught:
        dds._judge_reply(replied(gzip.compress(content, 1) if is_packed else content, **packed))
    assert caught.value.charged


def test_a_key_that_comes_back_is_not_shown(key: str) -> None:
    response = replied(json.dumps({"code": 7, "msg": f"token {key} is wrong"}).encode())
    with pytest.raises(CallError, match=r"token \*\*\* is wrong"):
        dds._judge_reply(response)
