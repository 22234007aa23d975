"""The console's page in headless Chromium: the one of the machine, else the one that `playwright install chromium` has left.

Without any the tests of this file are skipped; what the page asks for and does is tested over HTTP in test_console.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from console_trial import TOKEN, begin, console, look, users_come
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from rollout_plans import B, follow, report

from orchestration.rollout import accounts, lease, moves
from serving import reports
from serving.console import routes
from serving.plan_store import Author, read_plan
from serving.reports import write_report

PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = os.environ.get("DEGRE_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        if found is None and not own.exists():
            reason = (
                "NO CHROMIUM: the console's page is not tested. Install one (`apt install chromium`, or "
                "`.venv/bin/playwright install chromium`), or name it by DEGRE_TEST_CHROMIUM"
            )
            warnings.warn(reason, stacklevel=1)  # told at the end of a quiet run, too
            pytest.skip(reason)
        # No sandbox inside a container, where there is no user namespace for it; only our own page is loaded.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        made = playwright.chromium.launch(executable_path=found, args=arguments)
        yield made
        made.close()


@pytest.fixture
def client(clean_redis: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    monkeypatch.setattr(accounts, "SETTLE_S", -1.0)
    monkeypatch.setattr(routes, "FRESH_S", 0.0)
    # What was said once by hand must not expire while a busy machine draws the page.
    monkeypatch.setattr(reports, "ALIVE_MS", 60_000)
    monkeypatch.setattr(lease, "LEASE_MS", 60_000)
    with redis.Redis.from_url(clean_redis) as made:
        yield made


@pytest.fixture
def opened(browser: Browser, clean_redis: str, client: redis.Redis) -> Iterator[Open]:  # noqa: ARG001 - empties Redis first
    """Open the console, logged in; at the end nothing was asked of anybody else, and the page had no complaint."""
    asked: list[str] = []
    complaints: list[str] = []
    contexts: list[BrowserContext] = []
    with console(clean_redis) as base:

        def open_page(log_in: bool = True, **given: Any) -> Page:
            context = browser.new_context(base_url=base, **{"viewport": DESK} | given)
            contexts.append(context)
            context.on("request", lambda request: asked.append(request.url))
            page = context.new_page()
            page.set_default_timeout(10_000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.goto("/console")
            if log_in:
                page.get_by_label("Token").fill(TOKEN)
                page.get_by_role("button", name="Log in").click()
                expect(page.get_by_role("status")).to_have_text(re.compile("live|away"))
            return page

        yield open_page
        for context in contexts:
            context.close()
    assert asked
    assert all(url.startswith(f"{base}/console") for url in asked), asked
    # The browser itself reports refusals, which are among what is tested.
    assert not [text for text in complaints if "responded with a status of 4" not in text], complaints


def test_a_wrong_token_is_refused_and_a_right_one_opens(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "WRONG_S", 0.0)
    page = opened(log_in=False)
    expect(page).to_have_url(re.compile("/console/login$"))
    page.keyboard.type("wrong")  # the field has the focus
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is none of the configured tokens.")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator("#notices")).to_contain_text("There is no rollout plan yet")
    expect(page.get_by_role("button", name="Abort")).to_be_hidden()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(re.compile("/console/login$"))
    page.goto("/console")
    expect(page).to_have_url(re.compile("/console/login$"))


def test_it_shows_what_happens_and_aborts(opened: Open, client: redis.Redis) -> None:
    plan = begin(client, 0)
    page = opened()
    expect(page.locator("[aria-current=step]")).to_have_text("shadow")
    expect(page.locator("#notices")).to_contain_text("No controller is running")
    expect(page.locator("#history li")).to_have_count(2)
    # Without a reload: the next stage, its users, its figures, a replica that refuses.
    plan = moves.advance(client, Author(by="ann", why="looks well"))
    follow(client, plan)
    users_come(client, "half", range(200))
    look(client)
    write_report(client, report(plan, "r2", challenger=None, refused=B, refused_because="<b>hash</b>"))
    expect(page.locator("[aria-current=step]")).to_have_text("half")
    expect(page.locator("#notices")).not_to_contain_text("No controller is running")
    expect(page.locator("#traffic")).to_contain_text("100")
    expect(page.locator("#primary .figure")).to_have_text(re.compile(r"^\+\d+\.\d %$"))
    expect(page.locator("#primary svg .band")).to_have_count(1)
    expect(page.locator("#guardrails h3")).to_have_text(
        ["Fallback answers", "Model errors", "Slow answers, over 50 ms"]
    )
    expect(page.locator("#replicas tbody tr")).to_have_count(2)
    expect(page.locator("#replicas")).to_contain_text("✗ refuses")
    expect(page.locator("#notices")).to_contain_text("<b>hash</b>")  # as text
    expect(page.locator("#history li").first).to_contain_text("looks well")
    abort = page.get_by_role("button", name="Abort …")
    abort.click()
    expect(page.get_by_label("Your name")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    abort.click()
    confirm = page.get_by_role("button", name="Abort the experiment")
    confirm.click()  # the browser wants name and reason
    assert read_plan(client) == plan
    page.get_by_label("Your name").fill("bob")
    page.get_by_label("Reason").fill("clicks look odd")
    confirm.click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#about")).to_contain_text("The last one was aborted at half")
    expect(abort).to_be_hidden()
    after = read_plan(client)
    assert after is not None
    assert after.change is not None
    assert after.experiment is None
    assert (after.change.by, after.change.why) == ("bob (console)", "clicks look odd")


def test_an_abort_that_is_refused_says_so(opened: Open, client: redis.Redis) -> None:
    begin(client, 1)
    page = opened()
    page.get_by_role("button", name="Abort …").click()
    moves.promote(client, Author())
    page.get_by_label("Your name").fill("bob")
    page.get_by_label("Reason").fill("too late")
    with page.expect_response("**/console/abort") as answered:
        page.get_by_role("button", name="Abort the experiment").click()
    assert answered.value.status == 409
    expect(page.get_by_role("alert")).to_contain_text("Not aborted: no experiment is under way")
    forged = page.evaluate("fetch('/console/abort', {method: 'POST', body: '{}'}).then((answer) => answer.status)")
    assert forged == 403


def test_redis_being_away_is_said_and_without_tokens_there_is_no_login(browser: Browser) -> None:
    with console("redis://127.0.0.1:1", tokens=()) as base, browser.new_context(base_url=base) as context:
        page = context.new_page()
        page.goto("/console")
        expect(page.get_by_role("status")).to_have_text("Redis is away")
        expect(page.locator("#notices")).to_contain_text("Redis does not answer")
        expect(page.locator("#about")).to_have_text("Nothing can be said while Redis is away.")
        expect(page.get_by_text("no tokens are configured")).to_be_visible()
        expect(page.get_by_role("button")).to_have_count(0)  # no log out, and nothing to abort


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_either_light(opened: Open, client: redis.Redis, scheme: str) -> None:
    plan = begin(client, 1)
    users_come(client, "half", range(120))
    look(client)
    write_report(client, report(plan, "a-host-with-a-rather-long-name.internal.example-48213-a8f3c2"))
    page = opened(viewport=PHONE, color_scheme=scheme)
    expect(page.locator("#primary svg .line")).to_have_count(1)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) <= PHONE["width"]
    page.get_by_role("button", name="Abort …").click()
    assert page.evaluate(width) <= PHONE["width"]
    box = page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    red, green, blue = colour(page, "backgroundColor")
    ink = colour(page, "color")
    assert (max(red, green, blue) < 60, min(ink) > 200) == ((True, True) if scheme == "dark" else (False, False))
    # Everything one can act on has a name.
    fields = "[...document.querySelectorAll('button, input:not([type=hidden]), textarea')]"
    nameless = f"{fields}.filter((e) => !(e.labels?.length || e.textContent.trim()))"
    assert page.evaluate(f"{nameless}.length") == 0


def colour(page: Page, name: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))]
