"""The page in headless Chromium: a person writes, infills, chats, looks back and stops.

Screenshots are kept in `.screenshots/`.
"""

import json
import shutil
from pathlib import Path

import pytest
from dlm_edge.runtime.bundle.bundle import default_bundle_path
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.runtime.serve.http import Access
from served import served
from waiting import wait

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium here: apt install chromium", allow_module_level=True)

SHOTS = Path(__file__).resolve().parents[3] / ".screenshots"
PROMPT = "Once upon a time, there was"
expect = playwright.expect


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(exist_ok=True)
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stories(chat_bundle):
    with served(default_bundle_path(), chat_bundle) as found:
        yield found


@pytest.fixture
def open_page(browser, stories):
    """Opens the page in a fresh context; fails on errors, and on requests to anywhere else."""
    contexts, wrong = [], []

    def open_(server=stories, **options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 760}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: r.url.startswith(server.url) or wrong.append(r.url))
        page.goto(server.url)
        page.asked = []
        page.on("request", lambda r: page.asked.append(json.loads(r.post_data or "{}")))
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not [item for item in wrong if not item.startswith("data:")]


@pytest.fixture
def page(open_page):
    page = open_page()
    expect(page.locator("#option-temperature")).to_be_visible()
    return page


def write(page, prompt=PROMPT, *, length=24, seed=3):
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("New tokens").fill(str(length))
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Write").click()


def done(page):
    expect(page.get_by_role("status")).to_contain_text("done", timeout=120_000)


def canvas(page, index=0):
    return page.locator(".canvas").nth(index)


def test_a_text_denoises_in_sight_and_is_the_one_that_the_pipeline_writes(page):
    write(page, length=120)
    expect(page.locator(".canvas .masked").first).to_be_visible()
    expect(page.locator(".canvas .provisional").first).to_be_visible()
    page.screenshot(path=SHOTS / "denoising.png")
    done(page)
    with Pipeline.load(threads=1) as pipeline:
        expected = pipeline(PROMPT, max_tokens=120, seed=3)
    assert canvas(page).text_content() == PROMPT + expected.text
    figures = page.locator("#samples .figures").text_content()
    assert f"NFE {expected.nfe}," in figures
    assert f"{expected.tokens_per_nfe:.2f} tokens per run" in figures
    page.screenshot(path=SHOTS / "written.png")


def test_the_step_slider_looks_back(page):
    write(page)
    done(page)
    slider = page.locator(".canvas ~ label input[type=range]")
    last = canvas(page).text_content()
    slider.focus()
    page.keyboard.press("Home")
    assert "░" in canvas(page).text_content()
    expect(page.get_by_text("Step 1 of")).to_be_visible()
    page.keyboard.press("End")
    assert canvas(page).text_content() == last


def test_samples_stand_side_by_side(page):
    page.get_by_label("Samples").fill("3")
    write(page)
    done(page)
    texts = [canvas(page, index).text_content() for index in range(3)]
    assert len(set(texts)) == 3
    boxes = [page.locator("#samples .card").nth(index).bounding_box() for index in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    page.screenshot(path=SHOTS / "samples.png")


def test_gaps_are_filled(page):
    page.get_by_label("Infill").check()
    page.get_by_label("Text with gaps").fill("Once upon a time ___ and they were happy.")
    page.get_by_label("New tokens").fill("8")
    page.get_by_role("button", name="Fill").click()
    done(page)
    text = canvas(page).text_content()
    assert text.startswith("Once upon a time")
    assert text.endswith(" and they were happy.")
    assert "░" not in text
    page.screenshot(path=SHOTS / "filled.png")


def test_a_conversation_goes_on(page):
    page.locator("#model").select_option("talker")
    page.get_by_label("Chat").check()
    for text in ("hello", "so"):
        page.get_by_label("Message").fill(text)
        page.get_by_label("New tokens").fill("8")
        page.get_by_role("button", name="Send").click()
        done(page)
    turns = page.locator(".turn").all_text_contents()
    assert turns[0::2] == ["hello", "so"]
    assert all(turns[1::2])
    assert [m["role"] for m in page.asked[-1]["messages"]] == ["user", "assistant", "user"]
    page.screenshot(path=SHOTS / "chat.png")
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("Nothing said yet.")).to_be_visible()


def test_a_model_without_a_template_offers_no_chat(page):
    expect(page.get_by_label("Chat")).to_be_disabled()


def test_options_are_those_of_the_model_and_a_slider_changes_one(page):
    slider = page.get_by_label("temperature, slider")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#option-temperature").input_value() == "0"
    write(page)
    done(page)
    assert page.asked[-1]["temperature"] == 0
    assert "rule" not in page.asked[-1]
    page.get_by_label("Rule").select_option("threshold")
    page.locator("#option-threshold").fill("0.5")
    write(page)
    done(page)
    assert (page.asked[-1]["rule"], page.asked[-1]["threshold"]) == ("threshold", 0.5)


def test_every_option_of_every_rule_has_a_control(page, stories):
    description = stories.ask("/v1/models/stories-4m")[2]
    for rule in description["rules"]:
        page.get_by_label("Rule").select_option(rule["name"])
        for option in rule["options"]:
            control = page.locator(f"#option-{option['name']}")
            expect(control).to_be_visible()
            shown = control.input_value()
            default = option["default"]
            assert shown == ("" if default is None else f"{default:g}")


def test_example_settings_and_prompts_fill_the_form(page):
    page.get_by_label("Settings").select_option(label="threshold, threshold 0.5")
    assert page.get_by_label("Rule").input_value() == "threshold"
    assert page.locator("#option-threshold").input_value() == "0.5"
    page.get_by_label("Examples").select_option("The dog")
    assert page.get_by_label("Prompt", exact=True).input_value() == "The dog"


def test_a_text_is_stopped_and_the_next_goes_on(page, stories):
    write(page, length=5000)
    expect(page.locator(".canvas .masked").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("stopped")
    wait(lambda: not stories.ask("/health")[2]["running"])
    write(page)
    done(page)


def test_a_text_is_copied(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    write(page)
    done(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == canvas(page).text_content()


def test_the_keyboard_alone_is_enough(page):
    page.locator("#model").focus()
    for _ in range(2):  # mode, prompt
        page.keyboard.press("Tab")
    page.keyboard.type("The dog")
    page.keyboard.press("Control+Enter")
    done(page)
    assert canvas(page).text_content().startswith("The dog")


def test_what_the_server_refuses_is_said(page):
    write(page, "word " * 400)
    expect(page.get_by_role("alert")).to_contain_text("the prompt has")


def test_a_key_is_asked_for_and_kept(open_page, tiny_bundle):
    with served(tiny_bundle, access=Access(keys=("secret",))) as server:
        page = open_page(server)
        expect(page.get_by_label("API key")).to_be_visible()
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_label("API key")).to_be_hidden()
        write(page, "The ", length=7)
        done(page)
        assert canvas(page).text_content() == "The cat sat"
        page.reload()
        expect(page.locator("#option-temperature")).to_be_visible()
        page.close()


def axe_violations(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [(item["id"], [node["html"] for node in item["nodes"]]) for item in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 380])
def test_the_page_is_accessible_in_every_form_and_fits_a_phone(open_page, scheme, width):
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 760}, bypass_csp=True)
    expect(page.locator("#option-temperature")).to_be_visible()
    write(page, length=40)
    done(page)
    slider = page.locator(".canvas ~ label input[type=range]")
    slider.fill("9")
    page.screenshot(path=SHOTS / f"{scheme}-{width}.png", full_page=width < 1000)
    assert axe_violations(page) == []
    sizes = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    content, view = page.evaluate(sizes)
    assert content <= view
    back = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (int(back[4:].split(",")[0]) < 80) == (scheme == "dark")
