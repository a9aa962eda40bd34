"""`clicks` clicks where the error is deepest, or where people might, and counts the clicks to a good mask."""

import csv
import json

import cv2
import numpy as np
import pytest
import scipy.ndimage

from eval.protocols import clicks as module
from eval.protocols import systems
from eval.protocols.clicks import (
    CLICKS,
    METRICS,
    MOST,
    RULES,
    Click,
    ClicksConfig,
    begin,
    clicks,
    found,
    next_click,
    of_session,
    read_user_clicks,
    robustness,
    session,
)
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.errors import InputError
from tests.reference import small
from tests.reference.squares import SQUARES, nano

TARGET = np.zeros((40, 64), bool)
TARGET[5:30, 10:50] = True
EMPTY = np.zeros_like(TARGET)


def draw(kind, mask=EMPTY, done=(), seed=0):
    return next_click(TARGET, mask, done, kind=kind, rng=np.random.default_rng(seed))


def depth(error):
    """Distance from what is no error, the outside of the picture included."""
    return scipy.ndimage.distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1]


def test_the_usual_click_is_farthest_from_the_border():
    click = draw("usual")
    assert click.on_object
    assert depth(TARGET)[click.y, click.x] == depth(TARGET).max()


def test_the_pictures_edge_is_a_border():
    click = next_click(np.ones((9, 9), bool), np.zeros((9, 9), bool), [], kind="usual", rng=np.random.default_rng(0))
    assert click == Click(4, 4, True)


@pytest.mark.parametrize("kind", CLICKS)
def test_a_click_is_on_what_is_missing_or_on_what_is_too_much_whichever_is_deeper(kind):
    missing = TARGET.copy()
    missing[5:25, 10:30] = False
    too_much = TARGET.copy()
    too_much[30:38, 40:60] = True
    for seed in range(5):
        click = draw(kind, missing, seed=seed)
        assert click.on_object
        assert not missing[click.y, click.x]
        click = draw(kind, too_much, seed=seed)
        assert not click.on_object
        assert (too_much & ~TARGET)[click.y, click.x]


def test_likely_and_unlikely_clicks_come_from_the_ends_of_the_density():
    of_target = depth(TARGET)[TARGET]
    density = np.sort(of_target) / of_target.sum()
    low, high = (np.sort(of_target)[np.searchsorted(np.cumsum(density), share)] for share in (0.1, 0.9))
    for seed in range(30):
        click = draw("likely", seed=seed)
        assert depth(TARGET)[click.y, click.x] >= high
        click = draw("unlikely", seed=seed)
        assert depth(TARGET)[click.y, click.x] <= low


def test_drawn_clicks_are_as_frequent_as_their_density_says():
    near_border = depth(TARGET) < 4
    drawn = {kind: [draw(kind, seed=seed) for seed in range(600)] for kind in ("distance", "uniform")}
    shares = {kind: np.mean([near_border[one.y, one.x] for one in of]) for kind, of in drawn.items()}
    of_target = depth(TARGET) * TARGET
    assert shares["distance"] == pytest.approx((of_target * near_border).sum() / of_target.sum(), abs=0.06)
    assert shares["uniform"] == pytest.approx((TARGET & near_border).sum() / TARGET.sum(), abs=0.06)


def test_no_pixel_is_clicked_twice_and_none_is_left_at_last():
    target = np.zeros((9, 9), bool)
    target[3:5, 3] = True
    rng = np.random.default_rng(0)
    done = []
    for _ in range(2):
        done.append(next_click(target, np.zeros((9, 9), bool), done, kind="usual", rng=rng))
    assert {(one.x, one.y) for one in done} == {(3, 3), (3, 4)}
    assert next_click(target, np.zeros((9, 9), bool), done, kind="usual", rng=rng) is None


@pytest.mark.parametrize(
    ("ious", "figures"),
    [
        ([0.5, 0.82, 0.81, 0.91], {"first": 0.5, "noc80": 2, "noc85": 4, "noc90": 4}),
        ([0.95], {"first": 0.95, "noc80": 1, "noc85": 1, "noc90": 1}),
        ([0.86] * MOST, {"first": 0.86, "noc80": 1, "noc85": 1, "noc90": MOST}),
        ([0.3], {"first": 0.3, "noc80": MOST, "noc85": MOST, "noc90": MOST}),  # nothing was left to click at
    ],
)
def test_clicks_are_counted_to_the_first_good_mask(ious, figures):
    assert of_session(ious) == figures


def planted(monkeypatch, masks):
    """Makes `answer` give these masks, one after the other; returns what it was asked."""
    asked = []

    def answer(predictor, picture, done, logits, rule):
        asked.append((list(done), logits))
        return masks[len(asked) - 1], np.full((1, 4, 4), len(asked))

    monkeypatch.setattr(module, "answer", answer)
    return asked


def test_a_session_keeps_all_clicks_feeds_the_last_logits_and_ends_when_the_mask_is_good(monkeypatch):
    half = TARGET.copy()
    half[:, 30:] = False
    asked = planted(monkeypatch, [half, TARGET])
    places = iter([Click(20, 10, True), Click(40, 10, True)])
    ious = session(None, None, TARGET, lambda mask, done: next(places), "single")
    assert ious == [0.5, 1.0]
    assert [len(done) for done, _ in asked] == [1, 2]
    assert asked[0][1] is None
    assert (asked[1][1] == 1).all()


def test_twenty_clicks_are_the_most(monkeypatch):
    planted(monkeypatch, [EMPTY] * MOST)
    assert session(None, None, TARGET, lambda mask, done: Click(20, 10, True), "single") == [0.0] * MOST


class Recorder:
    """A predictor that records which masks are asked for; the second of three is the best."""

    def __init__(self):
        self.asked = []
        self.sam = nano()[0].sam

    def predict_low_res(self, points, labels, mask_input, multimask_output, picture):
        self.asked.append(multimask_output)
        count = 3 if multimask_output else 1
        side = self.sam.config.mask_size
        return np.stack([np.full((side, side), float(number)) for number in range(count)]), np.arange(count) % 2


@pytest.mark.parametrize(("rule", "multi"), [("single", [0, 0]), ("best", [1, 1]), ("tools", [1, 0])])
def test_a_rule_says_when_the_best_of_three_is_taken(rule, multi):
    predictor, (real, _) = Recorder(), nano()
    picture = real.encode(SQUARES[0])
    for count in (1, 2):
        _, logits = module.answer(predictor, picture, [Click(1, 1, True)] * count, None, rule)
        assert (logits == (1 if predictor.asked[-1] else 0)).all()
    assert predictor.asked == [bool(one) for one in multi]


def test_robustness_compares_kinds_of_clicks():
    summary = {
        f"{kind}, best": {"first": 0.5, "noc80": 1.0, "noc85": 1.0, "noc90": noc}
        for kind, noc in (("usual", 4.0), ("distance", 5.0), ("likely", 4.0), ("unlikely", 8.0))
    }
    records = [{"users": [{"best": [0.2, 0.4]}, {"best": [0.6, 0.6]}]}, {"users": [{"best": []}]}]
    assert robustness(summary, records) == {
        "best": {
            "rise": pytest.approx(0.25),
            "spread": pytest.approx(1.0),
            "users": pytest.approx(0.45),
            "users_deviation": pytest.approx(0.05),
        }
    }


RELEASED = """dataset,full_stem,click_type,x,y
GrabCut,a,first,20,10
GrabCut,a,first,900,-4
GrabCut,a,subseq,1,1
DAVIS,a,first,3,3
GrabCut,b_______7,first,30,20
"""


def test_the_released_clicks_are_those_of_the_data_and_the_object(tmp_path):
    (tmp_path / "clicks.csv").write_text(RELEASED)
    users = read_user_clicks(tmp_path / "clicks.csv")
    one = LabelledPicture("grabcut/a", np.zeros((40, 64, 3), np.uint8), TARGET[None], (1,))
    assert module._clicks_of(users, one, 0) == [Click(20, 10, True), Click(63, 0, True)]
    two = LabelledPicture("grabcut/b", np.zeros((40, 64, 3), np.uint8), np.stack([TARGET, TARGET]), (7, 9))
    assert module._clicks_of(users, two, 0) == [Click(30, 20, True)]
    assert module._clicks_of(users, two, 1) == []


@pytest.mark.parametrize("text", ["a,b\n1,2\n", RELEASED.replace("20,10", "x,10"), RELEASED.replace("20,10", "nan,10")])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / "clicks.csv").write_text(text)
    with pytest.raises(InputError, match=r"clicks\.csv: is no clicks\.csv of RClicks"):
        read_user_clicks(tmp_path / "clicks.csv")


@pytest.mark.parametrize("lines", ["", "GrabCut,a,first,1,2\nDAVIS,b,first,1,2\n"])
def test_clicks_on_no_data_that_is_given_are_refused(tmp_path, lines):
    (tmp_path / "clicks.csv").write_text(f"dataset,full_stem,click_type,x,y\n{lines}")
    folder = small.save_pairs(tmp_path / "horses", 1)
    config = ClicksConfig(
        system=("base",), data_dir=(folder,), output=tmp_path / "out", user_clicks=tmp_path / "clicks.csv"
    )
    on = "davis, grabcut" if lines else "nothing"
    with pytest.raises(InputError, match=rf"clicks\.csv: has clicks on {on}, and no data folder is called so"):
        clicks(config)


@pytest.mark.slow
def test_a_picture_is_clicked_through_and_repeats_to_the_bit():
    predictor, _ = nano()
    height, width = SQUARES[0].shape[:2]
    target = cv2.resize(TARGET.astype(np.uint8), (width, height)) > 0
    labelled = LabelledPicture("squares/a", SQUARES[0], target[None], (1,))
    config = ClicksConfig(system=(), data_dir=(), output=None, clicks=("usual", "uniform"), rules=("single", "best"))
    users = {("squares", "a"): [Click(5, 5, True)]}
    first, second = (begin(predictor, labelled, config, users)() for _ in range(2))
    assert first == second
    (ious,) = first["objects"]
    assert list(ious) == ["usual, single", "usual, best", "uniform, single", "uniform, best"]
    assert all(1 <= len(of) <= MOST and all(0 <= iou <= 1 for iou in of) for of in ious.values())
    assert {rule: len(of) for rule, of in first["users"][0].items()} == {"single": 1, "best": 1}
    result = found([first])
    assert result.summary["usual, single"]["first"] == pytest.approx(ious["usual, single"][0])
    assert [line["kind"] for line in result.lines] == list(ious)


@pytest.mark.slow
def test_the_command_writes_tables_and_a_line_for_each_object(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    monkeypatch.setattr(module, "MOST", 3)
    folder = small.save_pairs(tmp_path / "horses", 2)
    (tmp_path / "clicks.csv").write_text("dataset,full_stem,click_type,x,y\nHorses,00,first,20,20\n")
    with small.quick_compilation():
        clicks(
            ClicksConfig(
                system=("base", "base+plugin"),
                data_dir=(folder,),
                output=tmp_path / "out",
                user_clicks=tmp_path / "clicks.csv",
            )
        )
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    for sets in stored["systems"].values():
        assert list(sets["horses"]) == [f"{kind}, {rule}" for kind in CLICKS for rule in RULES]
        for values in sets["horses"].values():
            assert list(values) == list(METRICS)
            assert 1 <= values["noc80"] <= values["noc85"] <= values["noc90"] <= 3
    assert set(stored["robustness"]["base"]["horses"]["best"]) == {"rise", "spread", "users", "users_deviation"}
    with open(tmp_path / "out" / "per_object.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * len(CLICKS) * len(RULES)
    text = (tmp_path / "out" / "results.md").read_text()
    assert "IoU after one click in percent, NoC80 / NoC85 / NoC90 in clicks" in text
    assert "base, horses, best: rise" in capsys.readouterr().out
