"""Pages: each is walked in a real browser, and refuses what it must without one."""

import hashlib
import html
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import httpx
import pictures
import pytest
import showing
import worlds
from answering import Service, serving, until
from browsers import Browser, browsing
from showing import ODD, POOL
from worlds import World

from infra.embedded import Addresses
from records import history, keys
from tasks import labelling, promotion
from tasks.promotion import Decision
from web import app
from web.decisions import Decisions
from web.pages import library, runs
from web.pages import reviews as review_pages
from web.pages.frame import Page
from web.rules import Rules

LET = threading.Event()  # while it is clear, no rollback begins
LET.set()


def roll_back(version: int, by: str, why: str) -> Decision:
    """A rollback that takes as long as a test wants."""
    assert LET.wait(60)
    return promotion.roll_back(version, by, why)


DECISIONS = Decisions(
    promotion.approve, lambda version, by, why: promotion.adopt(version, {}, by, why),
    roll_back, labelling.follow,
)  # fmt: skip
PAGES = (
    "/", "/versions", "/versions/2", "/versions/2?on=test&sort=name", "/versions/2/images?every=1",
    "/versions/2/origins", "/compare?version=2&other=1", "/in-use", "/library",
    "/library/class?name=ring", "/library/quarantine", "/library/quarantine?batch=2",
    "/pools?filter=free", "/pools?filter=scarce", "/pools?filter=look-alike&class=ring",
    "/pools?filter=junk", "/pools?filter=staged", "/pools?filter=unknown", "/reviews",
    "/reviews/next?queue=confidence", "/reviews/next?queue=pools", "/runs", "/runs/2", "/you",
    "/docs",
)  # fmt: skip
BROWSER_SAYS = {"Sec-Fetch-Site": "same-origin"}
LOOKS = {"Accept": "text/html,*/*;q=0.8"}
# Every form there is, filled in; of a review, a transaction is to be named.
FORMS = {
    "/you": {"by": "Ann"},
    "/sign-in": {"key": "regraft_no", "to": "/"},
    "/sign-out": {},
    "/library/act": {"images": "0" * 64, "act": "relabel", "to": "/", "why": "hard",
                     "label": "ring", "version": "2", "by": "Ann"},
    "/library/undo": {"number": "1", "why": "wrong", "by": "Ann"},
    "/library/batch": {"batch": "2", "act": "accept", "why": "looked at", "by": "Ann"},
    "/reviews": {"queue": "confidence", "transaction": "", "version": "2", "image": "0" * 64,
                 "to": "/reviews", "verdict": "", "label": "ring", "named": "ring", "make": "",
                 "learn": "", "note": "so", "by": "Ann"},
    "/pools/act": {"images": f"{'0' * 64} ring", "act": "label", "version": "2", "to": "/pools",
                   "label": "ring", "make": "", "why": "so", "by": "Ann"},
    "/versions/{version_id}/decide": {"act": "reject", "why": "so", "by": "Ann"},
}  # fmt: skip
# What people write down by forms.
WRITTEN = ("reviews", "pool_acts", "image_acts", "rejections", "deployments")


@pytest.fixture(scope="module")
def world(services: Addresses, template: str, prefect_server: str) -> Iterator[World]:
    """Two nights, a pool, answers that were served, reviews; entered."""
    made = showing.make(services, template)
    try:
        with worlds.inside(made):
            yield made
    finally:
        worlds.drop(made)


@pytest.fixture(scope="module")
def service(world: World) -> Iterator[Service]:
    """The service on its loopback, where people may decide, with the rights of its role alone."""
    with worlds.inside(worlds.as_server(world)), serving(Rules(), None, DECISIONS) as found:
        yield found


@pytest.fixture(scope="module")
def window(service: Service) -> Iterator[Browser]:
    """A browser for all tests, since it takes seconds to start."""
    with browsing(f"http://127.0.0.1:{service.port}") as found:
        yield found


@pytest.fixture
def browser(window: Browser) -> Browser:
    """The browser of somebody who is called Ann."""
    window.use()
    window.open("/you")
    window.driver.delete_all_cookies()
    window.driver.add_cookie({"name": "regraft_person", "value": "Ann"})
    window.complaints()
    return window


# --- in a browser -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_for_everybody(browser: Browser, path: str) -> None:
    """In light and dark axe finds no serious fault, nothing fails, and a telephone is wide enough.

    The policy that pages are sent with would be complained of if they broke it.
    """
    for scheme in ("light", "dark"):
        browser.use(scheme)
        browser.open(path)
        assert browser.faults() == []
        assert len(browser.all("h1")) == 1
    browser.use(width=390)
    browser.open(path)
    wide, room = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room
    browser.run("for (const one of document.images) one.loading = 'eager'")
    assert browser.run(
        """
        return Promise.all([...document.images].map((one) => one.decode().then(() => "", () =>
            one.src))).then((all) => all.filter(Boolean))
        """
    ) == []
    assert browser.complaints() == []


def test_no_name_is_wider_than_the_page(browser: Browser) -> None:
    """Neither a class nor a person who is called something long without a space."""
    long = "w" * 200
    browser.driver.add_cookie({"name": "regraft_person", "value": long})
    browser.use(width=390)
    browser.open(f"/versions/2/images?class={long}")
    assert browser.text().count(long) == 2
    wide, room = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room


def test_axe_finds_what_is_planted(browser: Browser) -> None:
    """The check above could fail."""
    browser.open("/runs")
    browser.run("document.querySelector('main').innerHTML += '<input><p id=p>words</p>'")
    browser.run("document.getElementById('p').setAttribute('aria-labelledby', 'nothing')")
    assert any("label" in one for one in browser.faults())


def test_pictures_of_a_pool_are_chosen_by_keyboard_and_labelled(
    world: World, browser: Browser
) -> None:
    """Filter, go by arrows, choose by space and shift, name them; S3 follows, and all is undone."""
    from selenium.webdriver import Keys

    browser.open("/pools?filter=free")
    field = browser.one("input[name=most]")
    field.clear()
    browser.press("6", Keys.ENTER) if field.is_enabled() and not field.click() else None
    boxes = browser.all(".grid input[type=checkbox]")
    assert len(boxes) == 6
    assert not browser.one("button[value=label]").is_enabled()  # nothing is chosen yet
    browser.run("arguments[0].focus()", boxes[0])
    browser.press(Keys.SPACE)
    browser.press_with_shift(Keys.ARROW_RIGHT)
    assert browser.one("[data-count]").text == "2 of 6 selected"
    chosen = {one.get_attribute("value").split()[0] for one in boxes if one.is_selected()}
    browser.press("l")
    browser.press("ring")
    browser.one("button[value=label]").click()
    assert browser.until_said() == "2 pictures labelled."
    assert browser.driver.title == "2 pictures labelled. · Pools · regraft"  # which is read first
    acts = world.ask("SELECT sha256, class_name, done_by FROM pool_acts WHERE act = 'label'")
    assert {(one, "ring", "Ann") for one in chosen} == set(acts)
    assert all(any(one in listed.key for listed in world.storage.list("labelled/ring/"))
               for one in chosen)  # fmt: skip
    for box in browser.all(".grid input[type=checkbox]")[4:6]:
        browser.run("arguments[0].click()", box)
    browser.one("button[value=remove]").click()
    assert browser.until_said() == "2 pictures moved to the trash."
    browser.one("button[value=restore]").click()  # at once, as they were removed
    assert browser.until_said() == "2 pictures brought back."
    assert world.ask("SELECT count(*) FROM pool_objects WHERE gone_at IS NOT NULL") == [(0,)]


def test_answers_are_reviewed_one_at_a_time_by_keyboard(world: World, browser: Browser) -> None:
    """Keys say what is right, wrong and untold; a blind one hides what was answered."""
    from selenium.webdriver import Keys

    browser.open("/reviews/next?queue=confidence")
    browser.press("r")
    assert browser.until_said().startswith("Kept: right, ")
    assert ODD in browser.one(".answers").text
    browser.press("3")  # the third answer
    assert browser.until_said().startswith("Kept: wrong, ")
    before = world.ask("SELECT count(*) FROM reviews WHERE reviewed_by = 'Ann'")[0][0]
    browser.open("/reviews/next?queue=random")
    seen = set()
    for _ in range(showing.ANSWERS // 2):
        blind = "without the answer" in browser.text()
        seen.add(blind)
        assert bool(browser.all(".answers button")) is not blind
        if blind:
            browser.one("input[name=label]").send_keys("circle", Keys.ENTER)
        else:
            browser.press("c")
        assert browser.until_said().startswith("Kept: ")
    browser.until_it_reads("Nothing waits here for Ann")
    said = world.ask("SELECT blind FROM reviews WHERE reviewed_by = 'Ann' AND stream = 'random'")
    assert len(said) == showing.ANSWERS // 2
    assert {blind for (blind,) in said} == seen
    assert world.ask("SELECT count(*) FROM reviews WHERE reviewed_by = 'Ann'")[0][0] > before
    browser.open("/reviews")
    browser.until_it_reads("drawn transactions")


def test_a_key_that_is_held_down_judges_nothing(browser: Browser) -> None:
    """A keyboard repeats it, and picture after picture would be said to be right."""
    browser.open("/reviews/next?queue=pools")
    browser.run("document.addEventListener('submit', (one) => {"
                " one.preventDefault(); document.body.dataset.sent = 1; })")  # fmt: skip
    for repeated in (True, False):
        browser.driver.execute_cdp_cmd(
            "Input.dispatchKeyEvent",
            {"type": "keyDown", "key": "r", "text": "r", "autoRepeat": repeated},
        )
        assert browser.run("return document.body.dataset.sent") == (None if repeated else "1")


def test_what_was_refused_is_as_it_was_left(browser: Browser) -> None:
    """Back leads to the same pictures, still selected, and the name that was mistyped."""
    browser.open("/pools?filter=free")
    for box in browser.all(".grid input[type=checkbox]")[1:3]:
        browser.run("arguments[0].click()", box)
    browser.one(".acts input[name=label]").send_keys("rnig")
    browser.one("button[value=label]").click()
    assert "(is 'ring' meant?)" in browser.until_said()
    browser.one("a[data-back]").click()
    browser.until_it_reads("2 of ")
    assert "2 of " in browser.one("[data-count]").text
    assert browser.one(".acts input[name=label]").get_attribute("value") == "rnig"
    assert browser.one("button[value=label]").is_enabled()


def test_answers_to_a_pool_are_reviewed_by_keyboard(world: World, browser: Browser) -> None:
    """Each with its picture and what brings it up; a verdict is of the version's answer."""
    browser.open("/reviews")
    browser.follow("a[href='/reviews/next?queue=pools']")
    assert browser.one(".tabs [aria-current]").text == "In pools"
    browser.until_it_reads(POOL)
    offered = browser.one("input[name=image]").get_attribute("value")
    browser.press("r")
    assert browser.until_said().startswith("Kept: right, ")
    assert browser.one("input[name=image]").get_attribute("value") != offered
    browser.press("2")
    assert browser.until_said().startswith("Kept: wrong, ")
    said = world.ask(
        "SELECT sha256, verdict, stream FROM reviews WHERE subject = 'identification' ORDER BY id"
    )
    assert [row[1:] for row in said] == [("right", "doubt"), ("wrong", "doubt")]
    assert said[0][0] == offered


def test_what_was_skipped_stays_behind(browser: Browser) -> None:
    """Until the queue ends, which leads back to it; and who is asked for a name comes back."""
    browser.open("/reviews/next?queue=pools")
    first = browser.one("input[name=image]").get_attribute("value")
    browser.follow("a[data-key=s]")
    second = browser.one("input[name=image]").get_attribute("value")
    browser.press("b")
    assert browser.until_said() == "Kept: bad image."
    third = browser.one("input[name=image]").get_attribute("value")
    assert len({first, second, third}) == 3
    browser.open("/reviews/next?queue=pools&skip=200")
    browser.follow("p[role=status] a")
    assert browser.one("input[name=image]").get_attribute("value") == first
    browser.driver.delete_all_cookies()
    browser.open("/reviews/next?queue=pools&skip=1")
    browser.one("input[name=by]").send_keys("Ann")
    browser.follow("main button")
    assert browser.one("input[name=image]").get_attribute("value") == third


@pytest.mark.parametrize("queue", ["confidence", "pools"])
def test_a_slip_is_mended_by_a_key(world: World, browser: Browser, queue: str) -> None:
    """What was said last is shown once more, and the newest word counts; then the queue goes on."""
    browser.open(f"/reviews/next?queue={queue}")
    picture = browser.one(".stage a").get_attribute("href")
    browser.press("r")
    assert browser.until_said().startswith("Kept: right, ")
    following = browser.one(".stage a").get_attribute("href")
    browser.press("u")
    browser.until_it_reads("once more")
    assert browser.one(".stage a").get_attribute("href") == picture
    assert "skip=" not in browser.one("a[data-key=s]").get_attribute("href")  # goes on
    browser.seen = browser.one("html").id
    browser.press("b")
    assert browser.until_said() == "Kept: bad image."
    assert browser.one(".stage a").get_attribute("href") == following
    said = world.ask("SELECT verdict, sha256, stream FROM reviews ORDER BY id DESC LIMIT 2")
    assert [row[0] for row in said] == ["bad image", "right"]
    assert said[0][1:] == said[1][1:] == (picture.split("/")[4], "doubt")


def test_what_is_wrong_is_kept_removed_and_brought_back(world: World, browser: Browser) -> None:
    """One click from the version; an act, and the same undone in the library."""
    browser.open("/versions/2")
    browser.follow("a.main")
    assert browser.run("return location.pathname") == "/versions/2/images"
    browser.open("/versions/2/images?every=1&subject=test")
    browser.all(".grid input[type=checkbox]")[0].click()
    browser.one("input[name=why]").send_keys("hard to see")
    browser.one("button[value=keep]").click()
    assert browser.until_said() == "1 image kept as hard cases."
    browser.open("/reviews")
    browser.one("button[value=drop]").click()
    assert browser.until_said() == "1 image kept no longer."
    browser.open("/versions/2/images?every=1&subject=test&again=1")
    boxes = browser.all(".grid input[type=checkbox]")[:2]
    digests = [box.get_attribute("value") for box in boxes]
    for box in boxes:
        box.click()
    browser.one("input[name=why]").send_keys("a blur")
    browser.one("button[value=remove]").click()
    assert browser.until_said() == "2 images removed."
    query = "SELECT withdrawn_why FROM images WHERE sha256 = ANY(:digests)"
    assert world.ask(query, digests=digests) == [("removed",)] * 2
    browser.open("/library")
    browser.one("form[action='/library/undo'] button").click()  # at once, as they were removed
    assert browser.until_said() == "2 acts are undone."
    assert world.ask(query, digests=digests) == [(None,)] * 2


def test_versions_are_compared_and_their_tables_sorted(browser: Browser) -> None:
    """Two of the list, side by side; a head of a table sorts it, and says so."""
    browser.open("/versions")
    browser.one("input[name=version][value='2']").click()
    browser.one("input[name=other][value='1']").click()
    browser.follow("form[action='/compare'] button")
    browser.until_it_reads("On the same images")
    browser.follow("[aria-label='Class by class'] td.name a")
    assert browser.run("return location.pathname") == "/versions/2/images"
    assert browser.all("#names option")
    browser.open("/versions/2")
    browser.follow("table.classes th:first-child a")
    names = [one.text for one in browser.all("table.classes td.name")]
    assert len(names) > 2
    assert names == sorted(names)
    assert browser.one("table.classes th:first-child").get_attribute("aria-sort")
    browser.follow("table.classes td.name a")
    assert browser.one("input[name=class]").get_attribute("value") == names[0]
    assert browser.one("select[name=subject]").get_attribute("value") == "benchmark"


def test_accuracy_in_use_stands_beside_that_of_training(world: World, browser: Browser) -> None:
    """From the overview to all versions, to one of them, by class; the figures are history's."""
    with world.transaction() as session:
        used = history.answered(session, history.in_use())
    browser.open("/")
    browser.follow("a[href='/in-use']:not(nav a)")
    for one in browser.all("summary"):
        browser.run("arguments[0].parentElement.open = true", one)
    by_version = browser.one("[aria-label='Version by version']").text
    assert [one.version_id for one in used] == [2, 1]
    for one in used:
        assert one.accuracy is not None
        assert f"{one.accuracy:.1%}" in by_version
        assert f"{one.test_accuracy:.1%}" in by_version
    asking = {
        one.find_element("css selector", ".name").text:
            one.find_element("css selector", ".number").text
        for one in browser.all("[aria-label='Who asks'] tbody tr")
    }  # fmt: skip
    assert asking == {"shop": str(showing.ANSWERS), showing.ASKING: str(showing.REVIEWED)}
    browser.one("input[name=version]").send_keys("1")
    browser.follow("form button")
    assert browser.one("h1").text == "In use: version 1"
    assert "by 4 random reviews" in browser.one(".cards").text
    browser.follow("table.classes th:nth-child(2) a")
    counts = [int(one.text) for one in browser.all("table.classes td:nth-child(2)")]
    assert counts == sorted(counts, reverse=True)
    assert browser.one("table.classes th:nth-child(2)").get_attribute("aria-sort") == "descending"
    browser.open("/in-use?since=2020-01-01&until=2020-02-01")
    assert "Nothing was answered in these days" in browser.text()


@pytest.mark.parametrize(
    ("path", "field", "pressed"),
    [
        ("/reviews/next?queue=confidence", "label", "Say so"),
        ("/reviews/next?queue=confidence", "note", "Say so"),
        ("/reviews/next?queue=confidence", "learn", "Say so"),
        ("/reviews/next?queue=pools", "label", "Say so"),
        ("/pools?filter=free", "label", "Label"),
        ("/pools?filter=free", "why", "Label"),
        ("/pools?filter=free", "images", None),
        ("/library/class?name=ring", "label", "Relabel"),
        ("/library/class?name=ring", "images", None),
        ("/versions/2/images?every=1&subject=test", "label", "Relabel"),
        ("/versions/1", "why", None),
        ("/library/quarantine?batch=2", "why", None),
    ],
)
def test_enter_presses_what_is_meant(
    browser: Browser, path: str, field: str, pressed: str | None
) -> None:
    """What was typed is what is sent; of a reason, a tick or a choice alone nothing follows."""
    from selenium.webdriver import Keys

    browser.open(path)
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    for box in browser.all(".grid input[type=checkbox]:not(:disabled)")[:1]:
        browser.run("arguments[0].click()", box)
    found = browser.one(f"form[method=post] [name={field}]")
    browser.run(
        """
        const form = arguments[0].form;
        for (const one of form.querySelectorAll("[required]")) one.value = "so";
        form.addEventListener("submit", (one) => {
            one.preventDefault();
            document.body.dataset.pressed = one.submitter.textContent;
        })
        """,
        found,
    )
    typed = found.get_attribute("type") == "text"
    found.send_keys(*(["okapi"] if typed else []), Keys.ENTER)
    assert browser.run("return document.body.dataset.pressed") == pressed


def test_a_class_that_was_typed_is_what_is_kept(world: World, browser: Browser) -> None:
    """Enter after a name keeps that name, in a review as in a pool; after a note it keeps none."""
    from selenium.webdriver import Keys

    browser.open("/reviews/next?queue=confidence")
    answered = browser.one(".answers button").get_attribute("value")
    browser.one("input[name=note]").send_keys("a riddle", Keys.ENTER)
    assert browser.until_said().startswith("say right, wrong, bad image or cannot tell")
    browser.open("/reviews/next?queue=confidence")
    meant = "square" if answered != "square" else "circle"
    browser.one("input[name=label]").send_keys(meant, Keys.ENTER)
    assert browser.until_said().startswith(f"Kept: wrong, {meant}")
    untouched = """
        SELECT sha256 FROM pool_objects WHERE problem IS NULL
        AND sha256 NOT IN (SELECT sha256 FROM pool_acts) LIMIT 1
    """
    digest = world.ask(untouched)[0][0]
    browser.open("/pools?filter=free")
    box = browser.one(f".grid input[value^='{digest}']")
    offered = box.get_attribute("value").split()[1]
    browser.run("arguments[0].click()", box)
    meant = "square" if offered != "square" else "circle"
    browser.one(".acts input[name=label]").send_keys(meant, Keys.ENTER)
    assert browser.until_said() == "1 picture labelled."
    kept = "SELECT act, class_name FROM pool_acts WHERE sha256 = :digest"
    assert world.ask(kept, digest=digest) == [("label", meant)]


def test_a_person_rolls_back_and_approves(
    world: World, service: Service, browser: Browser
) -> None:
    """The network is loaded and judged while the page waits; without a reason nothing happens."""
    browser.open("/versions/1")
    browser.one("details summary").click()
    browser.one("input[name=why]").send_keys("version 2 is wrong about rings")
    LET.clear()
    try:
        browser.one("button[value=roll_back]").click()
        browser.until_it_reads("Version 1 is being judged since")
        assert not browser.all("button[value=roll_back]")
        _others_see_that_it_goes_on(service)
    finally:
        LET.set()
    assert browser.until_said().startswith("version 1 serves again")  # it came by itself
    assert "serves" in browser.one("h1").text
    browser.open("/versions/1")
    assert not browser.all(".said, .judging")  # it is told once
    showing.refuse_second(world)
    world.act(worlds.FREE, "DELETE FROM deployments WHERE kind = 'rollback'")
    browser.open("/versions/2")
    browser.one("input[name=why]").send_keys("looked at by hand")
    browser.one("button[value=approve]").click()
    assert "serves" in browser.until_said()
    kind, by, why = world.ask(
        "SELECT kind, deployed_by, why FROM deployments ORDER BY id DESC LIMIT 1"
    )[0]
    assert (kind, by, why) == ("approval", "Ann", "looked at by hand")
    browser.open("/")
    assert "Version 2 serves" in browser.text()


def _others_see_that_it_goes_on(service: Service) -> None:
    """Who did not ask sees it on every page, may wait for it, and must wait to decide anything."""
    bob = {"Cookie": "regraft_person=Bob", **BROWSER_SAYS, **LOOKS}
    seen = service.client.get("/versions", headers=bob)
    assert "as Ann asked" in seen.text
    assert "refresh" not in seen.headers
    assert "refresh" not in service.client.get("/versions/1", headers=bob).headers
    assert service.client.get("/versions/1?wait=1", headers=bob).headers["refresh"]
    also = {"act": "roll_back", "why": "me too"}
    refused = service.client.post("/versions/1/decide", data=also, headers=bob)
    assert refused.status_code == 409
    assert "version 1 is being judged, as Ann asked: try again" in refused.text


def test_what_comes_of_nothing_is_told_once_to_who_asked(service: Service) -> None:
    """A refusal is one sentence on the next page of that person, and on nobody else's."""
    ann, bob = (
        {"Cookie": f"regraft_person={name}", **BROWSER_SAYS, **LOOKS} for name in ("Ann", "Bob")
    )
    asked = service.client.post(
        "/versions/2/decide", data={"act": "adopt", "why": "to see"}, headers=ann
    )
    assert (asked.status_code, asked.headers["location"]) == (303, "/versions/2?wait=1")
    until(lambda: "refresh" not in service.client.get("/versions/2?wait=1", headers=bob).headers)
    refused = "Adopting version 2 failed: "
    assert refused not in service.client.get("/", headers=bob).text
    assert service.client.get(  # which looks at nothing
        f"/pictures/{'0' * 64}", headers={**ann, "Accept": "image/*"}
    ).status_code == 404
    assert refused in service.client.get("/", headers=ann).text
    assert refused not in service.client.get("/", headers=ann).text
    for wrong, status in (({"act": "adopt"}, 409), ({"act": "sell", "why": "x"}, 422)):
        answer = service.client.post("/versions/2/decide", data=wrong, headers=ann)
        assert answer.status_code == status
    asked = service.client.post(
        "/versions/99/decide", data={"act": "adopt", "why": "x"}, headers=ann
    )
    assert asked.status_code == 404


def test_what_was_rejected_can_be_approved_and_nothing_else(
    world: World, service: Service
) -> None:
    """As the acts themselves have it: a rollback to it would fail, and it is rejected once."""
    acts = re.compile(r'name="act" value="(\w+)"')
    assert acts.findall(service.client.get("/versions/1").text) == ["roll_back", "reject"]
    service.client.post(
        "/versions/1/decide", data={"act": "reject", "why": "odd", "by": "Ann"},
        headers=BROWSER_SAYS,
    )  # fmt: skip
    try:
        page = service.client.get("/versions/1").text
        assert "Version 1 was rejected by Ann" in page
        assert acts.findall(page) == ["approve"]
    finally:
        world.act(worlds.FREE, "DELETE FROM rejections WHERE version_id = 1")


def test_what_came_of_a_decision_that_was_forgotten_is_in_postgres(service: Service) -> None:
    """Who waits for one on a service that was started anew reads what the newest one came to."""
    ann = {"Cookie": "regraft_person=Ann", **BROWSER_SAYS, **LOOKS}
    waited = "Nothing is being judged now. Version 2 "
    assert waited not in service.client.get("/versions/2", headers=ann).text
    told = service.client.get("/versions/2?wait=1", headers=ann).text
    assert waited in told
    assert "refused by the gate on" in told or "came to serve on" in told


def test_a_service_that_stops_finishes_what_was_decided(world: World) -> None:
    """The act that was begun is done whole before the service ends."""
    newest = "SELECT version_id, kind FROM deployments ORDER BY id DESC LIMIT 1"
    with serving(Rules(), None, DECISIONS) as found:
        LET.clear()
        asked = found.client.post(
            "/versions/1/decide", data={"act": "roll_back", "why": "to see", "by": "Ann"},
            headers=BROWSER_SAYS,
        )  # fmt: skip
        assert asked.status_code == 303
        assert world.ask(newest)[0][0] == 2
        threading.Timer(0.3, LET.set).start()
    assert world.ask(newest) == [(1, "rollback")]
    world.act(worlds.FREE, "DELETE FROM deployments WHERE kind = 'rollback'")


def test_an_address_that_is_none_is_a_page_for_people(service: Service, browser: Browser) -> None:
    """A browser has a sentence on a page of ours; programs and the API have it as JSON."""
    browser.open("/nonsense")
    assert "There is nothing at /nonsense: the head of this page leads" in browser.text()
    assert browser.faults() == []
    browser.open("/pools/act")
    assert "takes only what a form sends" in browser.text()
    page = service.client.get("/%3Cb%3Ehere", headers=LOOKS)
    assert (page.status_code, "/&lt;b&gt;here" in page.text) == (404, True)
    posted = service.client.post("/library", headers=LOOKS)
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")
    for path, headers in (("/nonsense", {}), ("/v1/nonsense", LOOKS), ("/v1", LOOKS)):
        answer = service.client.get(path, headers=headers)
        assert answer.status_code == 404
        assert "there is nothing at" in answer.json()["detail"]


def test_pages_read_without_a_script(browser: Browser) -> None:
    """Everything there is to read is in what the server sends, and forms need no script."""
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        for path, words in (("/", "Accuracy, version by version"), ("/versions/2", "The gate"),
                            ("/pools?filter=free", POOL), ("/library", "ring"),
                            ("/library/class?name=ring", "Images, snapshot by snapshot"),
                            ("/versions/2/origins", "By sub-class"),
                            ("/in-use?version=2", "Week by week")):  # fmt: skip
            browser.open(path)
            assert words in browser.text()
        browser.open("/pools?filter=free")
        browser.all(".grid label.tile")[0].click()
        browser.one("button[value=dismiss]").click()
        assert browser.until_said() == "1 picture dismissed."
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# --- without one --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_names_are_never_markup(service: Service, path: str) -> None:
    """A class that is called like a tag stands there as it is called."""
    page = service.client.get(path, headers={"Cookie": "regraft_person=Ann"})
    assert page.status_code == 200, page.text
    assert "<b onclick" not in page.text
    assert "<i>look" not in page.text
    if path == "/library":
        assert "&#34;okapi&#34; &amp;amp; &#39;co&#39;" in page.text
    if path == "/reviews/next?queue=confidence":
        assert "&lt;b onclick=&#34;alert(1)&#34;&gt;" in page.text


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/versions/99", 404, "version 99"),
        ("/versions/x", 422, "version_id"),
        ("/versions/2?on=<script>", 200, "Classes"),
        ("/versions/2/images?class=nothing", 200, "There is no class nothing"),
        ("/versions/2/images?skip=1000", 200, "these were the last"),
        ("/versions?purpose=bakeoff", 200, "No bakeoff version yet"),
        ("/versions/2/images?class=%00", 422, "holds a NUL character"),
        ("/library/class?name=%00", 422, "holds a NUL character"),
        ("/library/class?name=nothing", 422, "there is no class"),
        ("/library/quarantine?batch=99", 404, "no batch 99"),
        ("/library/quarantine?expectation=' OR 1=1 --", 200, "Nothing here"),
        ("/pools?filter=free&class=nothing", 404, "knows no class"),
        ("/pools?filter=free&below=much", 422, "no confidence"),
        ("/pools?filter=free&pool=../etc", 404, "was never identified"),
        ("/pools?filter=all", 422, "filter"),
        ("/pools?filter=look-alike", 200, "choose a class.</p>"),
        ("/runs/99", 404, "no run 99"),
        ("/reviews/next?again=' OR 1=1", 422, "again"),
        ("/in-use?version=99", 404, "version 99"),
        ("/in-use?version=x", 422, "is no number"),
        ("/in-use?version=99999999999999999999", 422, "is no version"),
        ("/in-use?since=<script>", 422, "is no day"),
        ("/in-use?since=2026-02-01&until=2026-01-01", 422, "ends before it begins"),
        ("/in-use?until=9999-12-31&since=0001-01-01", 200, "Version by version"),
        ("/versions/99/origins", 404, "version 99"),
        ("/versions/2/origins?on=<script>", 422, "no set of images"),
        ("/compare?version=99&other=1", 200, "have not answered the same images"),
        ("/static/../app.py", 404, ""),
        ("/static/nothing.js", 404, "no file"),
        ("/pictures/" + "0" * 64, 404, "no object holds"),
        ("/pictures/etc", 422, "sha256"),
    ],
)
def test_a_bad_address_is_answered_in_one_sentence(
    service: Service, path: str, status: int, says: str
) -> None:
    """Nothing is a fault of ours, and the sentence stands on a page of ours."""
    answer = service.client.get(path)
    assert answer.status_code == status
    assert says in answer.text
    assert "<script>" not in answer.text.replace('<script src="', "")


def test_a_list_is_walked_to_its_end(
    world: World, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image once, and no page without any; whoever acts on a page comes back to it."""

    def shown(address: str) -> tuple[str, list[str]]:
        page = service.client.get(address).text
        return page, re.findall(r'name="images" value="(\w+)"', page)

    walks: tuple[tuple[ModuleType, str], ...] = (
        (library, "/library/class?name=ring"),
        (review_pages, "/versions/2/images?every=1&subject=test&again=1"),
    )
    for module, path in walks:
        all_of_them = shown(path)[1]
        found: list[str] = []
        for size in (len(all_of_them), 2):
            monkeypatch.setattr(module, "PAGE", size)
            found, address = [], path
            while address:
                page, images = shown(address)
                assert images
                found += images
                (back,) = re.findall(r'name="to" value="([^"]+)"', page)
                assert shown(html.unescape(back))[1] == images
                following = re.search(r'href="([^"]+)">The next ones<', page)
                address = path.split("?")[0] + html.unescape(following[1]) if following else ""
            assert found == all_of_them
        assert len(found) > 2


def test_versions_of_one_purpose_are_found_however_old(world: World, service: Service) -> None:
    """Newer ones of another purpose do not stand in their way."""
    world.act(worlds.FREE, "UPDATE versions SET purpose = 'control' WHERE id = 1")
    try:
        page = service.client.get("/versions?most=1&purpose=control").text
        assert 'aria-label="compare version 1"' in page
        assert "The newest 1:" not in page
        assert "The newest 1:" in service.client.get("/versions?most=1").text
    finally:
        world.act(worlds.FREE, "UPDATE versions SET purpose = 'nightly' WHERE id = 1")


def test_before_the_first_night_each_page_says_what_to_do(
    services: Addresses, template: str
) -> None:
    """Where nothing is yet, nothing fails."""
    empty = worlds.make(services, template)
    try:
        with worlds.inside(empty), serving(Rules(), None, DECISIONS) as found:
            for path in PAGES:
                if not re.search(r"[/=]2|name=|class=", path):
                    page = found.client.get(path, headers={"Cookie": "regraft_person=Ann"})
                    assert page.status_code == 200, (path, page.text)
            assert "Nothing serves yet" in found.client.get("/").text
            assert "yet: `regraft identify POOL`.</p>" in found.client.get("/pools").text
    finally:
        worlds.drop(empty)


def test_pictures_are_asked_for_once(world: World, service: Service) -> None:
    """A thumbnail and the original, each by its digest, which a browser need not fetch again."""
    digest = world.ask("SELECT sha256 FROM images LIMIT 1")[0][0]
    small = service.client.get(f"/pictures/{digest}?side=160")
    assert small.headers["content-type"] == "image/jpeg"
    assert small.headers["etag"] == f'"{digest}-160"'
    whole = service.client.get(f"/pictures/{digest}/original")
    assert hashlib.sha256(whole.content).hexdigest() == digest
    assert (whole.headers["etag"], whole.headers["content-type"]) == (f'"{digest}"', "image/png")
    assert "sandbox" in whole.headers["content-security-policy"]
    again = service.client.get(
        f"/pictures/{digest}", headers={"If-None-Match": small.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")
    transaction = world.ask("SELECT id FROM transactions LIMIT 1")[0][0]
    moved = service.client.get(f"/pictures/{digest}?transaction={transaction}")
    assert moved.status_code == 404  # another picture's transaction


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
        {},
    ],
)
def test_forms_of_other_sites_do_nothing(
    world: World, service: Service, headers: dict[str, str]
) -> None:
    """Whatever a browser sends from elsewhere, or cannot say from where, changes nothing."""
    before = world.ask("SELECT count(*) FROM rejections")
    answer = service.client.post(
        "/versions/1/decide", data={"act": "reject", "by": "Eve", "why": "for fun"},
        headers=headers,
    )  # fmt: skip
    assert answer.status_code in (401, 403)
    assert world.ask("SELECT count(*) FROM rejections") == before


@pytest.mark.parametrize(
    ("path", "changed", "says"),
    [
        ("/reviews", {"named": "ring", "label": "okapi"}, "was typed and"),
        ("/reviews", {"verdict": "right", "named": "", "label": "okapi"}, "was typed and"),
        ("/reviews", {"verdict": "bad image", "named": "", "label": "okapi"}, "was typed and"),
        ("/pools/act", {"act": "confirm"}, "another button pressed"),
        ("/pools/act", {"act": "remove"}, "another button pressed"),
        ("/pools/act", {"images": ""}, "nothing is selected"),
        ("/library/act", {"images": ""}, "nothing is selected"),
        ("/library/act", {"act": "keep"}, "another button pressed"),
        ("/library/batch", {"act": ""}, "act"),
        ("/versions/1/decide", {"act": ""}, "act"),
    ],
)
def test_a_form_that_contradicts_itself_is_refused(
    world: World, service: Service, path: str, changed: dict[str, str], says: str
) -> None:
    """Pressed and typed must be the same; without a button that was pressed nothing is decided."""

    def written() -> list[tuple[int, ...]]:
        return world.ask(f"SELECT {', '.join(f'(SELECT count(*) FROM {one})' for one in WRITTEN)}")  # noqa: S608

    before = written()
    digest = world.ask("SELECT sha256 FROM pool_objects WHERE problem IS NULL LIMIT 1")[0][0]
    if path == "/library/act":
        digest = world.ask("SELECT sha256 FROM images WHERE withdrawn_at IS NULL LIMIT 1")[0][0]
    form = FORMS["/versions/{version_id}/decide" if path.endswith("decide") else path] | changed
    form |= {name: word.replace("0" * 64, digest) for name, word in form.items()}
    form = {name: word for name, word in form.items() if word}
    answer = service.client.post(path, data=form, headers=BROWSER_SAYS)
    assert (answer.status_code, says in answer.text) == (422, True), answer.text
    assert written() == before


@pytest.mark.parametrize("path", FORMS)
def test_text_that_postgres_cannot_keep_is_refused(service: Service, path: str) -> None:
    """A NUL or half a surrogate pair in any field of any form is told in one sentence."""
    posted = {
        route.path for page in app.PAGES for route in page.router.routes
        if isinstance(route, Page) and "POST" in route.methods
    }  # fmt: skip
    assert posted == set(FORMS)
    address = path.format(version_id=1)
    for field in FORMS[path]:
        form = {name: word for name, word in FORMS[path].items() if word or name == field}
        answer = service.client.post(address, data=form | {field: "a\0b"}, headers=BROWSER_SAYS)
        assert (answer.status_code, "holds a NUL character" in answer.text) == (422, True), field
        parts = "".join(
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
            + ("a\\ud800b" if name == field else word) + "\r\n"
            for name, word in form.items()
        )  # fmt: skip
        kind = "multipart/form-data; boundary=x; charset=raw_unicode_escape"
        answer = service.client.post(
            address, content=f"{parts}--x--\r\n", headers={**BROWSER_SAYS, "Content-Type": kind}
        )
        assert (answer.status_code, "half a surrogate pair" in answer.text) == (422, True), field
        kind = "multipart/form-data; boundary=x; charset=undefined"
        answer = service.client.post(
            address, content=f"{parts}--x--\r\n", headers={**BROWSER_SAYS, "Content-Type": kind}
        )
        assert (answer.status_code, "send it in UTF-8" in answer.text) == (422, True), field
    unnamed = {"Cookie": "regraft_person=a%00b"}
    assert "Say who you are" in service.client.get("/reviews/next", headers=unnamed).text


def test_an_original_is_shown_as_what_it_begins_as(world: World, service: Service) -> None:
    """However large it says that it is, and whatever follows; what is no picture is refused."""
    two = pictures.encode(
        pictures.photograph(1), "MPO", save_all=True, append_images=[pictures.photograph(2)]
    )
    huge = pictures.png_of_size(20000, 20000, whole=False)
    cases = (
        (two, 200, "image/jpeg"), (huge, 200, "image/png"),
        (b"<script>alert(1)</script>", 422, "text/html; charset=utf-8"),
    )  # fmt: skip
    for body, status, kind in cases:
        digest = hashlib.sha256(body).hexdigest()
        world.storage.write(f"odd/{digest}", body)
        (listed,) = world.storage.list(f"odd/{digest}")
        world.act(
            worlds.FREE,
            """
            INSERT INTO pool_objects (pool_id, key, etag, size, sha256)
            SELECT min(id), :key, :etag, :size, :digest FROM pools
            """,
            key=listed.key, etag=listed.etag, size=listed.size, digest=digest,
        )  # fmt: skip
        try:
            answer = service.client.get(f"/pictures/{digest}/original")
        finally:
            world.act(worlds.FREE, "DELETE FROM pool_objects WHERE key LIKE 'odd/%'")
        assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
        assert (answer.content == body) is (status == 200)


def test_what_is_learned_is_told_as_it_is(world: World, service: Service) -> None:
    """The next night learns a picture once; said again, nothing is to come."""
    kept = "SELECT id, sha256 FROM transactions WHERE client = 'shop' ORDER BY at LIMIT 1"
    transaction, digest = world.ask(kept)[0]
    said = {"queue": "confidence", "transaction": transaction, "label": "ring", "learn": "1",
            "by": "Bea"}  # fmt: skip
    for words in ("the next night learns it", "it was learned before"):
        answer = service.client.post("/reviews", data=said, headers=BROWSER_SAYS)
        assert answer.status_code == 303, answer.text
        assert words in unquote(answer.headers["set-cookie"])
    assert world.ask("SELECT act FROM pool_acts WHERE sha256 = :digest", digest=digest) == [
        ("label",)
    ]


def test_a_map_that_is_not_kept_is_one_link_away(service: Service) -> None:
    """Of each answered image without one; the link makes it."""
    page = service.client.get("/versions/2/images?every=1&again=1")
    links = re.findall(r'<a href="(/pictures/\w+/map[^"]+)">where it looked</a>', page.text)
    assert links
    made = service.client.get(html.unescape(links[0]))
    assert (made.status_code, made.headers["content-type"]) == (200, "image/jpeg")


def test_a_batch_that_was_refused_is_looked_at_before_it_is_decided_about(
    world: World, service: Service
) -> None:
    """What waits stands there with its labels, and the night that it stopped is no green one."""
    rows = world.ask("SELECT id, sha256, key FROM objects WHERE batch_id = 2 AND label = 'ring'")
    begun = world.ask("SELECT state, reason FROM runs WHERE id = 2")[0]
    world.act(
        worlds.FREE,
        "UPDATE objects SET state = 'pending' WHERE batch_id = 2 AND label = 'ring'",
        "UPDATE batches SET state = 'refused', reason = 'swapped' WHERE id = 2",
        "UPDATE runs SET reason = 'stopped: batch 2 was refused' WHERE id = 2",
    )
    try:
        page = service.client.get("/library/quarantine?batch=2").text
        assert f"What waits</h2>\n<p class=\"quiet\">{len(rows)} of {len(rows)}, some" in page
        assert all(f"/pictures/{digest}?" in page and key in page for _, digest, key in rows)
        for path in ("/", "/runs", "/runs/2"):
            assert '<span class="tag bad">stopped</span>' in service.client.get(path).text
    finally:
        world.act(
            worlds.FREE,
            "UPDATE objects SET state = 'accepted' WHERE batch_id = 2 AND state = 'pending'",
            "UPDATE batches SET state = 'accepted', reason = NULL WHERE id = 2",
            "UPDATE runs SET state = :state, reason = :reason WHERE id = 2",
            state=begun[0], reason=begun[1],
        )  # fmt: skip


def test_runs_link_to_prefect_where_it_runs(
    service: Service, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a variable too; and a page that is looked at starts nothing."""
    address = os.environ["PREFECT_API_URL"].removesuffix("/api")
    monkeypatch.delenv("PREFECT_API_URL")
    for name in [one for one in os.environ if one.startswith("REGRAFT_")]:
        monkeypatch.delenv(name)
    try:
        for folder, known in ((tmp_path / "none", None), (state_dir, address)):
            monkeypatch.setenv("REGRAFT_STATE_DIR", str(folder))
            runs._found.cache_clear()
            assert runs.prefect_address() == known
        assert not (tmp_path / "none").exists()
        assert f'href="{address}/runs/flow-run/' in service.client.get("/runs").text
    finally:
        runs._found.cache_clear()


def test_the_api_is_described_on_a_page_of_ours(service: Service) -> None:
    """Each operation with a line that asks it; nothing comes from elsewhere."""
    page = service.client.get("/docs")
    told = html.unescape(page.text)
    paths = service.client.get("/openapi.json").json()["paths"]
    assert "/v1/predictions" in paths
    for path, methods in paths.items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in told
    assert f"@picture.jpg http://127.0.0.1:{service.port}/v1/predictions" in told
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r'(src|href)="(https?:)?//', page.text)
    assert service.client.get("/redoc").status_code == 404


def test_a_key_of_another_service_keeps_nobody_out(service: Service) -> None:
    """Cookies reach every port of a machine: on the loopback, one that is unknown says nothing."""
    strange = {"Cookie": "regraft_key=regraft_other; regraft_person=Ann", **BROWSER_SAYS}
    assert "You are <a" in service.client.get("/", headers=strange).text
    named = service.client.post("/you", data={"by": "Ann"}, headers=strange)
    assert named.status_code == 303
    assert "Secure" not in named.headers["set-cookie"]
    passed_on = {**strange, "X-Forwarded-For": "10.0.0.9"}
    assert service.client.get("/", headers=passed_on).status_code == 401


def test_a_key_goes_out_encrypted_and_can_be_changed(world: World, browser: Browser) -> None:
    """Where keys are wanted its cookie is Secure; whoever has the wrong one may lay it down."""
    from selenium.webdriver import Keys

    with world.transaction() as session:
        narrow, wide = (keys.make(session, f"{scope} alone", [scope], "a test")
                        for scope in ("predict", "review"))  # fmt: skip
    with serving(Rules(loopback=False), None, DECISIONS) as found:
        signed = found.client.post("/sign-in", data={"key": wide}, headers=BROWSER_SAYS)
        assert signed.status_code == 303
        cookies = signed.headers.get_list("set-cookie")
        assert len(cookies) == 2
        assert all("; Secure" in one for one in cookies)
        for key, status in ((narrow, 403), ("regraft_unknown", 401)):
            refused = found.client.get("/", headers={"Cookie": f"regraft_key={key}"})
            assert refused.status_code == status
            assert 'action="/sign-in"' in refused.text
            assert 'action="/sign-out"' in refused.text
        assert found.client.get("/docs").status_code == 200
        assert found.client.get("/openapi.json").status_code == 200
        assert 'action="/sign-out"' not in found.client.get("/").text
        here = Browser(browser.driver, f"http://127.0.0.1:{found.port}")
        for key, says in ((narrow, "and this page needs"), (wide, "You came with the key")):
            here.open("/")
            here.one("input[name=key]").send_keys(key, Keys.ENTER)
            here.until_it_reads(says)
            assert here.faults() == []


def test_a_form_wants_a_name(service: Service) -> None:
    """Nobody in particular can do nothing; a name that was given once is remembered."""
    with httpx.Client(base_url=service.client.base_url, headers=BROWSER_SAYS) as client:
        said = {"images": "0" * 64, "act": "keep", "why": "hard", "to": "/"}
        assert "say who you are" in client.post("/library/act", data=said).text
        assert "named by" not in client.get("/").text
        named = client.post("/you", data={"by": "Zoë 'x'"})
        assert (named.status_code, named.headers["location"]) == (303, "/you")
        assert "Zoë &#39;x&#39;" in client.get("/").text
        assert "no image of the library" in client.post("/library/act", data=said).text
        elsewhere = client.post("/you", data={"by": "model:7"})
        assert (elsewhere.status_code, "person" in elsewhere.text) == (422, True)


def test_elsewhere_a_key_opens_the_pages(world: World) -> None:
    """No page without one; who may review decides nothing; its name signs what is done."""
    with world.transaction() as session:
        reviewer = keys.make(session, "Rita", ["review"], "a test")
    with serving(Rules(loopback=False, plain_http=True), None, DECISIONS) as found:
        base = f"http://127.0.0.1:{found.port}"
        with httpx.Client(base_url=base, headers=BROWSER_SAYS) as client:
            closed = client.get("/library?sort=name")
            assert (closed.status_code, "Sign in" in closed.text) == (401, True)
            assert 'name="to" value="/library?sort=name"' in closed.text
            assert client.post("/sign-in", data={"key": "regraft_no"}).status_code == 401
            opened = client.post("/sign-in", data={"key": reviewer, "to": "//evil.example"})
            assert (opened.status_code, opened.headers["location"]) == (303, "/")
            assert "HttpOnly" in opened.headers["set-cookie"]
            assert "Rita" in client.get("/").text
            for path in ("/versions/1", "/library/quarantine?batch=2"):
                told = client.get(path).text
                assert ("scope <code>admin</code>" in told, 'name="act"' in told) == (True, False)
            refused = client.post(
                "/versions/1/decide", data={"act": "reject", "why": "no", "by": "Ann"}
            )
            assert refused.status_code == 403
            digest = world.ask("SELECT sha256 FROM images WHERE withdrawn_at IS NULL LIMIT 1")[0][0]
            client.post("/library/act", data={"images": digest, "act": "keep", "why": "hard",
                                              "to": "/", "by": "Ann"})  # fmt: skip
            assert world.ask("SELECT done_by FROM image_acts ORDER BY id DESC LIMIT 1") == [
                ("Rita",)
            ]
            client.post("/sign-out")
            assert client.get("/").status_code == 401


def test_no_page_carries_a_style_or_a_script_of_its_own(service: Service) -> None:
    """The policy forbids them, so that markup in a name could do nothing even if it got in."""
    for path in PAGES:
        page = service.client.get(path)
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert not re.search(r"<style|<script(?! src)| style=| on[a-z]+=(?!.*&#34;)", page.text)
