"""The page in a real browser: what its reader sees and does, and that nothing is asked of any network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_wrapper.report import page
from tests.report.browser import PROGRAM, Browser, opened
from tests.report.test_html import four_cases, make_run, predicted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed: apt-get install chromium"),
]

LONG = "the man " * 40 + "x" * 200


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose sample 1 is of other slices than the rest, with a text that no phone has room for."""
    rows = [row for row in four_cases() if row.sample_id != "s1"]
    rows += [predicted(s, 1, right=s == "tuned", text=LONG) for s in ("detector", "tuned")]
    folder = make_run(tmp_path_factory.mktemp("run"), rows)
    (folder / "train_log.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5}\n')
    page.write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("profile")) as found:
        yield found


def choose(browser: Browser, name: str, value: str) -> None:
    script = f"""(() => {{
      const one = document.querySelector('select[name="{name}"]');
      one.value = {json.dumps(value)};
      one.dispatchEvent(new Event("change"));
    }})()"""
    browser.value(script)


def seen(browser: Browser) -> list[str]:
    """The outcomes of the cases that have room on the page."""
    shown = "[...document.querySelectorAll('.case')].filter(c => c.offsetParent !== null).map(c => c.dataset.outcome)"
    return sorted(browser.value(shown))


def test_every_section_is_seen_and_nothing_is_asked_of_a_network(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html")
    titles = browser.value("[...document.querySelectorAll('h3')].filter(h => h.offsetHeight).map(h => h.textContent)")
    assert [title.split()[0] for title in titles] == [
        "Results", "Where", "Gallery", "Differences", "Errors", "Position", "Slices", "Confidence", "Learning",
    ]  # fmt: skip
    assert browser.value("document.documentElement.scrollHeight") < 4_000
    browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    charts = "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width > 200)"
    assert browser.value(charts) == [True] * 5
    assert {address.split(":")[0] for address in browser.asked} <= {"file", "data"}
    assert browser.errors == []


def test_links_lead_to_sections_and_unfold_them(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html")
    lost = "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length"
    assert browser.value("document.querySelectorAll('nav a').length") == 11
    assert browser.value(lost) == 0
    opened_sections = "document.querySelectorAll('section > details[open]').length"
    assert browser.value(opened_sections) == 0
    browser.value("[...document.querySelectorAll('nav a')].find(a => a.textContent === 'Slices').click()")
    for _ in range(100):
        if browser.value(opened_sections):
            break
    assert browser.value("document.querySelector('section > details[open] h3').textContent") == "Slices"


def test_the_gallery_is_filtered_and_no_choice_leaves_it_empty(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html")
    count = "document.querySelector('output').textContent"
    assert seen(browser) == ["broken", "rescued", "right", "still wrong"]
    assert browser.value(count) == "4 of 4 cases"
    choose(browser, "outcome", "rescued")
    assert (seen(browser), browser.value(count)) == (["rescued"], "1 of 1 cases")
    option = "document.querySelector('select[name=length] option[value=\"3 to 5 words\"]').disabled"
    assert browser.value(option) is True
    choose(browser, "outcome", "")
    assert browser.value(option) is False
    choose(browser, "length", "3 to 5 words")
    assert seen(browser) == ["broken", "right", "still wrong"]


def test_advice_leads_to_its_cases(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html")
    browser.value("document.querySelector('a[data-slice=wrong]').click()")
    assert browser.value("document.querySelector('select[name=error]').value") == "wrong"
    assert seen(browser) == ["broken", "still wrong"]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_page_is_wider_than_its_window(browser: Browser, run: Path, width: int) -> None:
    browser.open(run / "report.html", width=width)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") == width
    browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.value("document.documentElement.scrollWidth") == width
