"""The live page: its data, what it may do, and what people see in a browser."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from live_support import Client, paper

from miriam.trace import Recording

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPORT = {
    "solo_samples": 143.0, "solo_p99_us": 2710.0, "width_sms": 96.4, "slowdown_p99": 1.043, "held": 1.0,
    "paused_holds": 1.0,
}  # fmt: skip
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    app, _ = paper(report=REPORT)
    with Client(app) as found:
        yield found


def test_the_data_is_what_the_service_and_the_recorder_say(client: Client) -> None:
    found = client.get("/live.json").json()
    detector, caption, depth = found["tasks"]
    assert (detector["name"], detector["level_name"], caption["name"], caption["level"]) == (
        "detector", "critical", "caption", 0
    )  # fmt: skip
    assert (depth["state"], depth["reason"]) == ("UNAVAILABLE", "no such file")
    assert detector["slowdown_p99"] == pytest.approx(detector["p99_us"] / detector["alone_p99_us"])
    assert detector["alone_p99_us"] == pytest.approx(2600, rel=0.06)
    assert len(detector["curve_us"]) == 80
    assert detector["curve_us"] == sorted(detector["curve_us"])
    assert found["report"] == REPORT
    assert (found["device"], found["policy"], found["ready"]) == ("cpu", "contract:1.1", True)
    assert [lane["name"] for lane in found["lanes"]] == ["critical", "normal"]
    assert all(row[4] <= row[5] <= row[6] <= found["now_us"] for row in found["requests"])
    assert any(row[8] for row in found["requests"] if row[1] == "caption")
    assert not any(row[8] for row in found["requests"] if row[1] == "detector")


def test_only_news_are_sent(client: Client) -> None:
    every, news = client.get("/live.json").json(), client.get("/live.json?since=3500000").json()
    assert 0 < len(news["requests"]) < len(every["requests"]) / 4
    rows = {row[0]: row for row in every["requests"]}
    assert all(rows[row[0]] == row for row in news["requests"])  # pauses too, by whom they were and however long ago
    assert news["since_us"] is None


def test_traces_are_given_whole_for_perfetto_and_in_words(client: Client) -> None:
    whole = client.get("/v2/trace").json()
    recording = Recording.from_json(whole)
    number = recording.requests[5].number
    story = client.get(f"/v2/trace/{number}").json()
    assert story["number"] == number
    assert sum(part["length_us"] for part in story["parts"]) == pytest.approx(story["latency_us"])
    answer = client.get("/v2/trace?form=perfetto")
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.json()["recording"]["requests"] == whole["requests"]
    assert answer.json()["traceEvents"]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/live.json?since=yesterday", 400, "since is no number"),
        ("/live.json?since=nan", 400, "since is no number"),
        ("/v2/trace?form=pdf", 400, "no form 'pdf'"),
        ("/v2/trace/999999", 404, "is not in this trace"),
        ("/v2/trace/" + 5000 * "9", 404, "is no number of a request"),
        ("/v2/trace/-1", 404, "is no number of a request"),
    ],
)
def test_what_cannot_be_given_is_refused_with_a_reason(client: Client, path: str, status: int, says: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_the_page_may_do_nothing_but_what_is_its_own(client: Client) -> None:
    answer = client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", policy["script-src"])
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href|action)=[\"']?(?!data:|/v2/)[^\"' >]*//", answer.text)
    assert "{{" not in answer.text


# In a browser

Look = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as play:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        found = play.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@pytest.fixture
def look(browser: Any, client: Client) -> Iterator[Look]:
    """Opens the page at a width; what it asks for is answered without a network, and noted."""
    contexts: list[Any] = []
    complaints: list[str] = []
    asked: list[str] = []

    def open_page(server: Client = client, width: int = 1280, scheme: str = "light", clock: bool = False) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)

        def answer(route: Any) -> None:
            url = route.request.url
            asked.append(url)
            if getattr(page, "dead", False):
                route.abort()
                return
            got = server.get(url.removeprefix("http://miriam.test"))
            headers = {key: value for key, value in got.headers.items() if key != "content-length"}
            route.fulfill(status=got.status_code, headers=headers, body=got.content)

        context.route("**/*", answer)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.asked, page.complaints = asked, complaints
        page.goto("http://miriam.test/")
        page.wait_for_selector("#state.on")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not [url for url in asked if not url.startswith("http://miriam.test/")]
    assert not [said for said in complaints if "ERR_FAILED" not in said]


def painted(page: Any) -> int:
    """How many colours the lanes show."""
    found: int = page.locator("#lanes").evaluate(
        """c => { const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, s = new Set();
                  for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 250) s.add([d[i], d[i + 1], d[i + 2]].join());
                  return s.size; }"""
    )
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everything_is_there_at_any_width_and_in_any_light(look: Look, width: int, scheme: str) -> None:
    page = look(width=width, scheme=scheme)
    assert page.locator("body").evaluate("b => b.scrollWidth") <= width
    rows = page.locator("#tasks tr").all_inner_texts()
    assert "detector" in rows[0]
    assert "critical" in rows[0]
    assert "no such file" in rows[2]
    assert page.locator("#latency svg polygon").count() == 2
    assert page.locator("#latency svg polyline.ghost").count() >= 1
    assert page.locator("#contract").inner_text().startswith("1.04×")
    assert "held" in page.locator("#contract").inner_text()
    assert page.locator("#decisions tr").count() == 12
    assert re.match(r"detector answers within \d+\.\d\d× of what it takes alone", page.locator("#lead").inner_text())
    assert "Times are on paper." in page.locator("#notes").inner_text()
    assert painted(page) > 3
    back, ink = (
        page.locator("body").evaluate(f"b => getComputedStyle(b).{what}") for what in ("backgroundColor", "color")
    )
    dark, light = sorted((back, ink), key=lambda rgb: sum(map(int, re.findall(r"\d+", rgb)[:3])))
    assert back == (dark if scheme == "dark" else light)


def test_a_request_that_is_selected_is_explained(look: Look) -> None:
    page = look()
    first = page.locator("#slow button").first
    name = first.locator(".name").inner_text()
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#story:not([hidden])")
    assert page.locator("#h-story").inner_text().startswith(name)
    assert page.locator("#story dt").all_inner_texts() == ["waited", "paused", "ran"]
    assert "alone" in page.locator("#story-bars").inner_text()
    page.get_by_role("button", name="Close").click()
    assert page.locator("#story").is_hidden()


def test_a_bar_of_a_lane_is_explained_too(look: Look) -> None:
    page = look()
    page.get_by_role("button", name="1 s", exact=True).click()
    box = page.locator("#lanes").bounding_box()
    for share in range(100):  # somewhere in the lane of the critical task a request ran
        page.mouse.move(box["x"] + box["width"] * share / 100, box["y"] + 36)
        if page.locator("#tip").is_visible():
            break
    assert re.match(r"detector #\d+\ncritical, answered, .* ms\nwaited", page.locator("#tip").inner_text())
    number = re.findall(r"#(\d+)", page.locator("#tip").inner_text())[0]
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#story:not([hidden])")
    assert f"detector #{number}" in page.locator("#h-story").inner_text()


def test_the_length_of_time_can_be_chosen(look: Look) -> None:
    page = look()
    counts = []
    for seconds in ("1 s", "5 s"):
        button = page.get_by_role("button", name=seconds, exact=True)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        counts.append(
            int(re.findall(r"([\d,]+) requests", page.locator("#lanes-sub").inner_text())[0].replace(",", ""))
        )
    assert 0 < counts[0] < counts[1]


def test_it_goes_on_asking_until_it_is_paused(look: Look) -> None:
    page = look(clock=True)
    with page.expect_request("**/live.json?since=*") as news:
        page.clock.run_for(1100)
    assert float(news.value.url.partition("=")[2]) > 3e6
    page.get_by_role("button", name="Pause").click()
    assert page.locator("#state").inner_text() == "paused"
    asked = len(page.asked)
    page.clock.run_for(10_000)
    assert len(page.asked) == asked
    page.get_by_role("button", name="Go on").click()
    with page.expect_request("**/live.json?since=*"):
        page.clock.run_for(1100)


def test_a_server_that_is_gone_is_said_to_be(look: Look) -> None:
    page = look(clock=True)
    page.dead = True
    page.clock.run_for(1100)
    page.wait_for_selector("#state.off")
    assert page.locator("#state").inner_text().startswith("no answer")
    assert page.locator("#tasks tr").count() == 3
    page.dead = False
    page.clock.run_for(1100)
    page.wait_for_selector("#state.on")


def test_names_are_text_whatever_they_say(look: Look) -> None:
    app, _ = paper("resident", caption=EVIL)
    with Client(app) as server:
        page = look(server)
        assert EVIL in page.locator("#tasks").inner_text()
        assert page.locator("img").count() == 0
        assert "Policy resident" in page.locator("#h-contract").inner_text()


def test_an_idle_server_shows_an_empty_page(look: Look) -> None:
    app, _ = paper("resident", seconds=0)
    with Client(app) as server:
        page = look(server)
        assert "Nothing has been answered yet" in page.locator("#latency").inner_text()
        assert "has not had to decide" in page.locator("#decisions").inner_text()
        assert "nothing ran" in page.locator("#lanes").get_attribute("aria-label")


def test_every_button_and_chart_has_a_name(look: Look) -> None:
    page = look()
    named = page.locator("button, [role=img], svg[role=img]").evaluate_all(
        "all => all.map(one => (one.getAttribute('aria-label') || one.textContent).trim())"
    )
    assert len(named) > 8
    assert all(named)
    assert json.dumps(named)
