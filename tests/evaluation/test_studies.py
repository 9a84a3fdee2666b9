"""The papers' experiments on CLIP: which runs they take, and one of them carried out."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from attriqa.distortions.attributes import DATASET_ATTRIBUTES, DISTORTION_ATTRIBUTES, check_table
from attriqa.distortions.classes import CSIQ_TYPES, LIVE_TYPES, TID2013_TYPES
from attriqa.evaluation.papers import studies
from attriqa.evaluation.papers.runs import RunError, read_folds
from tests.support import small_clip
from tests.support.trees import clive as clive_tree
from tests.support.trees import exiqa as exiqa_tree
from tests.support.trees import unlabelled as unlabelled_tree

SCRIPT = Path(__file__).resolve().parents[2] / "evals" / "benchmark.py"
ROOTS = {"kadid": "K", "csiq": "C", "lvq": "L"}


def test_each_data_sets_distortions_have_attributes() -> None:
    types = {"tid2013": TID2013_TYPES, "csiq": CSIQ_TYPES, "live": tuple(LIVE_TYPES)}
    for name, keys in types.items():
        table = DATASET_ATTRIBUTES[name]
        check_table(table)
        assert [entry.key for entry in table] == [key.casefold() for key in keys]
        assert {len(entry.attributes) for entry in table} == {5}
    kadid = {entry.attributes for entry in DISTORTION_ATTRIBUTES}
    shared = {name: sum(e.attributes in kadid for e in table) for name, table in DATASET_ATTRIBUTES.items()}
    assert shared == {"kadid": 25, "tid2013": 13, "csiq": 5, "live": 4}


EXIQA = studies.STUDIES[:4]


def test_runs_start_from_those_that_come_first() -> None:
    works = studies.studies_of(EXIQA, ROOTS, splits=3)
    places = [(work.variant, work.name) for work in works]
    assert len(set(places)) == len(places)
    for number, work in enumerate(works):
        assert work.after is None or work.after in places[:number]
    firsts = [work for work in works if work.variant == "exiqa"]
    assert {work.name: work.shows for work in firsts} == dict.fromkeys(ROOTS, EXIQA[:2])
    zero_shot = {work.name for work in works if work.variant == "exiqa-zero-shot"}
    assert zero_shot == {"kadid-csiq", "csiq-kadid", "lvq-kadid", "lvq-csiq"}  # LVQ's types are the user's
    assert sum(work.variant == "exiqa-transfer" for work in works) == 6


def test_only_what_is_asked_for_is_run() -> None:
    assert studies.studies_of(("in-domain",), {"clive": "X"}, splits=3) == []
    works = studies.studies_of(("in-domain", "exiqa-quality"), {"kadid": "K"}, splits=3)
    assert [(work.variant, work.shows) for work in works] == [("exiqa", ("exiqa-quality",))]
    with pytest.raises(ValueError, match=r"exiqa-quality takes kadid, .*, got clive"):
        studies.studies_of(("exiqa-quality",), {"clive": "X"}, splits=3)
    with pytest.raises(ValueError, match="exiqa-transfer goes from one data set to another; expected two or more"):
        studies.studies_of(("exiqa-transfer",), {"kadid": "K"}, splits=3)


def shown(experiment: str, *data: str) -> dict[str, dict[str, float]]:
    works = studies.studies_of((experiment,), dict.fromkeys(data, "X"), splits=3)
    return {work.data: studies.published_of(experiment, work) for work in works if experiment in work.shows}


def test_the_papers_rows_stand_beside() -> None:
    assert shown("exiqa-identification", "kadid") == {"kadid": {"accuracy": 0.9765, "rmse": 0.0347}}
    assert shown("exiqa-quality", "csiq") == {"csiq": {"srocc": 0.965, "plcc": 0.961}}
    zero_shot = {"kadid > csiq": {"accuracy": 0.7141, "rmse": 0.2710}, "csiq > kadid": {}}
    assert shown("exiqa-zero-shot", "kadid", "csiq") == zero_shot
    assert shown("exiqa-transfer", "tid2013", "live")["tid2013 > live"] == {"srocc": 0.914}
    assert shown("clip-probe", "clive") == {"clive": {"srocc": 0.803, "plcc": 0.829}}
    assert shown("clip-iqa", "koniq") == {"koniq": {"srocc": 0.695, "plcc": 0.727}}
    assert shown("clip-iqa-plus", "clive") == {"clive": {"srocc": 0.805, "plcc": 0.832}}
    assert shown("liqe", "bid") == {"bid": {"srocc": 0.875, "plcc": 0.900}}
    assert shown("mp-iqe", "clive", "spaq") == {"clive": {"srocc": 0.900, "plcc": 0.916}, "spaq": {}}
    assert shown("mp-iqe-cross", "clive", "koniq")["koniq > clive"] == {"srocc": 0.844}
    assert shown("mp-iqe-ablations", "clive")["clive, no-visual"] == {"srocc": 0.874, "plcc": 0.893}
    assert shown("mp-iqe-data", "clive")["clive, 40 %"] == {"srocc": 0.856, "plcc": 0.889}
    assert shown("mp-iqe-lengths", "csiq")["csiq, visual 2"] == {"srocc": 0.961, "plcc": 0.969}


def test_every_run_has_a_folder_of_its_own_and_flags_that_its_recipe_knows() -> None:
    works = studies.studies_of(studies.STUDIES[4:], {"clive": "C", "koniq": "K"}, splits=3)
    assert len({(work.variant, work.name) for work in works}) == len(works) == 2 * (5 + 5 + 3 + 8 + 1)
    recipes = SCRIPT.parent.parent / "training"
    shared = (recipes.parent / "attriqa" / "training" / "options.py").read_text()
    known = {work.recipe: (recipes / work.recipe).read_text() + shared for work in works}
    for work in works:
        for flag in (word for word in work.words if word.startswith("--")):
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            assert f"    {name}: " in known[work.recipe], f"{work.recipe} {flag}"


def test_results_without_a_number_are_told(tmp_path: Path) -> None:
    study = studies.studies_of(("exiqa-quality",), {"kadid": "K"}, splits=1)[0]
    with pytest.raises(RunError, match="no results in"):
        read_folds(study.folder(tmp_path), 1)
    fold = {"fold": "split0", "n_train": 4, "n_test": 2, "score": {"srocc": 0.5, "plcc": None}}
    with pytest.raises(RunError, match=r"split0: no number as score\.plcc"):
        list(studies.rows_of(study, [fold], path=tmp_path))


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    module = unlabelled_tree.load_recipe("benchmark", "evals")
    before = signal.getsignal(signal.SIGTERM)
    yield module
    signal.signal(signal.SIGTERM, before)


def test_flags_that_the_benchmark_sets_are_refused(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "kadid=K", "--experiments", "exiqa-quality", "--study=--seed 3"]
    with pytest.raises(SystemExit):
        benchmark.main(words)
    assert "study: --seed is set by this recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_tables_2_to_5_end_to_end(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kadid, csiq = exiqa_tree.kadid(tmp_path / "kadid10k"), exiqa_tree.csiq(tmp_path / "CSIQ")
    vit = small_clip.VIT | {"text_cfg": small_clip.VIT["text_cfg"] | {"context_length": 32}}
    clip = small_clip.write(tmp_path / "clip", vit)
    out = tmp_path / "out"
    words = ["--data", f"kadid={kadid}", f"csiq={csiq}", "--experiments", *EXIQA, "--smoke"]
    words += [f"--study=--clip {clip} --prompts 2", "--out", str(out)]
    assert benchmark.main(words) == 0
    rows: list[dict[str, Any]] = json.loads((out / "metrics.json").read_text())["rows"]
    found = {(row["experiment"], row["data"]): row for row in rows}
    pairs = ("kadid > csiq", "csiq > kadid")
    assert set(found) == {(name, data) for name in EXIQA[:2] for data in ("kadid", "csiq")} | {
        (name, pair) for name in EXIQA[2:] for pair in pairs
    }
    for row in rows:
        keys = ("srocc", "plcc") if row["experiment"] in ("exiqa-quality", "exiqa-transfer") else ("accuracy", "rmse")
        assert all(-1 <= row[key] <= 1 for key in keys)
        assert row["n_test"] > 0
    text = capsys.readouterr().out
    assert all(f"## {studies.TITLES[name]}" in text for name in EXIQA)
    assert "accuracy 0.714, rmse 0.271" in text
    zero_shot = json.loads((out / "exiqa-zero-shot" / "kadid-csiq" / "metrics.json").read_text())
    assert zero_shot["distortions"] == ["awgn", "blur", "contrast", "fnoise", "jpeg", "jpeg2000"]
    assert zero_shot["folds"][0]["steps"] == 0
    before = (out / "metrics.json").stat().st_mtime_ns
    assert benchmark.main(words) == 0  # nothing is run again
    logs = {path: path.stat().st_mtime_ns for path in out.glob("*/*.log")}
    assert logs
    assert max(logs.values()) < before


@pytest.mark.slow
def test_mp_iqe_end_to_end(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clive = clive_tree.build(tmp_path / "ChallengeDB_release", count=40, width=64, height=64)
    vit = small_clip.VIT | {"text_cfg": small_clip.VIT["text_cfg"] | {"context_length": 32}}
    clip = small_clip.write(tmp_path / "clip", vit)
    study = f"--study=--clip {clip} --windows 3"
    words = ["--data", f"clive={clive}", "--experiments", "mp-iqe", "--smoke", study]
    assert benchmark.main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    assert [row["experiment"] for row in rows] == ["mp-iqe"]
    assert all(-1 <= row["srocc"] <= 1 and row["n_test"] > 1 for row in rows)
    assert "srocc 0.900, plcc 0.916" in capsys.readouterr().out


@pytest.mark.slow
def test_every_model_on_clip_end_to_end(benchmark: ModuleType, tmp_path: Path) -> None:
    clive = clive_tree.build(tmp_path / "ChallengeDB_release", count=40, width=64, height=64)
    vit = small_clip.VIT | {"text_cfg": small_clip.VIT["text_cfg"] | {"context_length": 32}}
    clip = small_clip.write(tmp_path / "clip", vit)
    wanted = ("clip-probe", "clip-iqa", "clip-iqa-plus", "liqe")
    words = ["--data", f"clive={clive}", "--experiments", *wanted, "--smoke", f"--study=--clip {clip}"]
    assert benchmark.main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    assert [row["experiment"] for row in rows] == [*wanted]
    assert all(-1 <= row["srocc"] <= 1 and row["n_test"] == 8 for row in rows)
