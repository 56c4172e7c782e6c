import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.predictions import SCHEMA, load_predictions, save_predictions
from llm_wrapper.metrics import summarize
from llm_wrapper.records import Box, Candidate, Prediction

FULL = Prediction(
    system="flo2-llama3",
    sample_id="1",
    image_id="a",
    expression="left \u00e9\u4e2d\U0001f993 \"zebra\"\n, 'x'",
    kind="spatial",
    target=Box(0.1, 0.2, 1 / 3, 1e9),
    box=Box(0.0, 0.0, 1e-9, 2.0),
    decided_by="llm",
    probability=0.1 + 0.2,
    probabilities=(0.1 + 0.2, 0.7 - 1e-17),
    failure=None,
    candidates=(
        Candidate(Box(0.0, 0.0, 1e-9, 2.0), "", None, "flo2", "od"),
        Candidate(Box(0.0, 0.0, 5.0, 2.0), "zebra", 1 / 7, "gd", "rec"),
    ),
    origins=(3, 0),
    further_targets=(Box(1.0, 2.0, 3.0, 4.0), Box(0.5, 0.5, 1 / 3 + 1, 7.0)),
    image_wh=(640, 480),
)
BARE = replace(
    FULL,
    sample_id="2",
    kind=None,
    target=None,
    box=None,
    decided_by="no_candidate",
    probability=None,
    probabilities=None,
    failure="not_a_number",
    candidates=(),
    origins=None,
    further_targets=(),
    image_wh=None,
)


@pytest.mark.parametrize(
    "predictions",
    [[], [FULL], [BARE], [BARE, FULL, replace(FULL, system="oracle", probabilities=())]],
    ids=["none", "full", "all_missing", "many_systems"],
)
def test_round_trip_is_exact_and_keeps_order(tmp_path: Path, predictions: list[Prediction]) -> None:
    path = tmp_path / "predictions-val.parquet"
    save_predictions(path, predictions)
    assert load_predictions(path) == predictions
    assert pq.read_schema(path).equals(SCHEMA)


def test_metrics_are_the_same_from_the_file(tmp_path: Path) -> None:
    predictions = [replace(FULL, sample_id=str(i), image_id=str(i // 2)) for i in range(10)]
    save_predictions(tmp_path / "p.parquet", predictions)
    assert summarize(load_predictions(tmp_path / "p.parquet")) == summarize(predictions)


def test_columns_are_the_fields_of_the_record() -> None:
    assert SCHEMA.names == [field.name for field in fields(Prediction)]


FOURTH = {"mass": None}
THIRD = {**FOURTH, "none_probability": None}
SECOND = {**THIRD, "reasoning": None, "num_tokens": None}
FIRST = {**SECOND, "origins": None, "further_targets": (), "image_wh": None}


@pytest.mark.parametrize("lacking", [FIRST, SECOND, THIRD, FOURTH], ids=["first", "second", "third", "fourth"])
def test_a_file_of_an_earlier_version_is_read_with_what_it_lacks_unknown(
    tmp_path: Path, lacking: dict[str, Any]
) -> None:
    path = tmp_path / "p.parquet"
    full = replace(FULL, reasoning="It is left.", num_tokens=4, none_probability=0.25, mass=0.5)
    save_predictions(path, [full, BARE])
    assert load_predictions(path) == [full, BARE]
    pq.write_table(pq.read_table(path).drop_columns(list(lacking)), path)
    assert load_predictions(path) == [replace(full, **lacking), BARE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"target": None}, "further targets, but no target"), ({"origins": (1,)}, "1 origins of 2 candidates")],
    ids=["targets", "origins"],
)
def test_predictions_that_contradict_themselves_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FULL, **changes)  # type: ignore[arg-type]


def test_repeated_samples_are_refused_with_all_listed_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    other = replace(FULL, system="other")
    with pytest.raises(DataError) as error:
        save_predictions(path, [FULL, FULL, BARE, BARE, BARE, other])
    message = str(error.value)
    assert str(path) in message
    assert "system 'flo2-llama3' has 2 predictions for sample '1'" in message
    assert "system 'flo2-llama3' has 3 predictions for sample '2'" in message
    assert "other" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99], ids=["empty", "third", "almost_whole"])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "p.parquet"
    save_predictions(path, [FULL, BARE])
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match=r"p\.parquet"):
        load_predictions(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.parquet"):
        load_predictions(tmp_path / "p.parquet")


def of_another_kind(table: pa.Table) -> pa.Table:
    return table.drop_columns(["failure"]).append_column("notes", pa.array(["x"]))


def with_a_coin(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("decided_by")
    return table.set_column(place, SCHEMA.field("decided_by"), pa.array(["a coin"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda table: table.drop_columns(["origins"]), "columns differ: .*origins", id="between-versions"),
        pytest.param(lambda table: table.drop_columns(["image_wh", "origins"]), "columns differ: .*origins", id="two"),
        pytest.param(of_another_kind, "columns differ: failure, notes", id="another-kind"),
        pytest.param(with_a_coin, r"holds rows that are no predictions.*decided_by", id="broken-rule"),
        pytest.param(lambda table: pa.concat_tables([table, table]), "2 predictions for sample '1'", id="repeated"),
    ],
)
def test_what_does_not_hold_predictions_is_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    path = tmp_path / "p.parquet"
    save_predictions(path, [FULL])
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(DataError, match=rf"(?s)p\.parquet.*{message}"):
        load_predictions(path)
