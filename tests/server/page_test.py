#!/usr/bin/env python3
"""The page in headless Chromium: chat with tinted steps, the race ending "identical", keyboard, phone
and dark mode. Run from the repository's root: page_test.py PROGRAM [SCREENSHOT.png]"""

import os
import shutil
import sys
import time

from serving import SKIPPED, server

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    # Debian's package belongs to Debian's Python, which need not be the first on the path.
    if sys.executable != "/usr/bin/python3" and os.path.exists("/usr/bin/python3"):
        os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])
    print("skipped: selenium is missing; apt-get install python3-selenium chromium chromium-driver")
    sys.exit(SKIPPED)
if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
    print("skipped: chromium is missing; apt-get install chromium chromium-driver")
    sys.exit(SKIPPED)

SCREENSHOT_PROMPT = """from typing import List

def intersperse(numbers: List[int], delimeter: int) -> List[int]:
    \"\"\" Insert a number 'delimeter' between every two consecutive elements of input list `numbers'
    >>> intersperse([], 4)
    []
    >>> intersperse([1, 2, 3], 4)
    [1, 4, 2, 4, 3]
    \"\"\""""


def browser(width, height, dark=False):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--hide-scrollbars", f"--window-size={width},{height}"):
        options.add_argument(flag)
    if dark:
        options.add_argument("--force-dark-mode")
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options)


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def wait(driver, condition, what, seconds=90):
    WebDriverWait(driver, seconds, poll_frequency=0.1).until(lambda _: condition(), what)


def say(driver, text):
    """Types into the chat and sends by keyboard; returns once the answer is complete."""
    before = len(driver.find_elements(By.CSS_SELECTOR, "#log .said"))
    driver.find_element(By.ID, "prompt").send_keys(text, Keys.ENTER)
    wait(driver, lambda: len(driver.find_elements(By.CSS_SELECTOR, "#log .said")) == before + 2,
         "the message appears")
    wait(driver, lambda: driver.find_element(By.ID, "send").is_enabled(), "the answer ends")


def overflows(driver):
    return driver.execute_script(
        "return document.documentElement.scrollWidth > document.documentElement.clientWidth")


def check_desktop(url, screenshot):
    driver = browser(1180, 900)
    try:
        driver.get(url)
        wait(driver, lambda: "demo-target" in driver.find_element(By.ID, "model").text, "a model")
        check(driver.switch_to.active_element.get_attribute("id") == "prompt", "focus on the prompt")
        say(driver, "What is a kayak?")
        steps = driver.find_elements(By.CSS_SELECTOR, "#log .step")
        check(len(steps) > 1, "the answer came in steps")
        tints = {step.value_of_css_property("background-color") for step in steps[:6]}
        check(len(tints) > 1, f"steps have tints, got {tints}")
        check("tokens in one step" in steps[0].get_attribute("title"), "a step says what it was")
        check(float(driver.find_element(By.ID, "m-rate").text) > 0, "tokens a second")
        check(float(driver.find_element(By.ID, "m-length").text) >= 1, "tokens a step")
        check(len(driver.find_elements(By.CSS_SELECTOR, "#bars i")) > 1, "bars by position")
        if screenshot:
            driver.find_element(By.ID, "clear").click()
            driver.execute_script("document.getElementById('prompt').value = arguments[0]",
                                  SCREENSHOT_PROMPT)
            say(driver, "")
            driver.save_screenshot(screenshot)
        # To the race by keyboard.
        driver.find_element(By.ID, "tab-chat").send_keys(Keys.ARROW_RIGHT)
        wait(driver, lambda: driver.find_element(By.ID, "race").is_displayed(), "the race's view")
        driver.find_element(By.ID, "race-start").send_keys(Keys.ENTER)
        wait(driver, lambda: driver.find_element(By.ID, "verdict").text != "", "the race ends")
        verdict = driver.find_element(By.ID, "verdict").text
        check(verdict.startswith("identical"), f"the race ends identical, got: {verdict}")
        plain = driver.find_element(By.ID, "lane-plain").text
        check(plain and plain == driver.find_element(By.ID, "lane-drafted").text, "equal lanes")
        # Everything comes from this server.
        foreign = driver.execute_script(
            "return performance.getEntriesByType('resource').map(r => r.name)"
            ".filter(n => !n.startsWith(location.origin) && !n.startsWith('data:'))")
        check(not foreign, f"foreign hosts: {foreign}")
        errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        check(not errors, f"errors in the console: {errors}")
    finally:
        driver.quit()


def check_phone_and_dark(url):
    driver = browser(390, 800, dark=True)
    try:
        driver.get(url)
        wait(driver, lambda: "demo-target" in driver.find_element(By.ID, "model").text, "a model")
        say(driver, "Hello")
        check(not overflows(driver), "a phone scrolls one way only")
        dark = driver.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
        color = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        if dark:
            check(max(int(part) for part in color[4:-1].split(",")[:3]) < 80, f"dark, got {color}")
    finally:
        driver.quit()


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "build/volley"
    screenshot = sys.argv[2] if len(sys.argv) > 2 else None
    start = time.time()
    with server(program, "--draft-length", "7") as url:
        check_desktop(url, screenshot)
        check_phone_and_dark(url)
    print(f"ok: chat, race, keyboard, phone and dark mode, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
