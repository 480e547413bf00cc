"""A headless Chromium and onnxruntime-web, where they can be had, and what the tests read from them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,1000",
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The browser; one for all tests."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        opened.get("about:blank")
        yield opened
    finally:
        opened.quit()


@pytest.fixture(scope="session")
def browser_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/browser with its node_modules, which are downloaded once."""
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("no npm here")
    source = Path(__file__).parents[2] / "examples" / "browser"
    package = source / "package.json"
    version = json.loads(package.read_text())["dependencies"]["onnxruntime-web"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sad-deploy-tests"
    installed = cache / f"onnxruntime-web-{version}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists():
            draft = cache / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            shutil.copy(package, draft)
            command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0"]
            try:
                made = subprocess.run(
                    [*command, "--prefix", str(draft)], capture_output=True, text=True, timeout=120
                )
            except subprocess.TimeoutExpired:
                pytest.skip("npm install took more than two minutes")
            if made.returncode:
                pytest.skip(f"npm install failed: {made.stderr.strip()[:200]}")
            draft.rename(installed)
    folder = tmp_path_factory.mktemp("example")
    for name in ("index.html", "saliency.mjs", "check.mjs"):
        shutil.copy(source / name, folder)
    (folder / "node_modules").symlink_to(installed / "node_modules")
    return folder


@pytest.fixture
def requested(chromium: Any) -> Callable[[], list[str]]:
    """The addresses that pages have asked for since the last call."""

    def addresses() -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
        asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in asked]

    addresses()
    return addresses


@pytest.fixture
def visit(chromium: Any, requested: Callable[[], list[str]]) -> Iterator[Callable[..., Any]]:
    """Open a page from its file; in the end it must have asked for nothing and complained of nothing."""
    chromium.get_log("browser")

    def open_page(path: Path, fragment: str = "") -> Any:
        chromium.get("about:blank")
        chromium.get(path.as_uri() + fragment)
        return chromium

    yield open_page
    complaints = [entry["message"] for entry in chromium.get_log("browser")]
    asked = {address.split(":")[0] for address in requested()}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert complaints == []
    assert asked <= {"file", "data"}
