"""examples/browser as its user meets it: numbers, pictures, and what it says where something is wrong."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from sad_export import write_gradient
from tests.support.models import forward_onnx, small_cnn
from tests.support.networks import small_network

SIDE = 16
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SPACE = "&mean=0.4,0.5,0.6&std=0.2,0.25,0.3"
TWO_CHANNELS = """<ir_version: 8, opset_import: ["": 13]>
    two_channels (float[N, 2, 4, 4] image) => (float[N, 2, 4, 4] logits, float[N, 2, 4, 4] gradient)
    { logits = Identity(image) gradient = Identity(image) }"""
Open = Callable[[str], Any]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(browser_example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with graphs of two small classifiers, one of them for grey images, and photos."""
    site = tmp_path_factory.mktemp("site") / "page"
    shutil.copytree(browser_example, site, symlinks=True)
    onnx.save(forward_onnx(small_cnn(), (3, SIDE, SIDE)), site / "forward.onnx")
    write_gradient(site / "forward.onnx", site / "model.gradient.onnx")
    write_gradient(site / "forward.onnx", site / "label.onnx", of="label")
    onnx.save(forward_onnx(small_network(channels=1), (1, SIDE, SIDE)), site / "grey.onnx")
    write_gradient(site / "grey.onnx", site / "grey.gradient.onnx")
    onnx.save(onnx.parser.parse_model(TWO_CHANNELS), site / "two.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(site / "photo.png")
    wide = np.full((SIDE, 3 * SIDE, 3), (255, 0, 0), np.uint8)
    wide[:, SIDE : 2 * SIDE] = pixels
    Image.fromarray(wide).save(site / "wide.png")
    return site


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def visit(chromium: Any, requested: Callable[[], list[str]], address: str) -> Iterator[Open]:
    """Open the page with a query and wait for its answer; it must have asked nobody but its own server."""
    chromium.get_log("browser")

    def open_page(query: str) -> Any:
        chromium.get("about:blank")
        chromium.get(address + query)
        return answered(chromium)

    yield open_page
    foreign = [each for each in requested() if not each.startswith((address, "data:", "about:"))]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert foreign == []


def answered(browser: Any) -> Any:
    from selenium.webdriver.support.wait import WebDriverWait

    state = "return ['done', 'error'].includes(document.body.dataset.state)"
    WebDriverWait(browser, 30, poll_frequency=0.05).until(lambda page: page.execute_script(state))
    return browser


def status(browser: Any) -> tuple[str, str]:
    return tuple(
        browser.execute_script(
            "return [document.body.dataset.state, document.getElementById('status').textContent]"
        )
    )


def shown(browser: Any, canvas: str) -> np.ndarray:
    """(H, W, 3) bytes of a picture of the page."""
    script = """const {height, width} = document.getElementById(arguments[0]);
                const context = document.getElementById(arguments[0]).getContext('2d');
                return [height, width, ...context.getImageData(0, 0, width, height).data]"""
    height, width, *data = browser.execute_script(script, canvas)
    return np.array(data, np.uint8).reshape(height, width, 4)[..., :3]


def in_onnxruntime(graph: Path, pixels: np.ndarray, mean: Any, std: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits (K,) and gradient (C, H, W) for (H, W, C) bytes."""
    image = ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits, gradient = session.run(["logits", "gradient"], {session.get_inputs()[0].name: image})
    return logits[0], gradient[0]


def assert_result_is(browser: Any, logits: np.ndarray, gradient: np.ndarray) -> None:
    found = browser.execute_script("return [[...result.logits], [...result.gradient]]")
    for ours, theirs in zip(found, (logits, gradient.ravel()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    text = {name: browser.find_element("id", name).text for name in ("label", "logit", "time")}
    assert int(text["label"]) == logits.argmax()
    assert float(text["logit"]) == pytest.approx(logits.max(), rel=1e-3)
    assert text["time"].endswith(" ms")


def test_logits_and_gradient_are_those_of_onnxruntime(visit: Open, chromium: Any, folder: Path) -> None:
    browser = visit("?image=photo.png" + SPACE)
    assert status(browser) == ("done", "Shown: photo.png")
    pixels = np.asarray(Image.open(folder / "photo.png"))
    logits, gradient = in_onnxruntime(folder / "model.gradient.onnx", pixels, MEAN, STD)
    assert_result_is(browser, logits, gradient)
    assert chromium.get_log("browser") == []


def test_grey_network_gets_a_grey_photo(visit: Open, folder: Path) -> None:
    browser = visit("?model=grey.gradient.onnx&image=photo.png&mean=0.5&std=0.25")
    grey = shown(browser, "image")
    np.testing.assert_allclose(
        grey[..., 0], np.asarray(Image.open(folder / "photo.png").convert("L")).astype(float), atol=1
    )
    assert_result_is(browser, *in_onnxruntime(folder / "grey.gradient.onnx", grey[..., :1], 0.5, 0.25))


def test_map_is_brightest_where_the_summed_gradient_is_largest(visit: Open, folder: Path) -> None:
    browser = visit("?image=photo.png" + SPACE)
    pixels = np.asarray(Image.open(folder / "photo.png"))
    np.testing.assert_array_equal(shown(browser, "image"), pixels)
    _, gradient = in_onnxruntime(folder / "model.gradient.onnx", pixels, MEAN, STD)
    strength = np.abs(gradient).sum(axis=0)
    drawn = shown(browser, "map").astype(int)
    orange = drawn[..., 0] - drawn[..., 2]
    assert orange[np.unravel_index(strength.argmax(), strength.shape)] == 255
    assert np.corrcoef(orange.ravel(), strength.ravel())[0, 1] > 0.99


def test_chosen_photo_is_cut_to_its_middle(visit: Open, folder: Path) -> None:
    browser = visit("?" + SPACE)
    assert status(browser) == ("done", "model.gradient.onnx is loaded: choose a photo.")
    browser.find_element("id", "photo").send_keys(str(folder / "wide.png"))
    answered(browser)
    np.testing.assert_array_equal(shown(browser, "image"), np.asarray(Image.open(folder / "photo.png")))


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("model=none.onnx", "none.onnx cannot be loaded (404)"),
        ("model=index.html", "index.html is no graph that onnxruntime-web takes: "),
        ("model=forward.onnx", "forward.onnx lacks gradient: see sad-deploy gradient"),
        ("model=label.onnx", "label.onnx also takes label: --of largest and --of N do without"),
        ("model=two.onnx", "two.onnx takes float32 (N, 2, 4, 4), not float32 (N, 1 or 3, height, width)"),
        ("std=0", "mean=0.485,0.456,0.406 and std=0: one number or 3 each, and std positive"),
        ("mean=0.5,0.5", "mean=0.5,0.5 and std=0.229,0.224,0.225: one number or 3 each, and std"),
        ("image=none.png", "none.png cannot be loaded (404)"),
        ("image=saliency.mjs", "saliency.mjs is not an image that this browser reads"),
    ],
)
def test_what_is_wrong_is_one_line(visit: Open, query: str, line: str) -> None:
    browser = visit(f"?{query}")
    state, text = status(browser)
    assert state == "error"
    assert text.startswith(line)
    assert "\n" not in text
    assert not browser.find_element("id", "result").is_displayed()
    assert browser.find_element("id", "photo").is_enabled() == query.startswith("image")


def test_another_photo_can_be_chosen_after_a_bad_one(visit: Open, folder: Path) -> None:
    browser = visit("?image=saliency.mjs")
    browser.find_element("id", "photo").send_keys(str(folder / "photo.png"))
    answered(browser)
    assert status(browser) == ("done", "Shown: photo.png")
    assert browser.find_element("id", "result").is_displayed()


def test_page_without_onnxruntime_web_says_how_to_get_it(visit: Open, folder: Path) -> None:
    hidden = (folder / "node_modules").rename(folder / "elsewhere")
    try:
        browser = visit("?image=photo.png")
    finally:
        hidden.rename(folder / "node_modules")
    assert status(browser) == ("error", "onnxruntime-web is missing: run npm install in examples/browser")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("query", ["?image=photo.png", "?model=none.onnx"])
def test_axe_finds_nothing(visit: Open, chromium: Any, scheme: str, query: str) -> None:
    axe = pytest.importorskip("axe_core_python.selenium", reason="no axe-core-python here")
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    found = axe.Axe().run(visit(query))
    assert [(problem["id"], problem["nodes"][0]["html"]) for problem in found["violations"]] == []


def test_narrow_screen_needs_no_sideways_scrolling(visit: Open, chromium: Any) -> None:
    metrics = {"width": 320, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser = visit("?image=photo.png")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 320
