"""A finished study's report in a real browser: wide and on a phone, without network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("jsonschema", reason="the workflow's environment has it")
pytest.importorskip("websocket", reason="needs websocket-client, which envs/test.txt pins")

import browser
from arms_study import summarise, write_arms_study
from finished_study import finished_study

from viny.evidence.report.words import percent

WIDE, PHONE = (1200, 800), (400, 800)  # CSS pixels
NOTE = "Test </style><script>throw Error('run')</script> <img src=https://example.org/x.png>" + " and a long word" * 3
# Elements that reach out of the window, unless a box around them scrolls or they are not shown.
OUTSIDE = """
[...document.body.querySelectorAll('*')].filter(e => {
  const r = e.getBoundingClientRect();
  for (let box = e.parentElement; box; box = box.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) return false;
  return r.width > 0 && (r.left < -1 || r.right > innerWidth + 1);
}).map(e => e.outerHTML.slice(0, 99))
"""
SHOWN = "[...document.querySelectorAll('.card')].filter(e => e.checkVisibility({visibilityProperty: true}))"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    grid = {"pretrain_sizes": [0, 12, 24], "seeds": [0, 1]}  # three sizes, so that there is a doubling
    return finished_study(tmp_path_factory.mktemp("study"), {"note": NOTE, "grid": grid})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if not (program := browser.find()):
        pytest.skip(f"no Chromium here (looked for {', '.join(browser.NAMES)}); Debian's package is chromium")
    with browser.browser(program, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(params=[WIDE, PHONE], ids=["wide", "phone"])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture
def opened(page: browser.Page, study: Path, size: tuple[int, int]) -> browser.Page:
    """The report in a window of that size."""
    page.problems.clear()
    page.requests.clear()
    page.open(study / "report.html", *size, touch=size is PHONE)
    return page


def test_it_loads_nothing_and_complains_of_nothing(opened: browser.Page, study: Path) -> None:
    opened.until("[...document.images].every(image => image.complete)")
    assert opened.ask("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert opened.problems == []
    assert {url.partition(",")[0] for url in opened.requests} == {
        (study / "report.html").as_uri(),
        "data:image/png;base64",
    }
    assert opened.ask("document.querySelector('.note').textContent") == NOTE


def test_the_first_figure_is_beside_its_caption_where_there_is_room(
    opened: browser.Page, size: tuple[int, int]
) -> None:
    def box(selector: str) -> dict[str, float]:
        return opened.ask(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")

    answers, picture, caption = box("#answers"), box("#lead img"), box("#lead figcaption")
    assert caption["right"] == pytest.approx(answers["right"], abs=1)
    if size is WIDE:
        assert picture["left"] < answers["left"] + 20
        assert picture["right"] < caption["left"]
    else:
        assert picture["bottom"] <= caption["top"]


def test_nothing_is_wider_than_the_page(opened: browser.Page) -> None:
    assert opened.ask("document.scrollingElement.scrollWidth") <= opened.ask("innerWidth")
    assert opened.ask(OUTSIDE) == []
    opened.ask("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert opened.ask(OUTSIDE) == []


@pytest.mark.parametrize("labels", [3, 8], ids=["few labels", "many labels"])
def test_the_most_labels_are_in_sight(opened: browser.Page, labels: int) -> None:
    # As the page has them of that many numbers of labels: the last column again and again.
    opened.ask(
        f"(() => {{ const t = document.querySelector('#miou'); t.classList.toggle('many', {labels} > 4);"
        " for (const r of t.rows) { const last = r.cells[r.cells.length - 1];"
        f" while (r.cells.length <= {labels}) r.append(last.cloneNode(true)); }} }})()"
    )
    for table in ("#miou", "#classes"):
        assert opened.ask(f"(e => e.scrollWidth <= e.clientWidth)(document.querySelector('{table}').parentElement)")
    mean = "document.querySelector('#miou tbody tr td:last-child .value').getBoundingClientRect()"
    assert opened.ask(f"{mean}.width > 0 && {mean}.right <= innerWidth")


def test_the_answers_are_in_the_first_screen(opened: browser.Page, study: Path, size: tuple[int, int]) -> None:
    assert opened.ask("document.querySelector('#answers').getBoundingClientRect().bottom") <= size[1]
    said = opened.ask("document.querySelector('#answers').innerText")
    assert opened.ask("document.querySelectorAll('#answers p').length") >= 6
    assert len(said.split()) <= 150
    decisions = pd.read_csv(study / "tables" / "decisions.csv")
    for kind in ("pre-training", "task"):
        row = decisions[decisions["kind"] == kind].iloc[-1]
        assert f"{row['name'][1:]} {row['words']}" in said, kind
        assert f"{100 * row['mean']:+.2f}".replace("-", "−") in said, kind


def test_a_page_with_arms_fits_and_opens_to_what_is_behind_each_mean(
    page: browser.Page, tmp_path: Path, size: tuple[int, int]
) -> None:
    root = tmp_path / "tiny"
    config = write_arms_study(root)
    summarise(root, config)
    page.problems.clear()
    page.open(root / "report.html", *size, touch=size is PHONE)
    assert page.ask("document.querySelector('#answers b').innerText") == "Which arm"
    page.ask("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert page.ask("document.scrollingElement.scrollWidth") <= page.ask("innerWidth")
    assert page.ask(OUTSIDE) == []
    assert page.problems == []
    page.ask("document.querySelector('#cell-14-1').showPopover()")
    said = page.ask("document.querySelector('#cell-14-1').innerText")
    assert all(words in said for words in ("Tuned rate", "0.004", "Time a model", "To the first arm", "metrics"))


def test_letters_in_figures_are_readable(opened: browser.Page, study: Path) -> None:
    """Letters of 8 points are shown at 9 CSS pixels or more."""
    opened.ask("document.querySelectorAll('details').forEach(e => { e.open = true })")
    shown = opened.ask(
        "[...document.querySelectorAll('figure img')].map(e => [e.parentElement.parentElement.id, e.width])"
    )
    assert len(shown) > 5
    for name, width in shown:
        with Image.open(study / "figures" / f"{name}.png") as picture:
            assert 8 / 72 * width / (picture.width / picture.info["dpi"][0]) >= 9, name


def test_a_mean_shows_its_seeds_and_their_files(opened: browser.Page, study: Path, size: tuple[int, int]) -> None:
    assert opened.ask(f"{SHOWN}.length") == 0
    # Through whatever a reader has: a pointer that rests on it, or a finger.
    (opened.point if size is WIDE else opened.tap)("#miou tr:last-child td:last-child .value")
    opened.until(f"{SHOWN}.length === 1")
    card = opened.ask(
        f"(() => {{ const e = {SHOWN}[0], r = e.getBoundingClientRect();"
        " return {text: e.innerText, left: r.left, right: r.right, top: r.top, bottom: r.bottom,"
        "  on: document.elementFromPoint((r.left + r.right) / 2, r.bottom - 5).closest('.card') === e,"
        "  links: [...e.querySelectorAll('a')].map(a => a.href)}; })()"
    )
    assert card["left"] >= 0 and card["right"] <= size[0] and card["top"] >= 0 and card["bottom"] <= size[1]
    assert card["on"], "something lies above it"
    names = [f"pre-24_mid-scenes_fine-16_seed-{seed}" for seed in (0, 1)]
    found = [Path(unquote(urlsplit(link).path)) for link in card["links"]]
    wanted = [(study / "metrics" / f"{name}.json", study / "finetune" / name) for name in names]
    assert found == [path for both in wanted for path in both]
    assert all(path.exists() for path in found)
    for path in found[::2]:
        assert percent(json.loads(path.read_text())["metrics"]["miou"], 2) in card["text"]


def test_keys_show_the_same(opened: browser.Page) -> None:
    opened.ask("document.querySelector('#miou .value').focus()")
    opened.press("Enter", 13, "\r")
    opened.until("document.querySelector('#cell-1-1').matches(':popover-open')")
    opened.press("Tab", 9)
    assert opened.ask("document.activeElement.closest('.card')?.id") == "cell-1-1"
    opened.press("Escape", 27)
    opened.until("!document.querySelector('.card:popover-open')")


def test_one_interval_is_shown_at_a_time(opened: browser.Page) -> None:
    said = {}
    for name in opened.ask("[...document.querySelectorAll('.switch input')].map(e => e.id)"):
        opened.click(f"#{name}")
        said[name] = opened.ask("document.querySelector('#miou .value').innerText").split("\n")
    assert [len(words) for words in said.values()] == [2, 2, 2]  # the mean and one interval
    assert len({words[0] for words in said.values()}) == 1
    assert len({words[1] for words in said.values()}) == 3
