"""The page in a real browser: typed at, clicked, steered by keyboard, and what it shows when things go wrong."""

from __future__ import annotations

import time

import pytest

from iclkit.pool import Pool
from iclkit.records import Example
from tests.browser import CONTRAST, UNNAMED, look
from tests.report.pages import make

from .conftest import HOSTILE, ROWS

SHOWN = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
OUTPUT = "dialog[open] .edit > label:nth-of-type(2) textarea"


def all_of(browser, css):
    return browser.execute_script(SHOWN, css)  # in one go: what is shown is drawn anew at any time


def value(browser, css):
    return browser.execute_script(f"{SHOWN}.map(e => e.value)[0]", css)


def says(browser, css):
    return "\n".join(browser.execute_script(f"{SHOWN}.map(e => e.innerText)", css))


def one(browser, css):
    return until(lambda: all_of(browser, css), f"nothing is shown for {css}")[0]


def until(condition, why="waited 20 seconds"):
    end = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < end, why
        time.sleep(0.03)
    return value


def opened(browser, page, **size):
    look(browser, **size)
    browser.get("about:blank")
    browser.get(page.url)
    until(lambda: browser.execute_script("return document.documentElement.dataset.ready"))
    browser.get_log("browser")
    return browser


def picks(browser, side):
    return browser.execute_script(
        f"{SHOWN}.map(e => e.innerText)", f"#answers .answer:nth-child({side + 1}) .picks .says"
    )


PRESS = """for (const b of document.querySelectorAll(arguments[0] + " button")) {
  if (b.checkVisibility() && b.textContent.startsWith(arguments[1])) {
    b.scrollIntoView({block: "center"}); b.focus(); b.click(); return true;
  }
}"""


def press(browser, text, within="body"):
    """Press a button, in one go: rows are drawn anew at any time."""
    until(lambda: browser.execute_script(PRESS, within, text), f"no button {text}")


def choose(select, value):
    select.find_element("css selector", f"option[value='{value}']").click()


def asked(browser, text):
    area = one(browser, "#query textarea")
    area.clear()
    area.send_keys(text)
    one(browser, "#go").click()
    until(lambda: one(browser, "#go").is_enabled() and all_of(browser, "#answers .answer"))


@pytest.fixture
def shown(chrome, live_page):
    """The page of a pool of its own; afterwards: no complaint of the browser."""
    yield opened(chrome, live_page)
    assert chrome.get_log("browser") == []


def test_a_query_shows_two_selectors_side_by_side_with_prompts_and_the_map(shown):
    asked(shown, "my parcel is lost")
    assert len(picks(shown, 0)) == len(picks(shown, 1)) == 4
    assert "the same on both sides" in says(shown, "#compared")
    why = says(shown, ".picks li:first-child .why").split("\n")[0]
    assert why.startswith("score ")
    assert "shares " in why
    assert why.endswith("\u00a0tokens")
    prompt = says(shown, "#answers pre")
    assert prompt.index("my parcel is late") < prompt.index("my parcel is lost")
    assert len(all_of(shown, "#answers .answer:first-child pre .demo")) == 4
    assert len(all_of(shown, ".map .pick circle")) == 4
    assert len(all_of(shown, ".map .pick rect")) == 4
    select, settings = one(shown, ".side.second select"), one(shown, ".side.second summary")
    settings.click()
    field = one(shown, "#set-1-b")
    field.send_keys("9")
    one(shown, "#go").click()
    until(lambda: "give a number from 0 to 1" in says(shown, "#answers .error"))
    assert len(picks(shown, 0)) == 4
    choose(select, "cone")
    one(shown, "#go").click()
    press(shown, "Ask the model", "#answers")
    until(lambda: len(picks(shown, 1)) == 4)


def test_the_keyboard_alone_asks_opens_a_pick_and_steers_the_map(shown):
    from selenium.webdriver.common.keys import Keys

    active = lambda: shown.switch_to.active_element  # noqa: E731
    assert active().get_attribute("aria-label") == "Query"
    active().send_keys("where is my parcel", Keys.CONTROL, Keys.ENTER)
    until(lambda: picks(shown, 0))
    for _ in range(30):
        if (active().get_attribute("aria-label") or "").startswith("Open pick 1 on the left"):
            break
        active().send_keys(Keys.TAB)
    opener = active()
    opener.send_keys(Keys.ENTER)
    one(shown, "dialog[open]")
    assert value(shown, "dialog textarea") == "where is my parcel now"
    active().send_keys(Keys.ESCAPE)
    until(lambda: not all_of(shown, "dialog[open]"))
    assert active() == opener
    shown.execute_script("document.querySelector('.map').focus()")
    seen = {until(lambda: says(shown, "#map-at"))}
    for key in (Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN):
        active().send_keys(key)
        seen.add(says(shown, "#map-at"))
    assert len(seen) > 2
    text = says(shown, "#map-at")
    active().send_keys(Keys.ENTER)
    until(lambda: (value(shown, "dialog[open] textarea") or "?")[:20] in text)


def test_rows_are_found_edited_removed_and_brought_back(shown, live_page):
    find = one(shown, "#filters input[type=search]")
    find.send_keys("TWICE")
    until(lambda: says(shown, "#count") == "1–1 of 1 found among 10")
    press(shown, "I was charged twice", "#rows")
    output = one(shown, OUTPUT)
    output.clear()
    output.send_keys("refund")
    press(shown, "Save", "dialog")
    until(lambda: "refund" in says(shown, "#rows tr"))
    assert {e.output for e in live_page.pool} >= {"refund"}
    press(shown, "Remove", "#rows")
    until(lambda: says(shown, "#count") == "no such example")
    assert shown.switch_to.active_element.get_attribute("id") == "undo"
    press(shown, "Undo: removed")
    until(lambda: "refund" in says(shown, "#rows"))
    press(shown, "Undo: changed")
    until(lambda: "billing" in says(shown, "#rows"))
    assert {e.id for e in live_page.pool} == {e.id for e in ROWS}


@pytest.mark.slow
def test_a_row_that_was_changed_after_it_was_listed_is_not_removed(chrome, live_page):
    shown = opened(chrome, live_page)
    with Pool.open(live_page.pool.path) as other:
        other.update(ROWS[0].id, meta={"tenant": "theirs"})
        other.update(ROWS[1].id, output="theirs")
    press(shown, "Remove", "#rows tr:first-child")
    until(lambda: "was not removed" in says(shown, "#trouble"))
    until(lambda: "tenant: theirs" in says(shown, "#rows tr:first-child"))
    press(shown, "Remove", "#rows tr:first-child")  # seen as it is now
    until(lambda: ROWS[0].id not in live_page.pool.ids)
    assert "theirs" in {e.output for e in live_page.pool}


@pytest.mark.slow
def test_a_row_that_somebody_else_has_changed_is_shown_as_it_is_now(chrome, live_page):
    shown = opened(chrome, live_page)
    press(shown, "send me an invoice", "#rows")
    output = one(shown, OUTPUT)
    output.send_keys(", mine")
    with Pool.open(live_page.pool.path) as other:
        now = other.update(ROWS[4].id, output="theirs")
    press(shown, "Save", "dialog")
    until(lambda: "was changed" in says(shown, "dialog .error"))
    press(shown, "Show it as it is now", "dialog")
    until(lambda: value(shown, OUTPUT) == "theirs")
    assert live_page.pool.get(now.id).output == "theirs"


def test_hostile_texts_are_shown_as_they_are_and_do_nothing(shown):
    asked(shown, f"{HOSTILE} parcel")
    assert HOSTILE in says(shown, "#answers")
    assert HOSTILE in says(shown, "#rows")
    press(shown, HOSTILE, "#rows")
    until(lambda: (value(shown, "dialog[open] textarea") or "").startswith(HOSTILE))
    assert shown.title == "tickets.db · iclkit view"
    assert all_of(shown, "img, iframe, [onerror]") == []


@pytest.mark.slow
def test_a_board_is_opened_from_the_list_of_runs(chrome, serve_pool, tmp_path, monkeypatch):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    make(tmp_path / "runs", ks=(2,), test=12)
    shown = opened(chrome, serve_pool(runs=tmp_path / "runs", live=True))
    until(lambda: "balanced" in says(shown, ".runs"))
    (before,) = shown.window_handles
    shown.execute_script("document.querySelector('.boards a').click()")
    until(lambda: len(shown.window_handles) == 2)
    shown.switch_to.window(shown.window_handles[1])
    until(lambda: "choosing beat random" in says(shown, "#question"))
    shown.close()
    shown.switch_to.window(before)


def test_without_its_key_the_page_says_where_to_find_it(chrome, shared_page):
    look(chrome)
    chrome.get(f"{shared_page.address}/")
    chrome.execute_script("sessionStorage.clear()")
    chrome.get(f"{shared_page.address}/?again")
    until(lambda: "open the address that iclkit view printed" in says(chrome, "#trouble"))
    assert not all_of(chrome, "#ask")


@pytest.mark.slow
def test_a_read_only_pool_has_no_buttons_that_write(chrome, serve_pool):
    page = serve_pool(live=True)
    page.pool.read_only = True
    shown = opened(chrome, page)
    assert "read-only" in says(shown, "#where")
    assert not [x for x in all_of(shown, "button") if x.text.startswith(("Remove", "Add"))]
    one(shown, "#rows .link").click()
    assert one(shown, "dialog textarea").get_attribute("readonly")
    assert not [x for x in all_of(shown, "dialog button") if x.text in ("Save", "Remove")]


@pytest.mark.slow
def test_inputs_with_fields_have_a_box_for_each(chrome, serve_pool):
    page = serve_pool(
        [Example({"question": f"how many {n}", "schema": "t(a, b)"}, f"SELECT {n}") for n in range(5)], live=True
    )
    shown = opened(chrome, page)
    boxes = all_of(shown, "#query textarea")
    assert [x.get_attribute("data-field") for x in boxes] == ["question", "schema"]
    press(shown, "Ask with it", "#rows")
    until(lambda: picks(shown, 0))
    assert value(shown, "#query textarea") == "how many 0"
    assert "which is not shown for itself" in says(shown, "#source")


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_every_text_stands_out_and_every_control_has_a_name(chrome, shared_page, theme):
    shown = opened(chrome, shared_page, theme=theme)
    asked(shown, "where is my parcel")
    shown.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert shown.execute_script(UNNAMED) == []
    assert shown.execute_script(CONTRAST) == []
    ids = [x.get_attribute("id") for x in shown.find_elements("css selector", "[id]")]
    assert len(ids) == len(set(ids))
    one(shown, "#rows .link").click()
    assert shown.execute_script(CONTRAST) == []
    assert (
        shown.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith(location.origin)).length"
        )
        == 0
    )


def test_a_phone_scrolls_in_one_direction_only(chrome, shared_page):
    shown = opened(chrome, shared_page, width=390, height=844)
    asked(shown, "where is my parcel")
    assert shown.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]") == [390, 390]
    one(shown, "#rows .link").click()
    assert shown.execute_script("const d = document.querySelector('dialog'); return d.scrollWidth <= d.clientWidth")
