"""The page in a real browser: clicked, typed at, read and measured."""

from __future__ import annotations

import re
import time

import pytest

from iclkit import evaluate
from iclkit.datasets import make_task
from iclkit.eval import load_texts
from iclkit.prompts import Template
from iclkit.records import Example, digest
from iclkit.report import leaderboard
from iclkit.testing import ScriptedLM
from tests.browser import CONTRAST, UNNAMED, look

from .pages import NASTY, NASTY_TASK, make, write
from .worlds import make_runs

SORTED = 'return [...document.querySelectorAll("#board-table tbody tr")].map(r => r.cells[{}].textContent)'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICLKIT_HOME", str(tmp_path_factory.mktemp("home")))
        return make(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def file(made, tmp_path_factory):
    return write(tmp_path_factory.mktemp("page") / "board.html", *made, title=NASTY)


@pytest.fixture
def page(chrome, file):
    """The page, freshly opened on a desk; afterwards: no complaint of the browser, nothing fetched."""
    look(chrome)
    chrome.get(file.as_uri())
    chrome.execute_script("try { localStorage.clear() } catch {}; delete document.documentElement.dataset.theme")
    yield chrome
    assert chrome.get_log("browser") == []
    assert chrome.execute_script("return performance.getEntriesByType('resource').length") == 0


def all_of(page, css):
    return page.find_elements("css selector", css)


def one(page, css):
    found = [x for x in all_of(page, css) if x.is_displayed()]
    assert found, f"nothing is shown for {css}"
    return found[0]


def head(page, name):
    return next(x for x in all_of(page, "#board-table thead th") if x.text.startswith(name))


def column(page, name):
    number = [x.text.split("\n")[0].rstrip(" ↕↑↓") for x in all_of(page, "#board-table thead th")].index(name)
    return page.execute_script(SORTED.format(number))


def choose(select, text):
    next(o for o in select.find_elements("css selector", "option") if o.text == text).click()


def control(page, label):
    found = [x for x in all_of(page, "label") if x.is_displayed() and x.text.split("\n")[0] == label]
    return found[0].find_element("css selector", "select, input")


def until(condition):
    end = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < end, "waited 20 seconds"
        time.sleep(0.05)
    return value


def opened(page, number=0):
    """The drill-down of a group, opened."""
    summary = all_of(page, "details.drill summary")[number]
    page.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", summary)
    summary.click()
    until(lambda: all_of(page, "table.queries tbody tr"))


def test_hostile_data_is_shown_as_it_is_and_does_nothing(page):
    opened(page)
    one(page, "button.link").click()
    assert page.title == f"{NASTY.strip()} · iclkit leaderboard"
    assert NASTY_TASK in one(page, "#task-0").text
    assert NASTY in one(page, "dialog pre").get_attribute("textContent")
    assert all_of(page, "img, b, i, iframe, [onerror]") == []


def test_a_click_on_a_head_sorts_and_a_second_turns_it_round(page):
    head(page, "accuracy").find_element("tag name", "button").click()
    down = [float(x.split()[0]) for x in column(page, "accuracy")]
    assert down == sorted(down, reverse=True)
    assert len(set(down)) > 3
    assert head(page, "accuracy").get_attribute("aria-sort") == "descending"
    head(page, "accuracy").find_element("tag name", "button").click()
    assert column(page, "accuracy") == sorted(column(page, "accuracy"), key=lambda x: float(x.split()[0]))
    assert head(page, "accuracy").get_attribute("aria-sort") == "ascending"
    head(page, "Selector").find_element("tag name", "button").click()
    assert column(page, "Selector") == sorted(column(page, "Selector"))
    assert head(page, "accuracy").get_attribute("aria-sort") == "none"


def test_rows_without_a_difference_stand_last_in_both_directions(page):
    for _ in range(2):
        head(page, "vs random").find_element("tag name", "button").click()
        assert column(page, "vs random")[-2:] == ["", ""]
        assert "" not in column(page, "vs random")[:-2]


def test_the_filters_narrow_the_table_and_say_how_many_are_left(page):
    before = len(column(page, "Selector"))
    control(page, "Find a selector").send_keys("KNN")
    assert set(column(page, "Selector")) == {"knn"}
    assert one(page, "#count").text == f"2 of {before} results"
    choose(control(page, "k"), "4")
    assert column(page, "k") == ["4"]
    next(x for x in all_of(page, "#filters button") if x.text == "Show all").click()
    assert one(page, "#count").text == f"{before} results"
    choose(control(page, "Verdict"), "better")
    assert {x.split(" ", 1)[1] for x in column(page, "Verdict")} == {"better"}


def test_the_table_says_what_the_board_says(page, made):
    board = leaderboard(made[0])
    lines = [(g, x) for g in board.groups for x in g.lines]
    assert column(page, "Selector") == [x.name for _, x in lines]
    assert [float(x.split()[0]) for x in column(page, "accuracy")] == [round(100 * x.figure.value, 1) for _, x in lines]
    assert [x.split(" ", 1)[1] for x in column(page, "Verdict")] == [x.verdict for _, x in lines]


def test_the_keyboard_alone_sorts_opens_and_closes(page):
    from selenium.webdriver.common.keys import Keys

    button = head(page, "p").find_element("tag name", "button")
    page.execute_script("arguments[0].focus()", button)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert head(page, "p").get_attribute("aria-sort") == "ascending"
    page.execute_script("document.querySelector('details.drill summary').focus()")
    page.switch_to.active_element.send_keys(Keys.SPACE)
    until(lambda: all_of(page, "table.queries tbody tr"))
    for _ in range(12):
        page.switch_to.active_element.send_keys(Keys.TAB)
        if "link" in page.switch_to.active_element.get_attribute("class"):
            break
    asked = page.switch_to.active_element
    asked.send_keys(Keys.ENTER)
    assert one(page, "dialog").get_attribute("open") is not None
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not [x for x in all_of(page, "dialog") if x.is_displayed()]
    assert page.switch_to.active_element == asked


def test_the_first_stop_of_the_keyboard_skips_to_the_results(page):
    from selenium.webdriver.common.keys import Keys

    page.find_element("tag name", "body").send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the results"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.execute_script("return document.activeElement.id") == "results"


def shown_run(page, made):
    run_id = page.execute_script("return [...document.querySelectorAll('dialog dd')].at(-1).textContent")
    query_id = page.execute_script("return [...document.querySelectorAll('dialog dd')].at(-2).textContent")
    run = next(r for r in made[0] if r.id == run_id)
    return run, next(r for r in run.rows if r.query_id == query_id)


def test_a_query_shows_the_very_prompt_that_the_lm_read(page, made):
    opened(page, 1)
    all_of(page, "table.queries tbody button")[5].click()
    seen = set()
    for name in ("random", "knn", "zero"):
        choose(
            control(page, "Selector") if not all_of(page, "dialog label") else all_of(page, "dialog select")[0], name
        )
        run, row = shown_run(page, made)
        assert run.spec.selector.name == name
        prompt = one(page, "dialog pre").get_attribute("textContent")
        assert digest(prompt) == row.prompt_hash
        assert len(all_of(page, "dialog pre .demo")) == len(row.shown) == (0 if name == "zero" else 4)
        facts = dict(zip([x.text for x in all_of(page, "dt")], [x.text for x in all_of(page, "dd")], strict=True))
        assert (facts["Expected"], facts["Answered"]) == (row.gold, row.output)
        assert ("✓ right" in facts["Judged"]) == (row.metrics["accuracy"] == 1)
        assert facts["Prompt"].startswith(f"{row.prompt_tokens} tokens")
        seen.add(run.id)
    assert len(seen) == 3


def test_later_and_seed_change_what_is_shown(page, made):
    opened(page)
    one(page, "button.link").click()
    choose(all_of(page, "dialog select")[0], "random")
    first = shown_run(page, made)
    choose(all_of(page, "dialog select")[1], "2")
    assert shown_run(page, made)[0].spec.seed == 2
    assert page.switch_to.active_element.tag_name == "select"
    next(x for x in all_of(page, "dialog button") if x.text.startswith("Later")).click()
    assert shown_run(page, made)[1].query_id == first[0].rows[1].query_id


def test_queries_can_be_narrowed_to_those_where_one_was_better(page, made):
    opened(page)
    choose(control(page, "Show"), "first is better")
    board = leaderboard(made[0])
    first = next(x for x in board.groups[0].lines if x.verdict != "baseline")
    runs = {r.id: r for r in made[0]}

    def mean(line):
        values = [[row.metrics["accuracy"] for row in runs[i].rows] for i in line.runs]
        return [sum(v) / len(v) for v in zip(*values, strict=True)]

    base = next(x for x in board.groups[0].lines if x.verdict == "baseline")
    expected = sum(a > b for a, b in zip(mean(first), mean(base), strict=True))
    assert control(page, "Selector").get_attribute("value") == str(board.groups[0].lines.index(first))
    assert one(page, ".pager [role=status]").text.endswith(f"of {expected}")


def test_the_theme_follows_the_system_and_the_button(page):
    def paper():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = paper()
    look(page, theme="dark")
    dark = until(lambda: paper() if paper() != light else None)
    assert one(page, "#theme").text == "Light theme"
    one(page, "#theme").click()
    assert paper() == light
    page.refresh()
    assert paper() == light
    assert one(page, "#theme").text == "Dark theme"
    one(page, "#theme").click()
    assert paper() == dark


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(page, theme):
    look(page, theme=theme)
    opened(page)
    one(page, "button.link").click()
    assert page.execute_script(CONTRAST) == []


def test_a_phone_scrolls_in_one_direction_only(chrome, file):
    look(chrome, width=390, height=844)
    chrome.get(file.as_uri())
    until(lambda: all_of(chrome, ".plot svg"))
    width = "return [document.scrollingElement.scrollWidth, innerWidth]"
    assert chrome.execute_script(width) == [390, 390]
    opened(chrome)
    one(chrome, "button.link").click()
    box = one(chrome, "dialog").rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert chrome.execute_script("const d = document.querySelector('dialog'); return d.scrollWidth <= d.clientWidth")
    assert chrome.execute_script(width) == [390, 390]
    small = "return [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    assert min(h for h in chrome.execute_script(small) if h) > 10


def test_figures_tell_in_words_what_they_show(page, made):
    plots = until(lambda: all_of(page, "svg[role=img]"))
    labels = [x.get_attribute("aria-label") for x in plots]
    assert [
        x.get_attribute("aria-hidden")
        for x in all_of(page, "svg:not([role=img])")
        if not x.get_attribute("aria-hidden")
    ] == []
    forest = [x for x in labels if x.startswith("Differences to random")]
    assert len(forest) == 2
    line = next(x for x in leaderboard(made[0]).groups[0].lines if x.name == "knn")
    assert f"knn +{100 * line.diff.value:.1f}" in forest[0]
    assert sum("by number of demonstrations" in x for x in labels) == 1
    assert sum("against prompt tokens" in x for x in labels) == 1


def test_tables_are_tables_and_ids_are_unique(page):
    opened(page)
    ids = [x.get_attribute("id") for x in all_of(page, "[id]")]
    assert len(ids) == len(set(ids))
    assert all_of(page, "th:not([scope])") == []
    for row in all_of(page, "table tbody tr")[:3]:
        assert len(row.find_elements("css selector", "th[scope=row]")) == 1
    assert page.execute_script(UNNAMED) == []
    assert page.execute_script("return document.documentElement.lang") == "en"


def test_a_selector_leads_to_its_group(page):
    link = all_of(page, "#board-table tbody a")[-1]
    target = re.search(r"#(group-\d+)$", link.get_attribute("href")).group(1)
    page.execute_script("arguments[0].click()", link)
    assert page.execute_script("return document.querySelector(':target').id") == target


def test_without_texts_queries_and_demonstrations_go_by_their_ids(chrome, made, tmp_path):
    look(chrome)
    chrome.get(write(tmp_path / "bare.html", made[0], None).as_uri())
    opened(chrome)
    first = made[0][0].rows[0]
    assert first.query_id in one(chrome, "button.link").text
    one(chrome, "button.link").click()
    assert "its text was not given to this page" in one(chrome, "dialog pre").text


def test_a_page_of_a_sample_says_so(chrome, tmp_path):
    look(chrome)
    chrome.get(write(tmp_path / "some.html", make_runs(3000), None, limit=8_000).as_uri())
    opened(chrome)
    assert re.match(r"[\d,]+ of 3,000 queries are kept", one(chrome, ".drill p.soft").text)


def test_a_chat_shows_who_says_what(chrome, tmp_path, monkeypatch):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "home"))
    train = [Example(f"say {n}", f"it is {n}") for n in range(9)]
    template = Template("{input}\n{output}", chat=True, system="Be brief.")
    task = make_task("echo", train, [Example("say 11", "it is 11"), Example("say 12", "no")], kind="generation",
                     template=template)  # fmt: skip
    runs = [evaluate(task, "random", ScriptedLM(reply=lambda _: "it is 11"), k=1, seed=s, out=tmp_path) for s in (0, 1)]
    texts = {task.hash: {k: v for run in runs for k, v in load_texts(tmp_path / run.id).items()}}
    look(chrome)
    chrome.get(write(tmp_path / "chat.html", runs, texts).as_uri())
    opened(chrome)
    one(chrome, "button.link").click()
    (shown,) = runs[0].rows[0].shown
    demo = texts[task.hash][shown]
    said = re.sub(r"\s+", " ", one(chrome, "dialog pre").get_attribute("textContent"))
    assert said == f"system Be brief. user {demo['input']} assistant {demo['output']} user say 11 "
    assert [x.text for x in all_of(chrome, "dialog dd")][1] == "it is 11"


def test_a_part_of_the_queries_can_be_looked_at(page):
    select = control(page, "Queries")
    names = [o.text for o in select.find_elements("css selector", "option")]
    assert names[0] == "all 60 queries"
    assert {"animal (30)", "food (30)"} <= set(names)
    before = one(page, "figure svg[aria-label^='Differences']").get_attribute("aria-label")
    choose(select, "animal (30)")
    until(
        lambda: [
            x for x in all_of(page, "[role=status]") if x.is_displayed() and "30 queries with label animal" in x.text
        ]
    )
    assert one(page, "figure svg[aria-label^='Differences']").get_attribute("aria-label") != before


def test_the_board_can_be_downloaded_and_a_prompt_copied(page):
    assert one(page, "#csv").get_attribute("href").startswith("blob:")
    opened(page)
    one(page, "button.link").click()
    next(x for x in all_of(page, "dialog button") if x.text == "Copy the prompt").click()
    until(lambda: [x for x in all_of(page, "dialog button") if x.text == "Copied"])
    page.find_element("css selector", "dialog [data-close]").click()


def test_a_phone_shows_difference_and_verdict_without_scrolling_aside(chrome, file):
    look(chrome, width=390, height=844)
    chrome.get(file.as_uri())
    rows = all_of(chrome, "#board-table tbody tr")
    for row in rows:
        for cell in row.find_elements(
            "css selector", "[data-column=verdict], [data-column=diff], [data-column=selector]"
        ):
            box = cell.rect
            assert not cell.text or (box["x"] >= 0 and box["x"] + box["width"] <= 390)
    shown = [row.text for row in rows if "better" in row.text]
    assert shown
    assert all("+" in text for text in shown)
    choose(control(chrome, "Sort by"), "Selector")
    found = [x.text for x in all_of(chrome, "#board-table tbody th")]
    assert found == sorted(found)


def test_lines_without_an_lm_are_told_from_the_others(chrome, tmp_path):
    from .test_lm_adds import world

    runs = world(80)
    chrome.get(write(tmp_path / "board.html", runs, None).as_uri())
    look(chrome)
    assert "knn-vote" in one(chrome, "#lm").text
    assert {"□ asks no LM"} == {v for n, v in zip(column(chrome, "Selector"), column(chrome, "Verdict"), strict=True)
                                if n in ("majority", "knn-vote")}  # fmt: skip
    assert chrome.get_log("browser") == []


def test_several_tasks_have_their_table_on_the_page(chrome, tmp_path):
    runs = [r for n in range(3) for r in make_runs(60, task=f"t{n}", key=n)]
    chrome.get(write(tmp_path / "board.html", runs, None).as_uri())
    look(chrome)
    table = one(chrome, "#overall table")
    (overall,) = leaderboard(runs).overall
    assert [x.text for x in table.find_elements("css selector", "tbody th")] == [x.name for x in overall.lines]
    assert one(chrome, "#made").text.startswith("Command")
