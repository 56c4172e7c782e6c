"""Every system on every column: asked once, kept, compared on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.grid import Column, Predict, System, compare_cells, fill, llm_system
from llm_wrapper.llms import base
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, PromptSection, Recipe
from llm_wrapper.records import Answer, Box, Candidate, Prompt, Sample
from llm_wrapper.report.grid import study_section
from llm_wrapper.report.grid_values import matrix_values
from tests.fake_llm import FakeLLM

RIGHT, WRONG = Box(0, 0, 10, 10), Box(50, 0, 60, 10)


def column(name: str, *, count: int = 4, score: float | None = 0.5, expression: str = "the cat") -> Column:
    """Prepared samples with a right and a wrong candidate; the detector itself prefers the wrong one."""
    samples = []
    for number in range(count):
        shown = (Candidate(RIGHT, "cat", score, "d", "od"), Candidate(WRONG, "cat", score and 0.9, "d", "od"))
        sample = Sample(f"s{number}", "r", f"i{number}", None, (100, 50), f"{expression} {number}", RIGHT)
        samples.append(PreparedSample(sample, BuiltCandidates(shown, (1, 0), {})))
    return Column(name, samples)


def builder(prompt_format: str) -> PromptBuilder:
    return PromptBuilder(PromptSection(format=prompt_format))


class Llm:
    """Always says the same index; counts how often it was loaded and what it was asked."""

    def __init__(self, index: int = 0, prompt_format: str = "compact", name: str = "tuned on a") -> None:
        self.index, self.num_loaded = index, 0
        self.asked: list[str] = []
        self.system = System(name, {"llm": name}, self.load, builder(prompt_format))

    def load(self) -> Predict:
        self.num_loaded += 1
        prompts = self.system.builder
        assert prompts is not None
        return lambda column: systems.by_llm(column.samples, "whatever", prompts, self)

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        self.asked += [prompt.sample_id for prompt in prompts]
        shares = (0.9, 0.1) if self.index == 0 else (0.1, 0.9)
        return [Answer(probabilities=shares, mass=1.0) for _ in prompts]


DETECTOR = System("detector", {"system": "detector"}, lambda: lambda column: systems.by_detector(column.samples))


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    llm, columns = Llm(), [column("a / x"), column("b / x")]
    first = fill([DETECTOR, llm.system], columns, tmp_path)
    assert (llm.num_loaded, len(llm.asked)) == (1, 8)
    assert fill([DETECTOR, llm.system], columns, tmp_path) == first
    assert (llm.num_loaded, len(llm.asked)) == (1, 8)
    assert {row.system for _, rows in first.values() if not isinstance(rows, str) for row in rows} == {
        "detector",
        "tuned on a",
    }


def test_only_what_is_missing_or_was_asked_otherwise_is_asked(tmp_path: Path) -> None:
    llm = Llm()
    fill([llm.system], [column("a / x")], tmp_path)
    kept = sorted(tmp_path.rglob("*.parquet"))
    fill([llm.system], [column("a / x"), column("b / x", expression="a dog")], tmp_path)
    assert len(llm.asked) == 8
    for other in (column("a / x", count=5), column("a / x", score=0.4), column("a / x", expression="cats")):
        fill([llm.system], [other], tmp_path)
    assert len(llm.asked) == 8 + 5 + 4 + 4
    fill([replace(llm.system, identity={"llm": "another adapter"})], [column("a / x")], tmp_path)
    fill([replace(llm.system, builder=builder("coords"))], [column("a / x")], tmp_path)
    assert len(llm.asked) == 21 + 4 + 4
    assert set(kept) < set(tmp_path.rglob("*.parquet"))
    fill([llm.system], [column("a / x")], tmp_path)
    assert len(llm.asked) == 29


def test_a_row_under_another_name_is_the_same_row(tmp_path: Path) -> None:
    llm = Llm()
    fill([llm.system], [column("a / x")], tmp_path)
    found = fill([replace(llm.system, name="tuned on a (run 7)")], [column("a / x")], tmp_path)
    assert llm.num_loaded == 1
    cell = found["tuned on a (run 7)", "a / x"]
    assert {row.system for row in cell[1]} == {"tuned on a (run 7)"}  # type: ignore[union-attr]


def test_an_interrupted_matrix_goes_on(tmp_path: Path) -> None:
    llm = Llm()

    def broken() -> Predict:
        def predict(column: Column) -> list[object]:
            if column.name == "b / x":
                raise KeyboardInterrupt
            return llm.load()(column)  # type: ignore[return-value]

        return predict  # type: ignore[return-value]

    columns = [column("a / x"), column("b / x")]
    with pytest.raises(KeyboardInterrupt):
        fill([replace(llm.system, load=broken)], columns, tmp_path)
    assert len(llm.asked) == 4
    fill([llm.system], columns, tmp_path)
    assert len(llm.asked) == 8


def test_a_prompt_that_cannot_be_made_leaves_its_cell_empty(tmp_path: Path) -> None:
    llm = Llm(prompt_format="coords_scores")
    columns, rows = [column("with scores / x"), column("without / x", score=None)], [DETECTOR, llm.system]
    cells = {(cell.system, cell.column): cell for cell in compare_cells(fill(rows, columns, tmp_path), rows, columns)}
    cell = cells["tuned on a", "without / x"]
    assert cell.summary is None
    assert "has no score" in (cell.problem or "")
    section = study_section("transfer", "x", matrix_values([*cells.values()]))
    assert ["tuned on a", "100.0 (100.0 to 100.0)", "no data"] in section.tables[0].rows
    assert any(note.startswith("tuned on a on without / x: candidate 0 (cat) has no score") for note in section.notes)


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    def wrong() -> Predict:
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="a mistake"):
        fill([replace(DETECTOR, load=wrong)], [column("a / x")], tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_gains_are_over_the_detector_the_same_llm_untrained_and_the_point_before(tmp_path: Path) -> None:
    before, after = Llm(1, name="untrained"), Llm(0, name="tuned")
    tuned = replace(after.system, baseline="untrained", home=frozenset({"a / x"}))
    later = replace(tuned, name="later", previous="tuned")
    rows, columns = [DETECTOR, before.system, tuned, later], [column("a / x"), column("b | <x>")]
    cells = {(cell.system, cell.column): cell for cell in compare_cells(fill(rows, columns, tmp_path), rows, columns)}
    home = cells["tuned", "a / x"]
    assert (home.at_home, cells["tuned", "b | <x>"].at_home) == (True, False)
    assert home.over_detector is not None
    assert home.over_untrained is not None
    assert (home.over_detector.b, home.over_detector.p_at_1.value) == ("detector", 1.0)
    assert (home.over_untrained.b, home.over_untrained.mcnemar.only_a) == ("untrained", 4)
    assert cells["detector", "a / x"].over_detector is None
    assert cells["untrained", "a / x"].over_untrained is None
    assert home.over_previous is None
    previous = cells["later", "a / x"].over_previous
    assert previous is not None
    assert (previous.b, previous.p_at_1.value) == ("tuned", 0.0)
    values = matrix_values([*cells.values()])
    text = study_section("transfer", "x", {**values, "notes": ["a note"]}).markdown()
    assert "| tuned | 100.0 (100.0 to 100.0) \\* | 100.0 (100.0 to 100.0) |" in text
    assert "| tuned | +100.0 (+100.0 to +100.0), p = 0.125 | +100.0 (+100.0 to +100.0), p = 0.125 |" in text
    assert "| system | a / x | b \\| &lt;x> |" in text
    assert "- a / x: 4 expressions with a target, 4 images\n" in text
    assert text.endswith("- a note\n")
    plain = {(cell["system"], cell["column"]): cell for cell in values["cells"]}
    assert plain["tuned", "a / x"]["result"]["p_at_1"] == 1.0
    assert plain["tuned", "a / x"]["over_untrained"]["p_at_1"]["value"] == 1.0
    assert plain["detector", "a / x"]["over_detector"] is None


def served(**changes: object) -> Recipe:
    values = {"backend": "openai", "model": "m", **changes}
    return Recipe(
        detector=DetectorSection(name="toy"),
        data=DataSection(name="toy", reader="toy", root=Path("data/toy")),
        llm=LLMSection.model_validate(values),
    )


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        pytest.param({}, True, id="equal"),
        pytest.param({"tokens_per_batch": 64}, True, id="batch"),
        pytest.param({"server": {"concurrency": 1}}, True, id="concurrency"),
        pytest.param({"orders": 2}, False, id="orders"),
        pytest.param({"decode": "choice"}, False, id="decode"),
        pytest.param({"server": {"base_url": "http://other:8000/v1"}}, False, id="another-server"),
        pytest.param({"server": {"tokenizer": "t"}}, False, id="tokenizer"),
    ],
)
def test_a_key_holds_what_decides_answers(changes: dict[str, object], is_same: bool) -> None:
    first, second = llm_system("a", served()), llm_system("a", served(**changes))
    assert (dict(first.identity) == dict(second.identity)) == is_same


def test_what_was_averaged_is_no_more_taken_for_what_an_earlier_version_asked_once() -> None:
    assert llm_system("a", served(orders=3)).identity["averaged_over"] == 3
    assert "averaged_over" not in llm_system("a", served()).identity


def test_answers_are_averaged_over_the_orders_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = FakeLLM(lambda prompts: [Answer(probabilities=(0.9, 0.1), mass=1.0) for _ in prompts])
    monkeypatch.setattr(base, "load_llm", lambda *_, **__: llm)
    rows = llm_system("a", served(orders=3), builder=builder("compact")).load()(column("a / x"))
    assert (len(llm.prompts), len(rows)) == (12, 4)
