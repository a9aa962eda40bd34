"""One page of several runs: well formed, with nothing to load, and every figure and picture in it."""

import base64
import html.parser
import io
import json

import pytest
from PIL import Image

from eval.report import __main__ as report
from eval.report import tables
from eval.report.bootstrap import Interval
from tests.reference.pictures import ramp, save

VOID = {"meta", "img", "br"}
ROW = {"gt-box": {"miou": 0.5, "mbiou": 0.25, "msf": None}}
NAME = "runs/<b>model</b>+x&y"


class Reader(html.parser.HTMLParser):
    """Notes cells, pictures and whatever is loaded; tags that are not closed in order fail."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.pictures, self.loaded = [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loaded += [given[name] for name in ("src", "href") if name in given]
        if tag == "img":
            self.pictures.append(given["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


@pytest.fixture
def run(tmp_path):
    """A folder as eval.main leaves it, of two systems."""
    folder = tmp_path / "run"
    row = {
        "gt-box": {metric: Interval(0.03, low, 0.05) for metric, low in (("miou", 0.01), ("mbiou", -0.01), ("msf", 0))}
    }
    uncertainty = tables.Uncertainty(intervals={NAME: {"horses": row}}, differences={(NAME, "other"): {"horses": row}})
    nan = {"gt-box": ROW["gt-box"] | {"msf": float("nan")}}
    results = {NAME: {"horses": nan}, "other": {"horses": nan}}
    tables.write_results(folder, results, {"protocol": "hq", "seed": 3}, uncertainty=uncertainty)
    save(folder / "figures" / "curves.png", ramp())
    return folder


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    reader.close()
    assert not reader.open
    return reader


def test_the_page_is_whole_and_loads_nothing(run, tmp_path, capsys):
    report.main([str(run), str(run), "--output", str(tmp_path / "report.html")])
    page = read(tmp_path / "report.html")
    assert len(page.pictures) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    picture = Image.open(io.BytesIO(base64.b64decode(page.pictures[0].partition(",")[2])))
    assert picture.size == ramp().shape[1::-1]
    assert "written: " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


def test_figures_are_those_of_the_results_and_names_are_no_markup(run, tmp_path):
    report.main([str(run), "--output", str(tmp_path / "report.html")])
    cells = read(tmp_path / "report.html").cells
    assert cells[:6] == ["system", "gt-box", NAME, "50.0 / 25.0 / -", "other", "50.0 / 25.0 / -"]
    assert cells[6:] == [
        "horses", "gt-box", "other, mIoU", "+3.0 (+1.0 to +5.0)", "other, mBIoU", "≈ +3.0 (-1.0 to +5.0)",
        "other, mSF", "≈ +3.0 (+0.0 to +5.0)",
    ]  # fmt: skip
    assert '"seed": 3' in report.html.unescape((tmp_path / "report.html").read_text())


def test_the_page_says_what_it_is_of_and_what_the_protocol_found(tmp_path):
    kinds = {f"noise-{number}": {"miou": 0.5, "mbiou": 0.25, "msf": 0.75} for number in range(8)}
    meta = {
        "protocol": "wobble", "count": 6, "seed": 3, "prompts": ("gt-box",), "image_size": 64, "version": "1.2.3",
        "data": {"horses": {"pictures": 1200, "groups": 7}},
        "run": {"command": ["stablesam eval wobble", "--limit", "a b"]},
    }  # fmt: skip
    tables.write_results(tmp_path / "run", {"one": {"horses": kinds}, "two": {"horses": kinds}}, meta)
    (tmp_path / "run" / "wobble.md").write_text("# Title\n\n## one\n\nA <verdict>.\n\n| signal |\n|---|\n")
    for name in ("worst_1", "best_1", "worst_0", "best_0", "best_dog"):  # the last one is a user's own
        save(tmp_path / "run" / "figures" / f"{name}.png", ramp())
    report.main([str(tmp_path / "run"), "--output", str(tmp_path / "report.html")])
    text = (tmp_path / "report.html").read_text()
    assert "horses: 1,200 pictures in 7 groups" in text
    assert "6 for each object, seed 3" in text
    assert "64 pixels" in text
    assert "stablesam eval wobble --limit &#x27;a b&#x27;" in text
    assert "<h3>one</h3><p>A &lt;verdict&gt;.</p>" in text
    assert "signal" not in text
    cells = read(tmp_path / "report.html").cells
    assert cells[:4] == ["prompts", "one", "two", "noise-0"]  # a row for each of many kinds
    order = [text.index(f'alt="{name}"') for name in ("best_0", "worst_0", "best_1", "worst_1")]
    assert order == sorted(order)
    summary = (tmp_path / "run" / "results.md").read_text()
    assert "- Data: horses: 1,200 pictures in 7 groups\n" in summary
    assert "- Command: `stablesam eval wobble --limit 'a b'`\n" in summary


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), ("{", "is no results.json"), ('{"systems": {}}', "is no results.json"),
     (json.dumps({"systems": {"a": {"b": {"c": {}}}}}), "is no results.json"), ("[1]", "is no results.json")],
)  # fmt: skip
def test_a_folder_without_sound_results_is_one_line(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit) as end:
        report.main([str(tmp_path), "--output", str(tmp_path / "report.html")])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
