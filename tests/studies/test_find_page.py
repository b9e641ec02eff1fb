"""The page of a search: what it shows, made from a certificate alone, and that no name in it is taken for HTML."""

import json
import re

import pytest
from certified_search import make

from prunus.results.certificate import Certificate, read_certificate
from prunus.settings.margins import Margin
from prunus.studies.find.page import beside, page, write_page

HOSTILE = "</script><img src=x onerror='window.pwned=1'>&lt;b&gt;"


def test_the_page_shows_ladder_decisions_bounds_and_cost(tmp_path):
    _, file = make(tmp_path)
    data = json.loads(file.read_text())
    text = page(Certificate.of(data))
    plain = re.sub(r"<[^>]*>", " ", text)
    for claim in data["shown"]["claims"]:
        assert claim.removesuffix(".") in plain.replace("&#x27;", "'").replace("&#39;", "'")
    rows = re.findall(r"<tr class=.*?</tr>", text)
    assert [("certified" in row, "refused" in row, "not looked at" in row) for row in rows] == [
        (False, False, False),  # dense
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert text.count('class="chart panel path"') == 4  # two endpoints of two rungs
    assert len(re.findall(r'class="chart (broad|narrow)"', text)) == 2  # one curve in two sizes
    lead = (
        "Half of weights set to zero; what memory it takes was not looked at. Losses of 10 points of accuracy or more"
    )
    assert lead in plain
    assert (
        len(re.findall(r'class="whisker" d="M[^"]*M[^"]*"', text)) == 2 * 3
    )  # intervals at both budgets, in two sizes
    share = 100 * data["shown"]["tokens"] / data["shown"]["full_grid_tokens"]
    assert f"{share:.1f} % of the 42" in plain
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert not re.findall(r"https?:", text.replace("http://www.w3.org/2000/svg", ""))
    write_page(Certificate.of(data), tmp_path / "find.html")
    assert (tmp_path / "find.html").read_text() == text


def test_without_a_certified_rung_it_says_so(tmp_path):
    _, file = make(tmp_path, max_tokens=100)
    text = page(read_certificate(file))
    assert "No rung was certified: dense stays as it is" in text and "the tokens are used up" in text
    assert "are ruled out" not in text and text.count("were not ruled out for any rung") == 1


def test_a_title_claims_nothing_where_the_margin_is_all_that_the_dense_model_solves(tmp_path):
    _, file = make(tmp_path)
    data = json.loads(file.read_text())
    for rung in data["shown"]["ladders"][0]["rungs"]:
        rung["dense_accuracy"] = [[0.1, 0.0, 0.2]] * len(rung["dense_accuracy"])  # the margin
    title = re.findall("<h1>.*?</h1>", page(Certificate.of(data)))[0]
    assert "is certified for a limit of all that the original solves" in title and "still" not in title


def test_a_ladder_by_bytes_shows_them_instead_of_what_is_removed(tmp_path):
    _, file = make(tmp_path)
    data = json.loads(file.read_text())
    declared, shown = data["declared"], data["shown"]
    declared["model"]["bytes"] = 4_000_000
    rungs = declared["ladders"][0]["rungs"]
    for rung, size in [*zip(rungs, (3, 2, 1), strict=True), *zip(shown["ladders"][0]["rungs"], (3, 2), strict=True)]:
        rung["bytes"] = 1_000_000 * size
    shown["found"]["bytes"] = 3_000_000
    plain = re.sub(r"<[^>]*>", " ", page(Certificate.of(data)))
    assert [plain.count(f"{size}.0 MB") for size in (4, 3, 2, 1)] == [1, 1, 1, 1] and "To remove" not in plain


def test_bounds_that_the_estimate_has_left_are_shown_around_it(tmp_path):
    _, file = make(tmp_path)
    data = json.loads(file.read_text())
    data["shown"]["ladders"][0]["rungs"][0]["path"]["ends"][-1] = [0.05, -0.046, 0.044]
    assert "−4.6 to +5.0" in re.sub(r"<[^>]*>", " ", page(Certificate.of(data)))


@pytest.mark.parametrize(
    ("margin", "value", "text"),
    [(0.06, -0.0597, "−5.97"), (0.06, -0.05998, "−5.998"), (0.06, -0.0604, "−6.04"), (0.06, -0.052, "−5.2"),
     (0.06, -0.06, "−6.0"), (0.06, -0.06000000000000005, "−6.0"), (0.06, 0.06, "+6.0"),
     ("5%", 0.0004, "+0.04"), ("5%", -0.0004, "−0.04"), ("5%", 0.0, "0.0")],
)  # fmt: skip
def test_a_bound_has_the_digits_that_tell_it_from_the_margin(margin, value, text):
    assert beside(Margin.of(margin))(value) == text


def test_names_are_escaped(tmp_path):
    _, file = make(tmp_path)
    data = json.loads(file.read_text())
    declared, shown = data["declared"], data["shown"]
    declared["model"]["name"] = HOSTILE
    declared["problems"] = {HOSTILE: declared["problems"]["a"]}
    for rung in [*declared["ladders"][0]["rungs"], *shown["ladders"][0]["rungs"], shown["found"]]:
        rung["name"] = HOSTILE
    declared["ladders"][0]["name"] = HOSTILE
    shown["ladders"][0]["rungs"][1]["why"] = HOSTILE
    shown["claims"] = [f"{HOSTILE}: {HOSTILE}", HOSTILE]
    text = page(Certificate.of(data))
    assert "<img" not in text and "onerror='" not in text.split("<script")[0]
    assert text.count("</script>") == 2  # of the data and of our own script
    shown["ladders"][0]["rungs"][1]["word"] = HOSTILE
    with pytest.raises(ValueError, match="word: it must be certified or refused"):
        Certificate.of(data)


def test_the_lead_says_how_much_is_gone_where_the_steps_are_not_known(tmp_path):
    _, file = make(tmp_path)
    data = json.loads(file.read_text())
    data["shown"]["ladders"][0]["rungs"][0]["recipe"] = []
    plain = re.sub(r"<[^>]*>", " ", page(Certificate.of(data)))
    assert "10\xa0% of the weights are zero or removed; what memory it takes was not looked at. Losses of" in plain
