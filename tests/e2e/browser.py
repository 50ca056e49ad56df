"""Temporal's web UI in headless Chromium: opened, read and photographed as a person would.

Chromium talks to 127.0.0.1 only: whatever else it would like to reach goes to a proxy that is not there. Chromedriver
is Debian's, of the same version as its Chromium; Selenium's own downloader is never asked.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchFrameException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = "/usr/bin/chromium"
CHROMEDRIVER = "/usr/bin/chromedriver"
PATIENCE_S = 60.0
"""The UI answers within a second; a test machine may be busy with other things."""
NOWHERE = "127.0.0.1:9"
MAX_SCREENS = 40
SCROLL_ON = """
const page = [...document.querySelectorAll('*')].filter(
  item => item.scrollHeight > item.clientHeight + 50 && item.clientHeight > 300
    && ['auto', 'scroll'].includes(getComputedStyle(item).overflowY)
).concat([document.scrollingElement])[0];
const before = page.scrollTop;
page.scrollBy({top: page.clientHeight / 2, behavior: 'instant'});
if (page.scrollTop === before) page.scrollTo({top: 0, behavior: 'instant'});
"""
ROW = "tr[data-testid=workflows-summary-configurable-table-row]"

FoundT = TypeVar("FoundT")


class WebUi(AbstractContextManager["WebUi"]):
    """A browser window on a web UI."""

    def __init__(self, url: str, *, width: int = 1400, height: int = 900) -> None:
        self.url = f"{url}/namespaces/default/workflows"
        self._profile = tempfile.TemporaryDirectory(prefix="safehaul-chromium-", ignore_cleanup_errors=True)
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--disable-dev-shm-usage", "--hide-scrollbars", f"--window-size={width},{height}"),
            *(f"--proxy-server={NOWHERE}", f"--user-data-dir={self._profile.name}"),
        ):
            options.add_argument(argument)
        if os.geteuid() == 0:
            options.add_argument("--no-sandbox")
        self._driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
        self._driver.set_page_load_timeout(PATIENCE_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.quit()
        self._profile.cleanup()

    def __enter__(self) -> Self:
        return self

    def open_list(self, query: str) -> None:
        """The list of workflows, filtered by a query on search attributes."""
        self._driver.get(f"{self.url}?query={quote(query)}")

    def list_rows(self, count: int) -> list[dict[str, str]]:
        """The list's rows by column, once there are `count`."""
        self.wait(lambda: len(self._all(ROW)) == count)
        return self.rows()

    def rows(self) -> list[dict[str, str]]:
        """The list's rows by column, as they are now."""
        names = [item.text for item in self._all("thead th")]
        cells = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "td")] for row in self._all(ROW)]
        return [dict(zip(names, row, strict=False)) for row in cells]

    def choose_columns(self, add: Sequence[str], remove: Sequence[str], last: str) -> None:
        """Configure the list's columns; `last` is moved to the end."""
        self._click("workflows-summary-table-configuration-button")
        for name in remove:
            self._click(f"orderable-list-item-{name}-remove-button")
        for name in add:
            self._click(f"orderable-list-item-{name}-add-button")
        down = f"orderable-list-item-{last}-move-down-button"
        while any(item.is_enabled() for item in self._all(f'[data-testid="{down}"]')):
            self._click(down)
        self._driver.refresh()

    def open_workflow(self, workflow_id: str) -> None:
        """A workflow's page, at its timeline."""
        self._driver.get(f"{self.url}/{quote(workflow_id, safe='')}")
        self.wait(lambda: self._all("[data-testid=timeline-tab]"))

    def open_tab(self, name: str) -> None:
        """One of the page's tabs: `timeline`, `history`, `user-metadata`, `pending-activities` and others."""
        self._click(f"{name}-tab")

    def shows(self, *texts: str) -> None:
        """Wait until the page has shown every text while one scrolls through it. Raises AssertionError otherwise."""
        seen: list[str] = []

        def look() -> bool:
            seen.append(self.text())
            # The page draws only what is in the window: go on downwards, and from its end to its top.
            self._driver.execute_script(SCROLL_ON)
            return all(any(text in piece for piece in seen[-MAX_SCREENS:]) for text in texts)

        try:
            self.wait(look)
        except TimeoutError:
            missing = [text for text in texts if not any(text in piece for piece in seen)]
            raise AssertionError(
                f"the page does not show {missing}; at last it showed:\n{seen[-1]}"
            ) from None

    def text(self) -> str:
        """What can be read on the page, also in drawings; spaces made one."""
        # One call, and no handle of an element: the page is drawn again while one looks.
        return self._read("(document.querySelector('main') ?? document.body).innerText")

    def details(self, *texts: str) -> str:
        """The current details' text, once it shows every one of `texts`."""
        shown = "[...document.querySelectorAll('iframe')].at(-1)?.contentDocument?.body?.innerText"

        def read() -> str:
            found = self._read(shown)
            return found if all(text in found for text in texts) else ""

        return self.wait(read)

    def _read(self, expression: str) -> str:
        return " ".join(str(self._driver.execute_script(f"return {expression} ?? ''")).split())

    def follow(self, link_text: str) -> str:
        """Click a link in the current details; it opens a page of its own, whose address is returned."""
        self.details(link_text)
        self._driver.switch_to.frame(self._all("iframe")[-1])
        self._driver.find_element(By.LINK_TEXT, link_text).click()
        self.wait(lambda: len(self._driver.window_handles) > 1)
        self._driver.close()
        self._driver.switch_to.window(self._driver.window_handles[-1])
        self.wait(lambda: self._all("[data-testid=timeline-tab]"))
        return str(self._driver.current_url)

    def from_the_start(self, text: str) -> None:
        """Turn the timeline over, so that it begins with the first step, and bring it to the top of the window."""
        self.wait(lambda: "Descending" in self.text())
        button = next(item for item in self._all("button") if item.text == "Descending")
        self._driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        self.shows(text)
        heading = next(item for item in self._all("h2, h3, h4") if item.text.startswith("Timeline"))
        self._driver.execute_script("arguments[0].scrollIntoView(true)", heading)
        self.wait(lambda: text in self.text())

    def scroll_to(self, selector: str) -> None:
        """Bring an element to the top of the window."""
        element = self.wait(lambda: self._all(selector))[0]
        self._driver.execute_script("arguments[0].scrollIntoView(true)", element)

    def picture(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        assert self._driver.save_screenshot(str(path))

    def wait(self, condition: Callable[[], FoundT]) -> FoundT:
        """Wait until the condition gives something. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                found = condition()
            except (StaleElementReferenceException, NoSuchFrameException):
                # The page has just been drawn again: the next look finds what is there now.
                self._driver.switch_to.default_content()
            else:
                if found:
                    return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page did not come to it within {PATIENCE_S:g} s")
            time.sleep(0.1)

    def _all(self, selector: str) -> list[WebElement]:
        return self._driver.find_elements(By.CSS_SELECTOR, selector)

    def _click(self, test_id: str) -> None:
        """Click what can be clicked: drawers slide in, and some parts of the page exist twice."""

        def click() -> bool:
            for element in self._all(f'[data-testid="{test_id}"]'):
                # In the middle of the window nothing lies over it.
                self._driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
                with suppress(ElementNotInteractableException, ElementClickInterceptedException):
                    element.click()
                    return True
            return False

        self.wait(click)
