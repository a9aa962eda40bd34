"""The page in a real browser: drag, click, keys, a dropped picture, a narrow window, the dark, and one pane."""

import contextlib
import json
import shutil
import socket
import threading
import time

import pytest
import uvicorn

from serve.application import application
from serve.service import Service
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.slots import Slots
from tests.reference import small
from tests.serve.conftest import png

pytestmark = pytest.mark.slow  # starts a browser

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
SECONDS = 300
REST = "20 of 20 copies"
NOTHING = "\N{EN DASH}"


@contextlib.contextmanager
def served(app):
    """The address of an application on a free port of loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def service(predictor):
    return Service(predictor, "small")


@pytest.fixture(scope="module")
def address(service):
    with served(application(service)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a user does, and sees."""

    def __init__(self, browser, address, *, width=1200, height=900, dark=False):
        self.browser, self.address = browser, address
        self.resize(width, height)
        colour = "dark" if dark else "light"
        media = {"features": [{"name": "prefers-color-scheme", "value": colour}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(address)
        self.wait(REST)

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def wait(self, text):
        """Waits until the status line holds a text."""
        end = time.monotonic() + SECONDS
        while text not in (status := self.run("document.getElementById('status').textContent")):
            assert time.monotonic() < end, f"waited for {text!r}, found {status!r}"
            time.sleep(0.05)

    def settled(self):
        """Waits until the newest prompt is answered with all copies."""
        end = time.monotonic() + SECONDS
        while not self.run("!state.busy && state.answer && state.answer.count === JITTERS && !gesture"):
            assert time.monotonic() < end
            time.sleep(0.05)

    @property
    def canvases(self):
        return self.browser.find_elements("css selector", "canvas[tabindex]")

    @property
    def values(self):
        return [one.text for one in self.browser.find_elements("css selector", "dd")]

    def drag(self, canvas, start, end, steps=5):
        """Drags from and to shares of a canvas."""
        from selenium.webdriver.common.action_chains import ActionChains

        size = canvas.size
        places = [((x - 0.5) * size["width"], (y - 0.5) * size["height"]) for x, y in (start, end)]
        actions = ActionChains(self.browser, duration=20).move_to_element_with_offset(canvas, *map(int, places[0]))
        actions.click_and_hold()
        for step in range(1, steps + 1):
            x, y = (a + step / steps * (b - a) for a, b in zip(*places, strict=True))
            actions.move_to_element_with_offset(canvas, int(x), int(y))
        actions.release().perform()

    def press(self, canvas, *keys):
        canvas.send_keys(*keys)


@pytest.fixture
def page(browser, address):
    browser.get_log("browser")  # what earlier pages have left
    page = Page(browser, address)
    yield page
    severe = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and entry["source"] != "network"
    ]
    assert severe == []


def shares(page):
    """The box as shares of the picture."""
    left, top, right, bottom = page.run("upright(state.box)")
    width, height = page.run("[state.bitmap.width, state.bitmap.height]")
    return [left / width, top / height, right / width, bottom / height]


def test_a_dragged_box_is_measured_on_both_sides(page):
    page.run("(clearPrompt(), 1)")
    assert page.values == [NOTHING] * 4
    page.drag(page.canvases[1], (0.2, 0.3), (0.7, 0.8))
    page.settled()
    assert shares(page) == pytest.approx([0.2, 0.3, 0.7, 0.8], abs=0.02)
    assert all(0 <= float(value) <= 2 for value in page.values)
    assert page.run("state.answer.boxes.length") == 20
    assert page.run("state.answer.systems.map((one) => one.system)") == ["plain", "stable"]


def test_the_shown_values_are_those_of_the_api(page):
    body = page.run("JSON.stringify({picture: state.picture, ...prompt(), jitters: 20, noise: .4, strength: 1})")
    answer = page.browser.execute_async_script(
        "const done = arguments[1]; ask('/v1/compare', JSON.parse(arguments[0])).then(done, done)", body
    )
    shown = [f"{one[name]:.2f}" for one in answer["systems"] for name in ("stability", "predicted_iou")]
    assert page.values == shown
    heat = page.run("[...Uint8Array.from(atob(state.answer.systems[1].heat), (c) => c.charCodeAt(0))]")
    assert len(heat) == answer["heat_width"] * answer["heat_height"]
    assert max(heat) <= 21


def test_inside_the_box_it_moves_and_at_its_border_it_is_resized(page):
    page.run("(clearPrompt(), 1)")
    canvas = page.canvases[0]
    page.drag(canvas, (0.2, 0.2), (0.6, 0.6))
    page.drag(canvas, (0.4, 0.4), (0.5, 0.45))
    assert shares(page) == pytest.approx([0.3, 0.25, 0.7, 0.65], abs=0.03)
    page.drag(canvas, (0.7, 0.45), (0.9, 0.45))
    assert shares(page) == pytest.approx([0.3, 0.25, 0.9, 0.65], abs=0.03)
    page.drag(canvas, (0.5, 0.4), (0.99, 0.99))  # stops at the picture's border, and keeps its size
    assert shares(page) == pytest.approx([0.4, 0.6, 1, 1], abs=0.03)
    page.settled()


def test_a_click_replaces_the_box_and_further_ones_add(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    canvas = page.canvases[0]
    ActionChains(page.browser).move_to_element(canvas).click().perform()
    page.settled()
    assert page.run("state.box") is None
    assert page.run("state.labels") == [1]
    ActionChains(page.browser).key_down(Keys.SHIFT).move_to_element_with_offset(canvas, 30, 30).click().key_up(
        Keys.SHIFT
    ).key_down(Keys.ALT).move_to_element_with_offset(canvas, -60, 40).click().key_up(Keys.ALT).perform()
    page.settled()
    assert page.run("state.labels") == [1, 1, 0]
    assert page.run("state.answer.points.length") == 60


def test_the_keyboard_does_all_that_the_pointer_does(page):
    from selenium.webdriver.common.keys import Keys

    canvas = page.canvases[0]
    page.press(canvas, Keys.ESCAPE)
    assert page.run("hasPrompt()") is False
    page.press(canvas, Keys.ENTER)
    assert shares(page) == pytest.approx([0.25, 0.25, 0.75, 0.75])
    page.press(canvas, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    left, _, right, _ = shares(page)
    assert left > 0.26
    assert right - left == pytest.approx(0.5)
    page.press(canvas, Keys.SHIFT + Keys.ARROW_DOWN)
    assert shares(page)[3] > 0.755
    page.settled()
    assert NOTHING not in page.values
    before = page.run("state.name")
    page.press(canvas, Keys.NULL, "n")
    page.wait("Drag a box")
    assert page.run("state.name") != before


def test_a_picture_is_dropped_and_its_faults_are_told(page):
    drop = """
        const bytes = Uint8Array.from(arguments[0]), transfer = new DataTransfer();
        transfer.items.add(new File([bytes], arguments[1], {type: "image/png"}));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
    """
    page.browser.execute_script(drop, list(png(9, (40, 60))[0]), "mine.png")
    page.wait("Drag a box")
    assert page.run("[state.name, state.bitmap.width, state.bitmap.height]") == ["mine.png", 60, 40]
    page.drag(page.canvases[0], (0.2, 0.3), (0.7, 0.8))
    page.settled()
    page.browser.execute_script(drop, [1, 2, 3], "broken.png")
    page.wait("broken.png: your browser cannot show this picture")


def test_of_two_pictures_the_one_that_was_chosen_last_stays(page):
    page.browser.execute_script(
        """
        const real = window.createImageBitmap;
        window.createImageBitmap = async (file) => {
            if (file.name === "slow.png") await new Promise((done) => setTimeout(done, 700));
            return real(file);
        };
        const bytes = Uint8Array.from(arguments[0]);
        usePicture(new File([bytes], "slow.png"), "slow.png");
        usePicture(new File([bytes], "last.png"), "last.png");
    """,
        list(png(9, (40, 60))[0]),
    )
    page.wait("Drag a box")
    time.sleep(1)
    assert page.run("state.name") == "last.png"


def test_what_is_copied_runs_and_gives_the_mask(page, predictor, monkeypatch, capsys):
    page.settled()
    monkeypatch.setattr("stablesam_jax.build.load_model", lambda *_, **__: small.stable_nano())
    names = {}
    exec(page.run("asPython()"), names)
    box = page.run("upright(state.box).map((value) => Math.round(value * 10) / 10)")
    expected = predictor.predict_stable(box=box, picture=predictor.encode(ASSETS / "im/grace_hopper.jpg"))
    found = names["found"].mask
    assert (found != expected.mask).mean() < 1e-4  # of another batch size
    assert capsys.readouterr().out.startswith(f"{found.sum()} ")


def test_a_picture_that_the_server_has_dropped_is_sent_again(page, service):
    page.settled()
    service.pictures._kept.clear()
    page.run("(state.answer = null, changed(), 1)")
    page.settled()
    assert len(service.pictures) == 1


def test_320_pixels_are_enough_and_the_dark_is_dark(browser, address):
    page = Page(browser, address, width=320, height=700, dark=True)
    assert page.run("document.documentElement.scrollWidth") <= 320
    first, second = (canvas.rect for canvas in page.canvases)
    assert second["y"] > first["y"] + first["height"]
    assert first["width"] > 200
    red, green, blue = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 40
    light = page.run("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
    assert min(light) > 200


def test_a_model_without_a_plugin_has_one_pane(browser):
    service = Service(Predictor(*small.nano(), slots=Slots((1, 4))), "plain")
    with served(application(service)) as address:
        page = Page(browser, address)
        assert len(page.canvases) == 1
        assert page.run("getComputedStyle(document.getElementById('strength-label')).display") == "none"
        assert len(page.values) == 2
        browser.get("about:blank")


@pytest.mark.parametrize(
    ("token", "spelled"), [("correct horse", "correct%20horse"), ("q+Zk3/9&w==", "q+Zk3/9&w=="), ("50%", "50%")]
)
def test_a_token_is_asked_for_and_taken_from_the_address(browser, predictor, token, spelled):
    with served(application(Service(predictor, "small"), token=token)) as address:
        browser.get(address)
        end = time.monotonic() + SECONDS
        while "wants a token" not in browser.find_element("id", "status").text:
            assert time.monotonic() < end
        Page(browser, f"{address}/#token={spelled}")
        assert "token" not in browser.current_url
        browser.get("about:blank")


def test_nothing_is_asked_of_another_host(browser, address):
    browser.get_log("performance")
    Page(browser, address)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 5
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)


def test_a_notebook_of_this_machine_may_show_it_in_a_cell_and_another_site_may_not(browser, address):
    async def notebook(scope, receive, send):
        content = {"type": "http.response.body", "body": f'<iframe src="{address}/"></iframe>'.encode()}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send(content)

    with served(notebook) as cell:
        for host, shown in (("127.0.0.1", True), ("localhost", True), ("[::ffff:127.0.0.1]", False)):
            browser.get(cell.replace("127.0.0.1", host))
            browser.switch_to.frame(0)
            assert bool(browser.find_elements("css selector", "canvas[tabindex]")) is shown
            browser.switch_to.default_content()


def test_the_worst_box_is_found_and_told(page):
    page.settled()
    before = shares(page)
    page.browser.find_elements("css selector", ".head button")[1].click()
    page.wait("Worst box of SAM with the plugin: the IoU with the mask of your box falls to")
    assert shares(page) != pytest.approx(before, abs=1e-3)
    assert all(0 <= share <= 1 for share in shares(page))
    page.settled()
