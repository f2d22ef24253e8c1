"""The report in a real browser: every player plays, nothing complains, nothing is fetched."""

import pytest

from moss.evaluation.run import evaluate_generations
from tests.e2e.browser import Browser
from tests.evaluation.fakes import fake_backends, generation_folder, write_rows
from tests.evaluation.test_report import metrics_csv

pytestmark = [pytest.mark.slow, pytest.mark.browser]

PLAY_ALL = """
const players = [...document.querySelectorAll("audio")];
const results = [];
for (const player of players) {
    const ready = player.readyState > 0 ? Promise.resolve() : new Promise((resolve, reject) => {
        player.addEventListener("loadedmetadata", resolve, {once: true});
        player.addEventListener("error", () => reject(player.error.message), {once: true});
    });
    player.load();
    await ready;
    await player.play();
    const others = players.filter(other => other !== player && !other.paused).length;
    await new Promise(resolve => {
        const wait = () => player.currentTime > 0 ? resolve() : setTimeout(wait, 10);
        wait();
    });
    results.push({duration: player.duration, time: player.currentTime, others});
    player.pause();
}
return results;
"""
IMAGES = "return [...document.images].map(image => image.complete && image.naturalWidth)"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"
UNNAMED = """
return [...document.querySelectorAll("audio, img, svg[role], a")].filter(element =>
    !(element.ariaLabel || element.alt || element.textContent.trim())).length
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    backends = fake_backends()
    rows = generation_folder(folder / "g", backends, count=5)
    rows[1] |= {"wav": None, "error": '<script>alert("x")</script>'}
    rows[3]["text"] = "A text & <b>more</b> that was not said; averyveryverylongwordthatdoesnotfitonaphone" * 2
    write_rows(folder / "g", rows)
    evaluate_generations(folder / "g", folder / "out", training_run=metrics_csv(folder), backends=backends)
    return folder / "out/report.html"


@pytest.fixture(scope="module")
def browser(report):
    with Browser() as browser:
        browser.open(report)
        yield browser


def test_every_player_plays(browser):
    played = browser.run(PLAY_ALL)
    assert len(played) == 19
    assert all(player["duration"] > 1 and player["time"] > 0 for player in played)
    assert all(player["others"] == 0 for player in played)


def test_every_spectrogram_is_drawn(browser):
    assert browser.run(IMAGES) == [320] * 19


def test_nothing_is_fetched_and_nothing_complains(report):
    with Browser() as browser:
        browser.open(report)
        browser.run(PLAY_ALL)
        assert browser.console() == []
        # The driver's own start page aside, the page asks for itself and for what it contains.
        addresses = [address for address in browser.requests() if not address.startswith("chrome")]
        assert [address for address in addresses if not address.startswith("data:")] == [report.as_uri()]


def test_everything_has_a_name(browser):
    assert browser.run(UNNAMED) == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_a_phone_and_follows_the_colour_scheme(browser, width, dark):
    browser.emulate(width=width, height=800, dark=dark)
    assert browser.run(OVERFLOW) <= 0
    channels = [int(part) for part in browser.run(BACKGROUND).strip("rgb()").split(",")]
    assert (max(channels) < 60) == dark
    assert (min(channels) > 200) != dark


def test_browser_notices_a_page_that_breaks_the_rules(tmp_path):
    """The checks above are able to fail."""
    (tmp_path / "bad.html").write_text(
        '<link rel="icon" href="data:,"><audio src="data:audio/flac;base64,AAAA"></audio><img src="gone.png">'
        "<script>console.error('broken')</script>"
    )
    with Browser() as browser:
        browser.open(tmp_path / "bad.html")
        with pytest.raises(AssertionError):
            browser.run(PLAY_ALL)
        assert any("broken" in entry["message"] for entry in browser.console())
        assert any(address.endswith("gone.png") for address in browser.requests())
