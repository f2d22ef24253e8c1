"""The Delay text normaliser against strings that the published one produced."""

from moss.sequence.normalize import normalize_tts_text
from tests.parity.fixture_files import load_fixture


def test_every_string_of_the_delay_normalizer() -> None:
    cases = load_fixture("ref_delay.pt.gz")["normalizer"]
    assert cases
    wrong = {}
    for name, text, intended, produced in cases:
        ours = normalize_tts_text(text, reference=True)
        if ours != produced or (intended is not None and ours != intended):
            wrong[name] = (text, produced, ours)
    assert not wrong
