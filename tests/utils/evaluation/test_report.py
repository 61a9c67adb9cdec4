"""The HTML page: what it contains, and, in a headless Chromium, what it does when a user operates it."""

from __future__ import annotations

import base64
import http.client
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from utils.evaluation import report
from utils.evaluation.contact_sheet import PageRow
from utils.evaluation.metrics import METRIC_TITLES, TABLE_METRICS
from utils.evaluation.report import both_ends_first, compress, mean_ranks, write_report
from utils.runtime.errors import UserError

HEIGHT, WIDTH = 60, 80
# The gray of each quadrant, from the upper left on, by column. All differ, so a pixel tells what is shown where.
QUADRANTS = {"A": (10, 30, 50, 70), "B": (90, 110, 130, 150), "fused": (170, 190, 210, 230)}
HOSTILE = (
    '<img src=x onerror="document.title=1">',
    "\"'></bdi></script><script>document.title=2</script>",
    "$title ü 图",
)


def quadrants(grays: tuple[int, int, int, int]) -> np.ndarray:
    return np.kron(np.array(grays, np.float64).reshape(2, 2), np.ones((HEIGHT // 2, WIDTH // 2)))


def row(name: str, *values: float) -> PageRow:
    images = {column: quadrants(grays) for column, grays in QUADRANTS.items()}
    return PageRow(name, images, dict(zip(TABLE_METRICS, values, strict=True)))


# Mean ranks by hand. Ranks in EN, in SD, where the last pair has no value, and in SF: p1 5, 1, 3; p2 4, 2, 4;
# p10 3, 3, 1; p9 2, 4, 2; the last 1, 5, 5. In the three others all share rank 3, which makes 9. So the means are
# p1 18/6 = 3, p2 19/6 = 3.17, p10 16/6 = 2.67, p9 17/6 = 2.83, the last 20/6 = 3.33.
ROWS = [
    row("p1", 1, 50, 3, 1, 1, 1),
    row("p2", 2, 40, 2, 1, 1, 1),
    row("p10", 3, 30, 5, 1, 1, 1),
    row("p9", 4, 20, 4, 1, 1, 1),
    row(HOSTILE[0], 5, math.nan, 1, 1, 1, 1),
]
BEST_FIRST = ["p10", "p9", "p1", "p2", HOSTILE[0]]
# Two of the best, two of the worst, the middle one.
BOTH_ENDS_FIRST = ["p10", "p9", HOSTILE[0], "p2", "p1"]


class Page(HTMLParser):
    """The elements of a document: tags with their attributes, and the texts within each kind of tag."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass


def page_of(rows: list[PageRow], folder: Path, title: str = "title") -> str:
    path = folder / "report.html"
    write_report(rows, title, path)
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_itself(tmp_path):
    document = page_of(ROWS, tmp_path)
    page = Page(document)
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"href", "srcset", "action", "data", "poster", "background"}
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == len(ROWS) * len(QUADRANTS)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    without_images = re.sub(r'src="data:[^"]*"', "", document)
    assert not re.search(r"\w+://|//\w|@import|url\(", without_images)
    # and the browser is told so
    policy = next(
        attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes
    )
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_and_titles_are_text_whatever_they_hold(tmp_path):
    rows = [row(name, *range(6)) for name in (*HOSTILE, "half a \ud83d pair, from a file name that is no text")]
    harmless = [row(str(index), *range(6)) for index in range(len(rows))]
    page = Page(page_of(rows, tmp_path, HOSTILE[1]))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(page_of(harmless, tmp_path)).tags]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.texts["title"] == [HOSTILE[1]]
    assert set(HOSTILE) < set(page.texts["bdi"])


def test_ranks_are_averaged_over_the_metrics():
    # EN: 3 > 2 = 2 > 1 has the ranks 1, 2.5, 2.5, 4. SD, where the second has none: 3, 4, 2, 1.
    metrics = [
        {"EN": 2, "SD": 5},
        {"EN": 2, "SD": math.nan},
        {"EN": 3, "SD": 7},
        {"EN": 1, "SD": 9},
    ]
    assert mean_ranks(metrics) == [2.75, 3.25, 1.5, 2.5]


@pytest.mark.parametrize(
    ("ranks", "order", "ends"),
    [
        ([1.0], [0], ["only"]),
        ([2.0, 1.0], [1, 0], ["best", "worst"]),
        ([2.0, 1.0, 3.0], [1, 2, 0], ["best", "worst", ""]),
        # three of each at most, and equal ranks in their own order
        ([8, 7, 6, 5, 4, 3, 2, 2], [6, 7, 5, 0, 1, 2, 4, 3], [*["best"] * 3, *["worst"] * 3, "", ""]),
    ],
)
def test_both_ends_come_first(ranks, order, ends):
    assert both_ends_first(ranks) == list(zip(order, [end.replace("only", "") for end in ends], strict=True))


def test_images_are_embedded_without_loss_where_there_is_room():
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (20, 30)).astype(np.float64)
    rgb = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    pictures = compress([gray, rgb], 100_000)
    assert (pictures.format, pictures.width, pictures.height) == ("PNG", 30, 20)
    first, second = (cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in pictures.files)
    assert (first == gray).all()
    assert (second[..., ::-1] == rgb).all()


def test_images_shrink_until_they_fit():
    # Noise does not compress: 8 bits a pixel as PNG, some 6 as JPEG.
    noise = np.random.default_rng(0).integers(0, 256, (480, 640)).astype(np.float64)
    sizes = []
    for share in (900_000, 800_000, 200_000, 1000):
        pictures = compress([noise] * 3, share)
        sizes.append((pictures.format, pictures.width, pictures.height))
        image = cv2.imdecode(np.frombuffer(pictures.files[2], np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.shape == (pictures.height, pictures.width)
        assert sum(map(len, pictures.files)) <= share or pictures.width < 160 / 0.75
    assert sizes[:2] == [("JPEG", 640, 480)] * 2
    # 640 * 0.75^2 = 360; 640 * 0.75^4 = 202.5, once more would be below the least side of 160
    assert sizes[2:] == [("JPEG", 360, 270), ("JPEG", 202, 152)]


def test_the_page_says_what_is_embedded(tmp_path, monkeypatch):
    page = Page(page_of(ROWS, tmp_path))
    assert report.LOSSLESS in page.texts["span"]
    monkeypatch.setattr(report, "IMAGE_BYTES", 100)
    page = Page(page_of(ROWS, tmp_path))
    assert report.REDUCED in page.texts["span"]
    assert str(len(ROWS)) in page.texts["b"]
    embedded = {attributes["data-embedded"] for tag, attributes in page.tags if tag == "tr" and attributes}
    # 80x60 is below the least side already
    assert embedded == {"JPEG 80x60"}


def test_every_text_has_a_translation(tmp_path, monkeypatch):
    pages = [Page(page_of([*ROWS, row("p11", *range(6))], tmp_path))]
    monkeypatch.setattr(report, "IMAGE_BYTES", 100)
    coloured = [PageRow(r.name, {**r.images, "colour": np.zeros((HEIGHT, WIDTH, 3))}, r.metrics) for r in ROWS]
    pages.append(Page(page_of(coloured, tmp_path)))
    used = {attributes["data-text"] for page in pages for _, attributes in page.tags if "data-text" in attributes}
    assert used == set(json.loads((report.PARTS / "zh.json").read_text(encoding="utf-8")))
    assert tuple(METRIC_TITLES) == TABLE_METRICS


def test_a_page_that_cannot_be_written_is_an_error_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"report\.html: cannot be written"):
        write_report(ROWS, "title", tmp_path / "file" / "report.html")


# --- In a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's reference, W3C WebDriver, section 12
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "End": "\ue010", "Home": "\ue011", "Left": "\ue012", "Right": "\ue014"}


class Browser:
    """The few commands of the W3C WebDriver protocol that these tests need."""

    def __init__(self, port: int, profile: Path) -> None:
        self.port = port
        self.session = ""
        options = {"binary": shutil.which("chromium"), "args": [*CHROMIUM, f"--user-data-dir={profile}"]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.session = f"/session/{session['sessionId']}"

    def call(self, method: str, command: str, body: dict | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = None if method == "GET" else json.dumps(body or {})
        try:
            connection.request(method, self.session + command, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            value = json.load(answer)["value"]
        finally:
            connection.close()
        assert answer.status == 200, value
        return value

    def devtools(self, command: str, **parameters) -> dict:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, path: Path, width: int = 1200, height: int = 900, languages: str = "en-US,en") -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.devtools("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage=languages)
        self.call("POST", "/url", {"url": f"file://{quote(str(path))}"})
        # An image of a script's making is decoded some time after the page has loaded.
        self.run("return Promise.all([...document.images].map((image) => image.decode().catch(() => 0))).then(() => 0)")

    def run(self, script: str):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def find(self, selector: str) -> str:
        return self.call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        self.call("POST", f"/element/{self.find(selector)}/click")

    def press(self, *keys: str) -> None:
        """Press keys in whatever has the focus."""
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def focus(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")

    def drag(self, selector: str, dx: int, dy: int, start: tuple[int, int] = (0, 0)) -> None:
        """Drag from `start`, relative to the element's centre, by (dx, dy) pixels, to somewhere within the window."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{ block: 'center' }})")
        origin = {ELEMENT: self.find(selector)}
        actions = [
            {"type": "pointerMove", "origin": origin, "x": start[0], "y": start[1]},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "origin": "pointer", "x": dx, "y": dy, "duration": 20},
            {"type": "pointerUp", "button": 0},
        ]
        self.call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]})

    def text(self, selector: str) -> str:
        return self.run(f"return document.querySelector({json.dumps(selector)}).textContent")

    def texts(self, selector: str) -> list[str]:
        return self.run(
            f"return [...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)"
        )

    def picture(self, selector: str) -> np.ndarray:
        """What is seen of an element, gray."""
        data = base64.b64decode(self.call("GET", f"/element/{self.find(selector)}/screenshot"))
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)

    def complaints(self) -> list[str]:
        """What the console holds since it was asked last: errors of the script, refusals of the policy."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver here (Debian: apt install chromium chromium-driver)")
    folder = tmp_path_factory.mktemp("chromium")
    with subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        try:
            lines = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
            port = next((int(line[1]) for line in lines if line), None)
            assert port, "chromedriver did not start"
            browser = Browser(port, folder / "profile")
            yield browser
            browser.call("DELETE", "")
        finally:
            driver.terminate()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("a # folder") / "report.html"
    write_report(ROWS, "Set, film.pth", path)
    return path


@pytest.fixture
def page(chromium, path) -> Iterator[Browser]:
    """The page, just opened. Whatever a test does to it, the console stays empty."""
    chromium.open(path)
    yield chromium
    assert chromium.complaints() == []


def names(page: Browser) -> list[str]:
    return page.texts("tbody bdi")


def test_it_opens_from_a_file_and_loads_nothing(page, path):
    assert page.run("return document.title") == "Set, film.pth"
    assert page.run("return [...document.images].every((image) => image.naturalWidth === 80)")
    loaded = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_a_hostile_name_is_shown_and_not_run(page):
    page.click('[aria-labelledby="pair4"]')
    assert page.text("#shown") == HOSTILE[0]
    time.sleep(0.1)  # time in which an image could fail to load
    assert page.run("return document.title") == "Set, film.pth"
    assert page.run("return document.querySelectorAll('img[onerror]').length") == 0


def test_best_and_worst_come_first(page):
    assert names(page) == BOTH_ENDS_FIRST
    assert page.texts("tbody .badge") == ["best 1", "best 2", "worst 1", "worst 2"]
    assert (page.text("#shown"), page.text("#end")) == ("p10", "best 1")
    # 2.67, 2.83, 3.33, 3.17, 3: by hand, above ROWS
    assert page.texts("tbody td:nth-of-type(2)") == ["2.667", "2.833", "3.333", "3.167", "3.000"]
    # 15 / 5, and no mean where one pair has no value
    assert page.texts("tfoot td")[2:5] == ["3.000", "–", "3.000"]  # noqa: RUF001


def test_every_column_sorts(page):
    def click(number: int) -> tuple[list[str], str]:
        page.click(f"thead th:nth-child({number}) button")
        return names(page), page.run("return document.querySelector('[aria-sort]').ariaSort")

    by_name = [HOSTILE[0], "p1", "p2", "p9", "p10"]  # numbers within names count as numbers
    assert click(1) == (by_name, "ascending")
    assert click(1) == (by_name[::-1], "descending")
    assert click(3) == (BEST_FIRST, "ascending")
    assert click(3) == (BEST_FIRST[::-1], "descending")
    # EN: 5, 4, 3, 2, 1
    assert click(4) == ([HOSTILE[0], "p9", "p10", "p2", "p1"], "descending")
    assert click(4) == (["p1", "p2", "p10", "p9", HOSTILE[0]], "ascending")
    # SD: 50, 40, 30, 20, and the pair without a value last either way
    assert click(5) == (["p1", "p2", "p10", "p9", HOSTILE[0]], "descending")
    assert click(5) == (["p9", "p10", "p2", "p1", HOSTILE[0]], "ascending")
    # AG: all equal
    assert click(7) == (BOTH_ENDS_FIRST, "descending")
    page.click("thead th:nth-child(6) button")
    assert names(page) == ["p10", "p9", "p1", "p2", HOSTILE[0]]
    page.click("#ends")
    assert names(page) == BOTH_ENDS_FIRST
    assert page.run("return document.querySelector('[aria-sort]')") is None


def test_previous_and_next_follow_the_table(page):
    page.click("thead th:nth-child(1) button")
    shown = [page.text("#shown")]
    for button in ("#next", "#next", "#previous", "#previous"):
        page.click(button)
        shown.append(page.text("#shown"))
    # by name p10 is the last; after it the first follows
    assert shown == ["p10", HOSTILE[0], "p1", HOSTILE[0], "p10"]
    assert page.texts("tr[aria-current] bdi") == ["p10"]


def corners(picture: np.ndarray) -> tuple[int, ...]:
    """The gray at a quarter and three quarters of the height and at 3 % and 97 % of the width, as QUADRANTS has it."""
    height, width = picture.shape
    return tuple(int(picture[int(height * y), int(width * x)]) for y in (0.25, 0.75) for x in (0.03, 0.97))


def test_the_divider_wipes_between_any_two(page):
    a, b, fused = QUADRANTS.values()
    # the left image on the left, the right one on the right
    assert corners(page.picture("#stage")) == (a[0], fused[1], a[2], fused[3])
    page.focus("#divider")
    page.press("End")
    assert corners(page.picture("#stage")) == a
    page.press("Home")
    assert corners(page.picture("#stage")) == fused
    page.press(*["Right"] * 10)
    assert page.run("return document.getElementById('divider').value") == "10"
    page.click("#right option:nth-child(2)")
    assert corners(page.picture("#stage")) == (a[0], b[1], a[2], b[3])
    assert page.texts("#stage .tag") == ["A", "B"]
    # what is on the right already changes places
    page.click("#left option:nth-child(2)")
    assert corners(page.picture("#stage")) == (b[0], a[1], b[2], a[3])
    assert page.texts("#stage .tag") == ["B", "A"]


def test_the_divider_can_be_dragged(page):
    a, _, fused = QUADRANTS.values()
    width = page.run("return document.getElementById('stage').clientWidth")
    page.drag("#stage", width // 2 - 1, 5)
    assert corners(page.picture("#stage")) == a
    page.drag("#stage", -width, 0, (width // 2 - 1, 0))
    assert corners(page.picture("#stage")) == fused


def crops(page: Browser) -> list[tuple[int, ...]]:
    """What the three crops show in their corners, a tenth from each side."""
    result = []
    for number in (1, 2, 3):
        picture = page.picture(f"#crops figure:nth-child({number}) .window")
        height, width = picture.shape
        result.append(tuple(int(picture[int(height * y), int(width * x)]) for y in (0.1, 0.9) for x in (0.1, 0.9)))
    return result


def part(*corner_quadrants: int) -> list[tuple[int, ...]]:
    """What `crops` gives where these quadrants lie in the corners, in all three images."""
    return [tuple(grays[quadrant] for quadrant in corner_quadrants) for grays in QUADRANTS.values()]


def test_the_crops_move_together(page):
    """At first they show the middle, where the quadrants meet."""
    assert crops(page) == part(0, 1, 2, 3)
    page.focus("#crops")
    # a tenth of the region each, which is a quarter of the image: from 0.375 to 0.6, beyond the middle
    page.press(*["Right"] * 9)
    assert crops(page) == part(1, 1, 3, 3)
    pane = "#crops figure:nth-child(2) .window"
    width, height = page.run(f"const p = document.querySelector('{pane}'); return [p.clientWidth, p.clientHeight]")
    # The image moves with the pointer, so the region goes to the left and up by 9 tenths: to 0.375 and 0.15.
    page.drag(pane, width * 9 // 10, height * 9 // 10, (-width * 45 // 100, -height * 45 // 100))
    assert crops(page) == part(0, 1, 0, 1)
    width, height = page.run("return [stage.clientWidth, stage.clientHeight]")
    # The frame goes with the pointer, as far as the image goes.
    page.drag("#frame", -width * 4 // 10, height * 65 // 100, (-20, -20))
    assert crops(page) == part(2, 2, 2, 2)
    assert page.run("return [view.x, view.y]") == [0, 0.75]


def test_the_zoom_keeps_its_centre(page):
    page.focus("#zoom")
    page.press("Home")
    assert page.text("#factor") == "1.0×"  # noqa: RUF001
    assert crops(page) == part(0, 1, 2, 3)
    assert page.run("return [view.x, view.y]") == [0, 0]
    page.press("End")
    # a sixteenth of each side around the middle: (1 - 1/16) / 2
    assert page.run("return [view.zoom, view.x, view.y]") == [16, 0.46875, 0.46875]
    page.focus("#crops")
    page.press("-", "-")
    assert page.run("return [view.zoom, view.x, view.y]") == pytest.approx([8, 0.4375, 0.4375])
    page.press("+")
    assert page.text("#factor") == "11.3×"  # noqa: RUF001 (8 times the root of 2)


def test_the_language_is_the_browser_s_until_it_is_switched(chromium, path):
    chinese = json.loads((report.PARTS / "zh.json").read_text(encoding="utf-8"))
    texts = "return [...document.querySelectorAll('[data-text]')].map((each) => [each.dataset.text, each.textContent])"
    heading = "thead th:nth-child(1)"
    for languages, name in (("de-DE,zh-CN", "图像对"), ("zh-TW", "图像对"), ("en,zh", "Pair"), ("de", "Pair")):
        chromium.open(path, languages=languages)
        assert chromium.text(heading) == name, languages
    english = chromium.run(texts)
    chromium.click('[data-language="zh-CN"]')
    assert chromium.run("return document.documentElement.lang") == "zh-CN"
    assert all(text == chinese[key] for key, text in chromium.run(texts))
    assert chromium.texts("#stage .tag") == ["A", "融合"]
    assert chromium.text("#end") == "最好 1"
    chromium.click('[data-language="en"]')
    assert chromium.run("return document.documentElement.lang") == "en"
    assert chromium.run(texts) == english
    assert chromium.complaints() == []


def test_the_keyboard_reaches_everything(page):
    reached = []
    for _ in range(40):
        page.press("Tab")
        active = "const a = document.activeElement; return a.id || a.lang || a.getAttribute('aria-labelledby')"
        reached.append(page.run(f"{active} || a.textContent"))
        if reached[-1] == "pair0":
            break
    order = ["en", "zh-CN", "previous", "next", "left", "divider", "right", "zoom", "crops", "ends"]
    assert reached[: len(order)] == order
    # then the headings, then the pairs
    assert reached[len(order) :] == ["Pair", "Mean rank", *TABLE_METRICS, "pair2", "pair3", "pair4", "pair1", "pair0"]
    page.press("Enter")
    assert page.text("#shown") == "p1"
    assert page.run("return document.activeElement.id") == "viewer"


@pytest.mark.parametrize("width", [320, 375, 800, 1200])
@pytest.mark.parametrize("languages", ["en", "zh-CN"])
def test_nothing_sticks_out_of_a_narrow_window(chromium, tmp_path, width, languages):
    rows = [*ROWS, row("a_name_that_cannot_be_broken_anywhere_" * 4, 7.1, 123.456, 45.678, 9.876, 0.9, 0.7)]
    write_report(rows, "Set, film.pth", tmp_path / "report.html")
    chromium.open(tmp_path / "report.html", width, languages=languages)
    outside = """
        const box = (each) => each.getBoundingClientRect();
        const all = [...document.querySelectorAll("body *")].filter((each) => !each.closest("#stage, .window"));
        const out = all.filter((each) => box(each).right > innerWidth + 0.5 || box(each).left < -0.5);
        return [document.documentElement.scrollWidth <= innerWidth, ...out.map((each) => each.outerHTML.slice(0, 60))];
    """
    assert chromium.run(outside) == [True]
    assert chromium.run("return innerWidth") == width
    # The numbers of a row do not run into each other.
    gaps = """
        const box = (cell) => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return range.getBoundingClientRect();
        };
        const gaps = [...document.querySelectorAll("td[data-value] + td[data-value]")].map(
            (cell) => box(cell).left - box(cell.previousElementSibling).right);
        return Math.min(...gaps);
    """
    assert chromium.run(gaps) >= 2
