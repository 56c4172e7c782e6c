"""Somebody else's boxes: every spelling gives the same predictions, and nothing wrong gets in unseen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation import external, predictions
from llm_wrapper.evaluation.comparison import complete_predictions
from llm_wrapper.metrics import summarize
from llm_wrapper.records import Box, Prediction, Sample
from tests.evaluation.made import made

WIDTH, HEIGHT = 400, 200


def sample(number: int, expression: str, *, image: int | None = None, folder: str = "a") -> Sample:
    """Targets stand side by side, each of another size, so that no two formats fit them all."""
    image = number if image is None else image
    left = 20.0 + 25 * number
    return Sample(
        sample_id=f"s{number}",
        ref_id=f"r{number}",
        image_id=str(image),
        image_path=f"{folder}/COCO_train2014_{image:012d}.jpg",
        image_wh=(WIDTH, HEIGHT),
        expression=expression,
        target=Box(left, 80.0 + number, left + 100, 190.0),
    )


SAMPLES = [sample(n, f"the cat no. {n}") for n in range(1, 11)]
DATASET = Dataset("mine", "val", SAMPLES, "0")


def corners(each: Sample) -> list[float]:
    assert each.target is not None
    return list(each.target.xyxy)


def sized(each: Sample) -> list[float]:
    x0, y0, x1, y1 = corners(each)
    return [x0, y0, x1 - x0, y1 - y0]


def scaled(values: Sequence[float], unit: float) -> list[float]:
    return [unit * value / side for value, side in zip(values, (WIDTH, HEIGHT) * 2, strict=True)]


def lines(tmp_path: Path, rows: Sequence[object], name: str = "white box.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(path: Path, dataset: Dataset = DATASET, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        external.read_external_predictions(path, dataset, **options)
    return str(error.value)


ROWS: dict[str, tuple[Callable[[Sample], dict[str, Any]], str | None]] = {
    "ours": (lambda s: {"sample_id": s.sample_id, "box": corners(s), "score": 7, "note": [1]}, None),
    "box-as-told": (lambda s: {"sample_id": s.sample_id, "box": sized(s)}, "xywh"),
    "bbox-xywh": (lambda s: {"sent_id": s.sample_id, "bbox_xywh": sized(s)}, None),
    "said-twice": (lambda s: {"sent_id": s.sample_id, "box_xywh": sized(s)}, "xywh"),
    "bbox-as-told": (lambda s: {"sample_id": s.sample_id, "bbox": corners(s)}, "xyxy"),
    "shares": (lambda s: {"sample_id": s.sample_id, "bbox": scaled(corners(s), 1)}, "xyxy_norm"),
    "shares-xywh": (lambda s: {"sample_id": s.sample_id, "bbox": scaled(sized(s), 1)}, "xywh_norm"),
    "thousandths": (lambda s: {"sample_id": s.sample_id, "box": scaled(corners(s), 1000)}, "xyxy_1000"),
    "thousandths-xywh": (lambda s: {"sample_id": s.sample_id, "box": scaled(sized(s), 1000)}, "xywh_1000"),
    "hc-refloco": (lambda s: {"id": s.sample_id, "pred_bbox": sized(s), "format": "xywh"}, None),
    "coco-results-with-words": (
        lambda s: {"image_id": int(s.image_id), "caption": s.expression, "category_id": 1, "bbox": sized(s), "id": 1},
        "xywh",
    ),
    "file-and-words": (
        lambda s: {"image": Path(s.image_path or "").name, "expression": s.expression, "box": corners(s)},
        None,
    ),
    "other-folder": (
        lambda s: {"file_name": f"/x/{Path(s.image_path or '').name}", "sent": s.expression, "box_xyxy": corners(s)},
        None,
    ),
    "file-of-a-ref": (
        lambda s: {
            "file_name": f"COCO_train2014_{int(s.image_id):012d}_491042.jpg",
            "sentence": s.expression,
            "box": corners(s),
        },
        None,
    ),
    "ref-and-words": (lambda s: {"ref_id": s.ref_id, "expression": s.expression, "box": corners(s)}, None),
    "words-as-typed": (
        lambda s: {"sample_id": s.sample_id, "expression": f"{s.expression.title()}!", "box": corners(s)},
        None,
    ),
}


@pytest.mark.parametrize("as_list", [False, True], ids=["lines", "list"])
@pytest.mark.parametrize("form", ROWS)
def test_every_form_gives_the_same_predictions(tmp_path: Path, form: str, as_list: bool) -> None:
    row, told = ROWS[form]
    path = lines(tmp_path, [row(each) for each in reversed(SAMPLES)])
    if as_list:
        path.write_text(json.dumps([row(each) for each in SAMPLES], indent=1), encoding="utf-8-sig")
    found = external.read_external_predictions(path, DATASET, box_format=told)  # type: ignore[arg-type]
    assert [each.sample_id for each in found.predictions] == [each.sample_id for each in SAMPLES]
    assert {each.system for each in found.predictions} == {"white box"}
    for prediction, each in zip(found.predictions, SAMPLES, strict=True):
        assert prediction.box is not None
        assert prediction.box.xyxy == pytest.approx(corners(each))
        assert (prediction.target, prediction.expression, prediction.image_wh) == (
            each.target,
            each.expression,
            each.image_wh,
        )
        assert (prediction.candidates, prediction.probability, prediction.failure) == ((), None, None)
    assert found.notes == []
    assert summarize(found.predictions).p_at_1 == 1.0


def test_one_object_from_sample_id_to_box(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({each.sample_id: sized(each) for each in SAMPLES[1:]} | {"s1": None}))
    found = external.read_external_predictions(path, DATASET, box_format="xywh").predictions
    assert [each.box for each in found] == [None, *(each.target for each in SAMPLES[1:])]
    assert [each.decided_by for each in found] == ["no_candidate", *["detector"] * 9]


def test_missing_ones_count_as_wrong_and_are_named(tmp_path: Path) -> None:
    path = lines(tmp_path, [{"sample_id": each.sample_id, "box": corners(each)} for each in SAMPLES[:3]])
    found = external.read_external_predictions(path, DATASET, name="glip")
    assert found.notes == ["7 of 10 samples have no prediction and count as wrong: s4, s5, s6, s7, s8, ..."]
    summary = summarize(found.predictions)
    assert (summary.system, summary.n, summary.p_at_1) == ("glip", 10, 0.3)
    assert summary.decided_by == {"missing": 7, "detector": 3}
    assert complete_predictions(found.predictions, SAMPLES) == found.predictions


@pytest.mark.parametrize(
    "box",
    [[50, 60, 50, 90], [50, 60, 40, 90], [50, 60, float("nan"), 90], [0, 0, float("inf"), 9]],
    ids=["no-area", "reversed", "nan", "infinite"],
)
def test_a_box_that_is_none_counts_as_wrong(tmp_path: Path, box: list[float]) -> None:
    rows = [{"sample_id": each.sample_id, "box": corners(each)} for each in SAMPLES]
    rows[4]["box"] = box
    found = external.read_external_predictions(lines(tmp_path, rows), DATASET)
    assert (found.predictions[4].box, found.predictions[4].failure) == (None, external.UNUSABLE_BOX)
    assert found.notes == [
        "1 samples have an answer without a usable box (reversed, without area or not finite), wrong: s5"
    ]
    assert summarize(found.predictions).failures == {"unusable_box": 1}


# what is refused


def test_all_problems_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        [
            {"sample_id": "s1", "box": corners(SAMPLES[0])},
            {"sample_id": "s1", "box": "left"},
            {"sample_id": "s1", "box": [1, 2, 30, 40]},
            {"image_id": 5, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5},
            {"sample_id": "s2"},
            {"sample_id": "s3", "box": ["1", 2, 30, 4]},
            {"sample_id": "s4", "box": [1, 2, 30, 40], "pred_bbox": [1, 2, 30, 40]},
            {"sample_id": "s5", "expression": "a dog", "box": [1, 2, 30, 40]},
            {"sample_id": "s6", "bbox_xywh": [1, 2, 30, 40], "format": "xyxy"},
            {"sample_id": "s6", "box": True},
            {"image_id": "7", "expression": "the cats no 7", "box": [1, 2, 30, 40]},
            {"box": [1, 2, 30, 40]},
            {"sample_id": "s8", "bbox": [1, 2, 30, 40]},
            [1, 2, 30, 40],
        ],
    )
    with path.open("a") as stream:
        stream.write('\n{"sample_id": "s9", "box": [1,')
    told = refused(path)
    assert told.startswith(f"{path} cannot be scored on mine val (13 problems):")
    for line, part in {
        "line 2": "sample 's1' was answered in line 1 already",
        "line 3": "sample 's1' was answered in line 1 already",
        "line 5": "no box: give one of the keys box, bbox",
        "line 6": "is no box: its items are not all numbers",
        "line 7": "several boxes (box, pred_bbox)",
        "line 8": "sample 's5' of mine val is 'the cat no. 5', the prediction is for 'a dog'",
        "line 9": "the box is said to be xywh and xyxy",
        "line 10": "True is no box: give four numbers",
        "line 11": "has no expression 'the cats no 7' in mine val; did you mean 'the cat no. 7'?",
        "line 12": "names no sample: give 'sample_id', or 'image' and 'expression'",
        "line 14": "must be an object",
        "line 16": "is not valid JSON",
    }.items():
        assert [row for row in told.splitlines() if f"- {line}" in row and part in row], (line, told)
    assert "the format of 2 boxes is not declared" in told
    assert "(line 4, line 13)" in told


WRONG_FORMATS: dict[str, tuple[Callable[[Sample], list[float]], str, str]] = {
    "xywh-as-xyxy": (sized, "xyxy", "xywh"),
    "xyxy-as-xywh": (corners, "xywh", "xyxy"),
    "shares-as-pixels": (lambda s: scaled(corners(s), 1), "xyxy", "xyxy_norm"),
    "pixels-as-shares": (corners, "xyxy_norm", "xyxy"),
    "shares-as-thousandths": (lambda s: scaled(corners(s), 1), "xyxy_1000", "xyxy_norm"),
    "thousandths-as-pixels": (lambda s: scaled(corners(s), 1000), "xyxy", "xyxy_1000"),
    "percent-as-pixels": (lambda s: scaled(corners(s), 100), "xyxy", "xyxy_percent"),
    "y-first": (lambda s: [corners(s)[place] for place in (1, 0, 3, 2)], "xyxy", "yxyx"),
}


@pytest.mark.parametrize("case", WRONG_FORMATS)
def test_a_wrong_format_is_refused_with_the_one_that_fits(tmp_path: Path, case: str) -> None:
    written, option, hint = WRONG_FORMATS[case]
    path = lines(tmp_path, [{"sample_id": each.sample_id, "box": written(each)} for each in SAMPLES])
    told = refused(path, box_format=option)
    assert f"read as {option}, the boxes overlap with the targets by a mean IoU of" in told
    assert re.search(rf"(give|as) --box-format {hint}(?!\w)", told)
    assert "line " in told


def test_boxes_on_images_of_another_size_are_refused(tmp_path: Path) -> None:
    rows = [{"sample_id": each.sample_id, "box": [10 * value for value in corners(each)]} for each in SAMPLES]
    assert "images of another size?" in refused(lines(tmp_path, rows))


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        pytest.param(lambda s: scaled(corners(s), 1), "xyxy_norm (10 of 10, mean IoU with the targets 1.00)", id="one"),
        pytest.param(sized, "xywh (10 of 10, mean IoU with the targets 1.00), ", id="several"),
        pytest.param(lambda s: [9, 9, 3, -4], "fit no format", id="none"),
    ],
)
def test_a_format_that_is_not_declared_is_never_guessed(
    tmp_path: Path, written: Callable[[Sample], list[float]], hint: str
) -> None:
    path = lines(tmp_path, [{"sample_id": each.sample_id, "bbox": written(each)} for each in SAMPLES])
    told = refused(path)
    assert "the format of 10 boxes is not declared" in told
    assert hint in told


# the forms of an answer


GOOD = corners(SAMPLES[4])
QWEN = f'```json\n[{{"bbox_2d": {GOOD}, "label": "x"}}]\n```'


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"bbox_2d": GOOD}, id="qwen-key"),
        pytest.param({"box": [GOOD]}, id="nested"),
        pytest.param({"box": [GOOD[:2], GOOD[2:]]}, id="two-points"),
        pytest.param({"box": dict(zip(("x1", "y1", "x2", "y2"), GOOD, strict=True))}, id="object"),
        pytest.param({"box": str(GOOD)}, id="box-as-text"),
        pytest.param({"response": QWEN}, id="fenced"),
        pytest.param({"answer": f"The cat is at {GOOD}, I think."}, id="prose"),
        pytest.param({"output": "<box>({},{}),({},{})</box>".format(*GOOD)}, id="pairs"),
        pytest.param({"text": f'{{"bbox": {GOOD}}}', "label": "x"}, id="text-with-json"),
    ],
)
def test_answers_of_models_are_read(tmp_path: Path, given: dict[str, Any]) -> None:
    rows: list[dict[str, Any]] = [{"sample_id": each.sample_id, "box": corners(each)} for each in SAMPLES]
    rows[4] = {"sample_id": "s5", **given}
    found = external.read_external_predictions(lines(tmp_path, rows), DATASET)
    assert (found.predictions[4].box, found.notes) == (SAMPLES[4].target, [])


@pytest.mark.parametrize(
    ("given", "unit"),
    [
        pytest.param(lambda box: {"box_2d": box}, 1000, id="gemini-key"),
        pytest.param(lambda box: {"response": f'```json\n[{{"box_2d": {box}}}]\n```'}, 1000, id="gemini-text"),
        pytest.param(lambda box: {"response": "".join(f"<loc{round(v):04d}>" for v in box)}, 1024, id="paligemma"),
    ],
)
def test_families_that_write_y_first(tmp_path: Path, given: Callable[[list[float]], Any], unit: float) -> None:
    rows = []
    for each in SAMPLES:
        x0, y0, x1, y1 = scaled(corners(each), unit)
        rows.append({"sample_id": each.sample_id, **given([y0, x0, y1, x1])})
    found = external.read_external_predictions(lines(tmp_path, rows), DATASET)
    assert summarize(found.predictions).p_at_1 == 1.0


@pytest.mark.parametrize(
    ("given", "note"),
    [
        pytest.param({"box": []}, "1 of 10 samples have no box and count as wrong: s5", id="empty"),
        pytest.param({"box": None}, "1 of 10 samples have no box and count as wrong: s5", id="null"),
        pytest.param({"box": [470]}, "(not four numbers), wrong: s5", id="one-number"),
        pytest.param({"box": [1, 2, 3]}, "(not four numbers), wrong: s5", id="three-numbers"),
        pytest.param({"box": [0, 0, 0, 0]}, "(reversed, without area or not finite), wrong: s5", id="zeros"),
        pytest.param({"bbox": [0, 0, 0, 0]}, "(reversed, without area or not finite), wrong: s5", id="zeros-of-any"),
        pytest.param({"response": "There is no cat."}, "(no box in the text), wrong: s5", id="refusal"),
        pytest.param({"response": "[" * 100_000}, "(no box in the text), wrong: s5", id="brackets"),
        pytest.param({"response": "(1,2)" + " " * 100_000}, "(no box in the text), wrong: s5", id="spaces"),
        pytest.param({"response": "[" + "1" * 100_000}, "(no box in the text), wrong: s5", id="digits"),
    ],
)
def test_answers_without_a_box_are_counted_as_wrong(tmp_path: Path, given: dict[str, Any], note: str) -> None:
    rows: list[dict[str, Any]] = [{"sample_id": each.sample_id, "box": corners(each)} for each in SAMPLES]
    rows[4] = {"sample_id": "s5", **given}
    found = external.read_external_predictions(lines(tmp_path, rows), DATASET)
    assert found.predictions[4].box is None
    assert note in found.notes[0]
    assert summarize(found.predictions).p_at_1 == 0.9


def test_of_several_boxes_the_first_is_taken_and_said(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"sample_id": each.sample_id, "box": corners(each)} for each in SAMPLES]
    rows[4]["box"] = [corners(SAMPLES[4]), corners(SAMPLES[0])]
    rows[5] = {"sample_id": "s6", "response": f"{corners(SAMPLES[5])} or {corners(SAMPLES[0])}"}
    found = external.read_external_predictions(lines(tmp_path, rows), DATASET)
    assert found.notes == ["2 answers hold several boxes, and the first one is taken: line 5, line 6"]
    assert summarize(found.predictions).p_at_1 == 1.0


# samples that only one of file and data has


def test_predictions_for_other_samples_are_counted_and_ignored(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"sample_id": each.sample_id, "box": corners(each)} for each in SAMPLES]
    rows += [{"sample_id": "t1", "box": GOOD}, {"image": "b/none.jpg", "expression": "x", "box": GOOD}]
    found = external.read_external_predictions(lines(tmp_path, rows), DATASET)
    assert found.notes == [
        "2 of 12 predictions are not for mine val, ignored: "
        "line 11: sample 't1' is not in mine val, line 12: image 'b/none.jpg' is not in mine val"
    ]
    assert "2 of 2 predictions are not for mine val: line 1: sample 't1'" in refused(lines(tmp_path, rows[10:]))


@pytest.mark.parametrize("name", ["COCO_train2014_{:012d}.jpg", "{:012d}.jpg", "{}.jpg", "x\\{:012d}.JPG", "{}"])
@pytest.mark.parametrize("key", ["image", "image_id", "img_id"])
def test_images_are_named_in_any_spelling(tmp_path: Path, name: str, key: str) -> None:
    rows = [
        {key: name.format(int(each.image_id)), "sents": each.expression.title() + ".", "box": corners(each)}
        for each in SAMPLES
    ]
    assert summarize(external.read_external_predictions(lines(tmp_path, rows), DATASET).predictions).p_at_1 == 1.0


TWINS = Dataset(
    "mine", "val", [*SAMPLES, sample(11, "the cat", image=50), sample(12, "the cat", image=50)], "0"
)  # the same words of one image, about two objects


def of_twins(*boxes: list[float]) -> list[dict[str, Any]]:
    rest: list[dict[str, Any]] = [{"sample_id": each.sample_id, "box": corners(each)} for each in SAMPLES]
    return [*rest, *({"image_id": 50, "expression": "the cat", "box": box} for box in boxes)]


A_BOX, ANOTHER = [10.0, 10.0, 90.0, 90.0], [20.0, 10.0, 90.0, 90.0]


@pytest.mark.parametrize("boxes", [(A_BOX,), (A_BOX, A_BOX)], ids=["once", "each-alike"])
def test_one_answer_serves_all_samples_of_the_same_words(tmp_path: Path, boxes: tuple[list[float], ...]) -> None:
    found = external.read_external_predictions(lines(tmp_path, of_twins(*boxes)), TWINS)
    assert [each.box for each in found.predictions[-2:]] == [Box(*A_BOX), Box(*A_BOX)]
    (note,) = found.notes
    assert "one box answers several samples" in note
    assert "line 11: 'the cat' of image '50' (samples s11, s12)" in note


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        pytest.param((A_BOX, ANOTHER), "has another box in line 11: which is meant? use 'sample_id'", id="ambiguous"),
        pytest.param((A_BOX, A_BOX, A_BOX), "line 13: 'the cat' of image '50'", id="too-many"),
    ],
)
def test_answers_to_the_same_words_that_differ_are_refused(
    tmp_path: Path, boxes: tuple[list[float], ...], told: str
) -> None:
    message = refused(lines(tmp_path, of_twins(*boxes)), TWINS)
    assert told in message
    assert "(1 problem)" in message


def test_an_answer_by_words_and_one_by_id_are_one_too_many(tmp_path: Path) -> None:
    rows = [*of_twins(A_BOX), {"sample_id": "s12", "box": A_BOX}]
    assert "line 12: sample 's12' was answered in line 11 already" in refused(lines(tmp_path, rows), TWINS)


def test_a_file_name_of_two_images_needs_its_folder(tmp_path: Path) -> None:
    both = [sample(1, "a cat", folder="a"), Sample(**{**_fields(sample(1, "a cat", folder="b")), "image_id": "other"})]
    name = Path(both[0].image_path or "").name
    dataset = Dataset("mine", "val", both, "0")
    rows = [{"image": f"{folder}/{name}", "expression": "a cat", "box": corners(both[0])} for folder in ("a", "b")]
    assert external.read_external_predictions(lines(tmp_path, rows), dataset).notes == []
    told = refused(lines(tmp_path, [{**rows[0], "image": name}]), dataset)
    assert f"line 1: '{name}' is shared by images 1, other: use image_id" in told


def _fields(each: Sample) -> dict[str, Any]:
    named = {name: getattr(each, name) for name in Sample.__dataclass_fields__}
    return {**named, "sample_id": "s2"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param("", "is neither JSON", id="empty"),
        pytest.param("s1,1,2,3,4\n", "is neither JSON", id="csv"),
        pytest.param("[]", "holds no prediction", id="empty-list"),
        pytest.param('[{"sample_id": "s1", "box":', "is not valid JSON", id="cut-list"),
        pytest.param('{"s1": [1, 2, 3, 4], "s1": [1, 2, 3, 4]}', "is given twice in one object", id="key-twice"),
        pytest.param('{"annotations": [{"id": 1}], "info": {}}', "no box: give one of the keys", id="other-json"),
        pytest.param("[[" * 9999, "nested more than 64 levels", id="deep"),
        pytest.param("[[" * 40 + "]]" * 40, "nested more than 64 levels", id="nested"),
        pytest.param('[{"sample_id": ' + "9" * 5000 + "}]", "digits", id="digits"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert told in refused(path, box_format="xyxy")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "absent.json does not exist" in refused(tmp_path / "absent.json")
    assert "absent.parquet cannot be read" in refused(tmp_path / "absent.parquet")


# our own Parquet


def ours(system: str, each: Sample, **changes: Any) -> Prediction:
    copied = {name: getattr(each, name) for name in ("image_id", "expression", "kind", "target", "image_wh")}
    return made(each.sample_id, each.target, **{"system": system, **copied, **changes})


def test_our_own_predictions_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "predictions-val.parquet"
    rows = [ours("rule", each) for each in SAMPLES]
    predictions.save_predictions(path, rows)
    assert external.read_external_predictions(path, DATASET).predictions == rows
    assert {each.system for each in external.read_external_predictions(path, DATASET, name="other").predictions} == {
        "other"
    }
    assert "omit --box-format xywh" in refused(path, box_format="xywh")


def test_one_of_several_systems_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "predictions-val.parquet"
    predictions.save_predictions(path, [*(ours("rule", each) for each in SAMPLES[:9]), ours("oracle", SAMPLES[0])])
    assert "choose one with --name (rule, oracle)" in refused(path)
    assert "choose one with --name (rule, oracle)" in refused(path, name="rul")
    found = external.read_external_predictions(path, DATASET, name="rule")
    assert found.notes == ["1 of 10 samples have no prediction and count as wrong: s10"]


def test_our_own_predictions_of_other_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictions-val.parquet"
    predictions.save_predictions(
        path, [ours("rule", SAMPLES[0], sample_id="z"), ours("rule", SAMPLES[1], target=Box(0, 0, 1, 1))]
    )
    told = refused(path)
    assert "sample 'z' was not asked for" in told
    assert "sample 's2' has target" in told
