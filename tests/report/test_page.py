"""The HTML report in a real browser: sorting, filter and pages, hostile names, no requests, accessibility."""

from __future__ import annotations

import re
import struct

import pytest

from pipeline.report.formats import RENDERERS
from pipeline.report.model import build_report
from tests.report import picture
from tests.report.test_report import HOSTILE_NAMES
from tests.warehouse.outcomes import STARTED_AT, failure, ok, publish, session

pytestmark = pytest.mark.lab

DAY_US = 86_400_000_000
HOSTS = 230


@pytest.fixture(scope="module")
def browser():
    try:
        with picture.chromium() as chromium:
            yield chromium
    except picture.NoBrowserError as error:
        pytest.skip(str(error))


def write_page(root, folder):
    path = folder / "report.html"
    with path.open("w", encoding="utf-8") as file:
        RENDERERS["html"](build_report(session(root)), file)
    return path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """The page of the second run of 230 hosts and of hosts with hostile names."""
    root = tmp_path_factory.mktemp("warehouse")
    hosts = [ok(f"web-{n}", mounts=1 + n % 7, cache_ids=(4, 46, 382)[n % 3]) for n in range(HOSTS)]
    for n, host in enumerate(hosts):
        host["row"] |= {"labels": {"rack": f"r{n % 10}"}, "lazy_basis": "online" if n % 2 else "charged"}
    hostile_hosts = [ok(name) for name in HOSTILE_NAMES]
    for host, name in zip(hostile_hosts, HOSTILE_NAMES, strict=True):
        host["row"] |= {"kernel_release": name, "labels": {name: name}}
    publish(root, *hosts, audit="prod", run_id="20250101T000000Z-00000001")
    publish(
        root, *hosts, *hostile_hosts, *(failure(f"failed {name}", error=name) for name in HOSTILE_NAMES),
        audit="prod", run_id="20250102T000000Z-00000002", started_at=STARTED_AT + DAY_US,
    )  # fmt: skip
    return write_page(root, tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(browser, fleet):
    """The loaded page; the test fails if the page logs a message, opens a dialog or requests another URL."""
    context = browser.new_context()
    page = context.new_page()
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(fleet.as_uri())
    yield page
    assert messages == []
    assert requests == [fleet.as_uri()]
    context.close()


def column(page, number):
    return page.locator(f"#ranking tbody td:nth-child({number})").all_text_contents()


def test_the_ranking_is_paged(page):
    assert page.locator("#shown").inner_text() == f"1 to 100 of {HOSTS + len(HOSTILE_NAMES)} hosts"
    assert page.locator("#previous").is_disabled()
    page.locator("#next").click()
    page.locator("#next").click()
    assert page.locator("#shown").inner_text().startswith("201 to 245 of")
    assert page.locator("#next").is_disabled()
    assert len(column(page, 1)) == HOSTS + len(HOSTILE_NAMES) - 200


def test_a_click_sorts_from_the_largest_and_another_from_the_smallest(page):
    head = page.locator("th[data-column=memcg_nr_cache_ids]")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert set(column(page, 4)[:70]) == {"382"}
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert set(column(page, 4)[:70]) == {"4"}
    assert page.locator("th[aria-sort]").count() == 1


def test_the_filter_takes_every_word_and_labels_too(page):
    page.get_by_label("Filter").fill("WEB-1 rack=r3")
    names = column(page, 2)
    assert names
    assert all(re.fullmatch(r"web-1\d*3", name) for name in names)
    page.get_by_label("Filter").fill("no such host")
    assert column(page, 2) == []
    assert page.locator("#shown").inner_text() == "0 hosts"


def test_bounds_are_marked_to_be_seen_and_heard(page):
    page.get_by_label("Filter").fill("web-2")
    names, lazy_texts, wasted_texts = (column(page, number) for number in (2, 9, 10))
    assert len(names) == 41
    # With 4 ids a lower bound of the waste is below 0.
    for name, lazy_text, wasted_text in zip(names, lazy_texts, wasted_texts, strict=True):
        number = int(name.removeprefix("web-"))
        assert lazy_text.startswith("≤ ") is (number % 2 == 1)
        assert (wasted_text == "none known") is (number % 2 == 1 and number % 3 == 0)
        assert wasted_text.startswith("≥ ") is (number % 2 == 1 and number % 3 != 0)
    row = page.locator("#ranking tbody tr", has_text="web-23")
    assert row.first.get_by_role("img", name="at least").text_content() == "≥"
    assert row.first.get_by_role("img", name="at most").text_content() == "≤"


def test_every_control_is_reached_by_keyboard(page):
    control_count = page.locator("main").evaluate(
        "main => main.querySelectorAll('button:not(:disabled), input, summary, a').length"
    )
    focused_indexes = set()
    for _ in range(3 * control_count):
        page.keyboard.press("Tab")
        tag, index = page.evaluate(
            "() => { const element = document.activeElement;"
            " return [element.tagName, [...document.querySelectorAll('*')].indexOf(element)] }"
        )
        if tag in ("BUTTON", "INPUT", "SUMMARY", "A"):
            focused_indexes.add(index)
        if len(focused_indexes) == control_count:
            break
    assert len(focused_indexes) == control_count


def test_enter_sorts(page):
    button = page.locator("th[data-column=target]").get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    names = column(page, 2)
    assert names == sorted(names)


def test_hostile_names_are_shown_as_text(page):
    page.get_by_label("Filter").fill("<script>")
    assert column(page, 2) == ["<script>alert(1)</script>"]
    assert page.locator("main script:not(#ranking-rows)").count() == 0
    assert page.locator("main a").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, fleet, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(fleet.as_uri())
    page.evaluate("() => { for (const fold of document.querySelectorAll('details')) fold.open = true }")
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    context.close()


def test_without_a_script_the_worst_hosts_are_there(browser, fleet):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(fleet.as_uri())
    assert len(column(page, 2)) == 100
    assert not page.locator("#tools").is_visible()
    context.close()


def test_what_is_folded_is_printed(browser, fleet):
    context = browser.new_context()
    page = context.new_page()
    page.goto(fleet.as_uri())
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    context.close()


def test_a_narrow_screen_scrolls_tables_and_not_the_page(browser, fleet):
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(fleet.as_uri())
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    context.close()


def test_the_picture_in_the_readme_is_of_this_page(browser, tmp_path):
    """`python -m tests.report.picture` takes it. Its words may be out of date; its size may not."""
    stored_png, new_png = picture.PICTURE.read_bytes(), picture.take(browser, tmp_path)
    assert struct.unpack(">2I", stored_png[16:24]) == struct.unpack(">2I", new_png[16:24])
    assert len(stored_png) < 150_000
    assert "](docs/report.png)" in (picture.ROOT / "README.md").read_text()
