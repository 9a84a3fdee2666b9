"""The benchmark recipe, its fine-tuning replaced by `fake_finetune`, which writes the same files in no time."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attriqa.evaluation.papers import published
from tests.support import fake_finetune
from tests.support.trees import clive as clive_tree
from tests.support.trees import datasets as trees
from tests.support.trees import unlabelled as unlabelled_tree

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "evals" / "benchmark.py"
FAKE = str(ROOT / "tests" / "support" / "fake_finetune.py")
EXPERIMENTS = ("in-domain", "cross", "data-efficient", "linear-probe")


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[..., int]]:
    """The recipe's main, in this process: each start of Python with torch takes seconds."""
    module = unlabelled_tree.load_recipe("benchmark", "evals")
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> int:
        status: int = module.main(["--finetune-script", FAKE, *map(str, words)])
        return status

    yield run
    signal.signal(signal.SIGTERM, before)


def csv_set(folder: Path, count: int = 10, splits: bool = False) -> Path:
    """A small data set of files that are no pictures: nobody opens them here."""
    folder.mkdir(parents=True)
    lines = ["path,score" + ",split" * splits]
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(f"{folder.name} {i}".encode())
        lines.append(f"{i}.jpg,{i / 10}" + (",test" if i > 6 else ",train") * splits)
    (folder / "scores.csv").write_text("\n".join(lines))
    return folder / "scores.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("data")
    clive = clive_tree.build(root / "ChallengeDB_release", count=8, width=40, height=40)
    return ["--data", f"clive={clive}", f"csv={csv_set(root / 'own')}"]


def report(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return result


def worked_on(out: Path) -> list[str]:
    path = out / "folds.txt"
    return path.read_text().split() if path.exists() else []


@pytest.fixture(scope="module")
def whole(benchmark: Callable[..., int], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four experiments, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    words = (*data, "--experiments", *EXPERIMENTS, "--splits", 3, "--seed", 7, "--finetune=--init a\\ b.safetensors")
    assert benchmark(*words, "--out", out) == 0
    return out


def test_each_variant_is_one_run_with_its_flags(whole: Path, data: list[str]) -> None:
    _, clive, own = data
    always = {"splits": "3", "protocol": "splits", "seed": "7", "init": "a b.safetensors", "smoke": False}
    for variant, mode, fraction in (
        ("full", "full", None),
        ("linear", "linear", None),
        ("fraction0.1", "full", "0.1"),
        ("fraction0.2", "full", "0.2"),
    ):
        for spec, other in ((clive, own), (own, clive)):
            folder = whole / variant / spec.partition("=")[0]
            tests = [other] if variant == "full" else []
            flags = {"data": spec, "out": str(folder), "mode": mode, "fraction": fraction, "test": tests}
            assert json.loads((folder / "flags.json").read_text()) == always | flags
    assert len(worked_on(whole)) == len(set(worked_on(whole))) == 4 * 2 * 3


def test_medians_intervals_and_published_rows(whole: Path) -> None:
    rows = report(whole)["rows"]
    kinds = [(row["experiment"], row["data"], row["test"], row["protocol"]) for row in rows]
    usual = "random 80/20 splits by group, median of 3"
    for name, other in (("clive", "csv"), ("csv", "clive")):
        assert ("in-domain", name, name, usual) in kinds
        assert ("cross", name, other, usual) in kinds
        assert ("linear-probe", name, name, usual) in kinds
        assert ("data-efficient", name, name, f"10 % of the training side; {usual}") in kinds
        assert ("data-efficient", name, name, f"20 % of the training side; {usual}") in kinds
    assert len(kinds) == 10
    by_kind = dict(zip(kinds, rows, strict=True))
    row = by_kind["in-domain", "clive", "clive", usual]
    for view, extra in (("five_crop", ()), ("full", ("full",))):
        for name in fake_finetune.STATISTICS:
            values = [fake_finetune.number(f"full/clive/split{i}", *extra, name) for i in range(3)]
            assert row[view][f"{name}_folds"] == values
            assert row[view][name] == statistics.median(values)
            assert min(values) <= row[view][f"{name}_low"] <= row[view][name] <= row[view][f"{name}_high"]
            assert row[view][f"{name}_high"] <= max(values)
    assert row["interval"] == "over folds, which share images"
    assert (row["folds"], row["n_train"], row["five_crop"]["n"]) == (3, 80, 20)
    assert row["published"] == [figure._asdict() for figure in published.in_domain("clive")]
    assert row["published_feature_cosine"] == 0.890
    cosines = [fake_finetune.number(f"full/clive/split{i}", "cosine") for i in range(3)]
    assert row["feature_cosine"] == statistics.median(cosines)
    cross = by_kind["cross", "csv", "clive", usual]
    assert cross["five_crop"]["plcc_folds"] == [
        fake_finetune.number(f"full/csv/split{i}", "clive", "plcc") for i in range(3)
    ]
    assert cross["published"] == []
    probe = by_kind["linear-probe", "clive", "clive", usual]
    assert probe["published"][0]["srocc"] == 0.870
    assert probe["five_crop"]["srocc_folds"][2] == fake_finetune.number("linear/clive/split2", "srocc")
    few = by_kind["data-efficient", "clive", "clive", f"10 % of the training side; {usual}"]
    assert few["published"][0]["srocc"] == 0.820


def test_the_table_shows_what_metrics_json_holds(whole: Path) -> None:
    text = (whole / "benchmark.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert [title.split()[1].rstrip(":") for title in titles] == [
        "In-domain",
        "Cross-dataset",
        "Data-efficient",
        "Linear",
    ]
    for row in report(whole)["rows"]:
        name = row["data"] if row["data"] == row["test"] else f"{row['data']} > {row['test']}"
        (line,) = (line for line in text.splitlines() if f"{row['five_crop']['srocc_low']:.3f}" in line
                   and line.startswith(f"| {name} | {row['protocol']} | 80 | 20 |")
                   and f"{row['five_crop']['plcc']:.3f}" in line)  # fmt: skip
        for figure in row["published"]:
            assert f"{figure['source']}: {figure['srocc']:.3f}" in line
            assert f"- {figure['source']}: {figure['protocol']}" in text
        assert row["published"] or line.endswith("| none |")
    assert "ATTIQA table 2, ATTIQA-joint: 0.898 / 0.916; MP-IQE table 1, MP-IQE: 0.900 / 0.916" in text
    assert "smoke" not in text


def test_a_finished_benchmark_only_reports(
    benchmark: Callable[..., int], whole: Path, data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = worked_on(whole), report(whole)
    log = (whole / "full" / "clive.log").stat().st_mtime_ns
    words = (*data, "--experiments", *EXPERIMENTS, "--splits", 3, "--seed", 7, "--finetune=--init a\\ b.safetensors")
    assert benchmark(*words, "--out", whole) == 0
    assert (worked_on(whole), report(whole)) == before
    assert (whole / "full" / "clive.log").stat().st_mtime_ns == log
    assert (whole / "benchmark.md").read_text() in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"another configuration \(splits: 3 there, 2 now"):
        benchmark(*data, "--experiments", *EXPERIMENTS, "--splits", 2, "--out", whole)
    assert report(whole) == before[1]


def test_a_failed_fold_is_named_and_loses_nothing(
    benchmark: Callable[..., int],
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (*data, "--splits", 3, "--out", tmp_path / "out")
    monkeypatch.setenv("FAKE_FAIL", "full/clive/split1")
    assert benchmark(*words) == 1
    text = capsys.readouterr()
    assert "1 of 2 runs failed: full/clive" in text.out
    assert "failed: full/clive: status 1; the end of" in text.err
    assert "    the loss is nan in full/clive/split1" in text.err
    failed = report(tmp_path / "out")
    assert list(failed["failed"]) == ["full/clive"]
    assert [row["data"] for row in failed["rows"]] == ["csv"], "a run without all its folds has no median"
    monkeypatch.delenv("FAKE_FAIL")
    assert benchmark(*words) == 0
    assert worked_on(tmp_path / "out") == [
        *("full/clive/split0", "full/clive/split1"),
        *("full/csv/split0", "full/csv/split1", "full/csv/split2"),
        *("full/clive/split1", "full/clive/split2"),
    ]
    assert report(tmp_path / "out")["failed"] == {}
    assert [row["data"] for row in report(tmp_path / "out")["rows"]] == ["clive", "csv"]


def test_results_that_are_not_complete_are_refused_and_made_again(
    benchmark: Callable[..., int], data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*data[:2], "--splits", 2, "--out", tmp_path / "out")
    assert benchmark(*words) == 0
    path = tmp_path / "out" / "full" / "clive" / "split0" / "metrics.json"
    fold = json.loads(path.read_text())
    del fold["five_crop"]["plcc_low"]
    path.write_text(json.dumps(fold))
    (path.parent.parent / "metrics.json").write_text("{")
    capsys.readouterr()
    assert benchmark(*words) == 1
    assert "split0: no number as five_crop.plcc_low" in capsys.readouterr().err
    path.unlink()
    assert benchmark(*words) == 0
    summary = path.parent.parent / "metrics.json"
    summary.write_text(json.dumps({"folds": json.loads(summary.read_text())["folds"][:2]}))  # "all" and one split
    assert benchmark(*words) == 0
    assert [row["folds"] for row in report(tmp_path / "out")["rows"]] == [2]


def test_the_official_split(benchmark: Callable[..., int], tmp_path: Path) -> None:
    labels = csv_set(tmp_path / "own", splits=True)
    out = tmp_path / "out"
    assert benchmark("--data", f"csv={labels}", "--split", "official", "--out", out) == 0
    assert json.loads((out / "full" / "csv" / "flags.json").read_text())["protocol"] == "official"
    (row,) = report(out)["rows"]
    assert (row["protocol"], row["folds"], row["interval"]) == ("official split", 1, "over images")
    value = fake_finetune.number("full/csv/official", "srocc")
    assert [row["five_crop"][f"srocc{end}"] for end in ("", "_low", "_high")] == [value, value - 0.05, value + 0.05]


def test_published_numbers_of_another_split_are_not_shown(benchmark: Callable[..., int], tmp_path: Path) -> None:
    trees.koniq(tmp_path / "koniq")
    trees.flive(tmp_path / "flive")
    for split, koniq, flive in (("paper", 2, 1), ("official", 0, 1), ("random", 2, 0)):
        out = tmp_path / split
        data = [f"koniq={tmp_path / 'koniq'}", f"flive={tmp_path / 'flive'}"]
        words = ("--experiments", "in-domain", "cross", "--split", split, "--splits", 2, "--out", out)
        assert benchmark("--data", *data, *words) == 0
        shown = {(row["data"], row["test"]): len(row["published"]) for row in report(out)["rows"]}
        assert (shown["koniq", "koniq"], shown["flive", "flive"]) == (koniq, flive)
        assert (shown["koniq", "flive"], shown["flive", "koniq"]) == (min(koniq, 1), flive)
        protocols = {row["data"]: row["protocol"] for row in report(out)["rows"]}
        assert (protocols["koniq"] == "official split") == (split == "official")
        assert (protocols["flive"] == "official split") == (split != "random")


def test_smoke_is_one_split_and_one_share_and_says_so(
    benchmark: Callable[..., int], data: list[str], tmp_path: Path
) -> None:
    assert benchmark(*data[:2], "--experiments", "data-efficient", "--smoke", "--out", tmp_path / "out") == 0
    assert worked_on(tmp_path / "out") == ["fraction0.1/clive/split0"]
    assert json.loads((tmp_path / "out" / "fraction0.1" / "clive" / "flags.json").read_text())["smoke"] is True
    assert "--smoke: its numbers say nothing" in (tmp_path / "out" / "benchmark.md").read_text()


@pytest.mark.parametrize("case", ["across", "official", "no split", "missing"])
def test_leaks_and_wrong_data_are_refused_before_training(
    benchmark: Callable[..., int], data: list[str], tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = csv_set(tmp_path / "own", splits=case in ("official", "across"))
    clive = Path(data[1].partition("=")[2])
    words: list[object] = ["--data", f"csv={labels}", "--out", tmp_path / "out"]
    if case == "across":
        (labels.parent / "3.jpg").write_bytes((clive / "Images" / "5.jpg").read_bytes())
        words += ["--experiments", "cross", "in-domain"]
        words[1:1] = [data[1]]
        expected = r"(?s)clive and csv.*: 1 test files.*Images/5\.jpg = .*own/3\.jpg"
    elif case == "official":
        (labels.parent / "9.jpg").write_bytes((labels.parent / "2.jpg").read_bytes())
        words += ["--split", "official"]
        expected = r"(?s)csv, official split: 1 test files.*own/2\.jpg = .*own/9\.jpg"
    elif case == "no split":
        words += ["--split", "official"]
        expected = "expected an official split, got 0 train and 0 test rows"
    else:
        (labels.parent / "4.jpg").unlink()
        expected = r"1 of 10 images are missing: 4\.jpg"
    with pytest.raises(SystemExit) as refusal:
        benchmark(*words)
    assert str(refusal.value).startswith("error: ")
    assert re.search(expected, str(refusal.value)), refusal.value
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "nothing=here"], "data: expected NAME=ROOT with a NAME of clive, koniq"),
        (["--data", "clive"], "got clive"),
        (["--data", "clive=a", "clive=b"], "expected each NAME once"),
        (["--data", "clive=a", "--experiments", "cross"], "cross needs two data sets"),
        (["--data", "clive=a", "--splits", "0"], "splits: expected at least 1, got 0"),
        (["--data", "clive=a", "--fractions", "0.1", "1"], r"fractions: expected numbers within (0, 1)"),
        (["--data", "clive=a", "--finetune=--lr 1 --out=b"], "finetune: --out=b is set by this recipe"),
        (["--data", "clive=a", "--experiments", "guess"], "invalid choice: 'guess'"),
    ],
)
def test_wrong_flags_are_told(
    benchmark: Callable[..., int], words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        benchmark(*words)
    assert refusal.value.code == 2
    assert expected in capsys.readouterr().err


def started(data: list[str], out: Path, sleep: str) -> "subprocess.Popen[str]":
    """The recipe in a process group of its own, up to the fold that hangs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FAKE_SLEEP": sleep}
    words = [sys.executable, str(SCRIPT), "--finetune-script", FAKE, *data, "--splits", "3", "--out", str(out)]
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while sleep not in worked_on(out):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_at_the_fold(
    benchmark: Callable[..., int], whole: Path, data: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with started(data, out, "full/clive/split1") as process:
        process.kill()
    with pytest.raises(SystemExit, match=r"a fine-tuning that one left behind, is at work"):
        benchmark(*data, "--splits", 3, "--out", out)  # the fine-tuning lives on, and holds the folder
    os.killpg(process.pid, signal.SIGKILL)
    assert not (out / "metrics.json").exists()
    assert not (out / "full" / "clive" / "metrics.json").exists()
    deadline = time.monotonic() + 10
    while True:  # until the killed one is gone, and with it its lock
        try:
            status = benchmark(*data, "--splits", 3, "--out", out)
            break
        except SystemExit:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert status == 0
    expected = [f"full/clive/split{i}" for i in (0, 1, 1, 2)] + [f"full/csv/split{i}" for i in range(3)]
    assert worked_on(out) == expected
    assert report(out)["rows"] == [row for row in report(whole)["rows"] if row["experiment"] == "in-domain"]


@pytest.mark.slow
def test_one_that_is_told_to_end_ends_its_fine_tuning(
    benchmark: Callable[..., int], data: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with started(data, out, "full/csv/split0") as process:
        process.terminate()
    assert process.returncode == 143
    assert benchmark(*data, "--splits", 3, "--out", out) == 0, "nothing holds the folder"
    assert worked_on(out).count("full/clive/split2") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_the_true_fine_tuning(
    run_recipe: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    clive = clive_tree.build(tmp_path / "ChallengeDB_release", count=16, width=350, height=340)
    out = tmp_path / "out"
    words = ("--data", f"clive={clive}", "--smoke", "--finetune=--workers 0", "--out", out)
    done = run_recipe("evals/benchmark.py", *words, timeout=800)
    assert done.returncode == 0, done.stderr
    (row,) = report(out)["rows"]
    (fold,) = json.loads((out / "full" / "clive" / "metrics.json").read_text())["folds"]
    assert row["five_crop"]["srocc"] == fold["five_crop"]["srocc"]
    assert row["full"]["plcc_low"] == fold["full"]["plcc_low"]
    assert (row["n_train"], row["five_crop"]["n"]) == (13, 3)
    assert row["feature_cosine"] == fold["feature_cosine"]
    assert f"| clive | one random 80/20 split | 13 | 3 | {fold['five_crop']['srocc']:.3f} [" in done.stdout
