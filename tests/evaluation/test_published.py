"""The papers' tables: complete, typed right (their own averages check them), found by name."""

from typing import Any

import numpy as np
import pytest

from attriqa.data.datasets import READERS
from attriqa.evaluation.papers import published
from attriqa.evaluation.papers.published import TABLES, Table

SHAPES = {  # rows, columns, empty cells
    "ATTIQA table 2": (13, 10, 10),
    "ATTIQA table 3": (6, 12, 6),
    "ATTIQA table 4": (4, 6, 0),
    "ATTIQA table 5": (4, 3, 0),
    "ATTIQA table 6": (6, 6, 0),
    "ATTIQA table 7": (5, 6, 0),
    "ATTIQA table 8": (4, 1, 0),
    "ATTIQA table 9": (4, 2, 0),
    "ExIQA table 1": (6, 5, 2),
    "ExIQA table 2": (6, 3, 1),
    "ExIQA table 3": (12, 12, 0),
    "ExIQA table 4": (13, 2, 0),
    "ExIQA table 5": (13, 5, 20),
    "MP-IQE table 1": (10, 12, 0),
    "MP-IQE table 2": (3, 4, 0),
    "MP-IQE table 3": (5, 4, 2),
    "MP-IQE table 4": (5, 4, 0),
    "MP-IQE table 5": (9, 4, 0),
    "MP-IQE table 6": (8, 4, 0),
}


def column(table: Table, name: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.array([table.value(row, name) for row in table.rows], dtype=np.float64)


def test_every_table_is_whole() -> None:
    assert list(TABLES) == [table.source for table in TABLES.values()] == list(SHAPES)
    for table in TABLES.values():
        assert {len(cells) for cells in table.rows.values()} == {len(table.columns)}, table.source
        empty = sum(cell is None for cells in table.rows.values() for cell in cells)
        assert (len(table.rows), len(table.columns), empty) == SHAPES[table.source]
        assert len(set(table.columns)) == len(table.columns)
        assert table.protocol


def test_correlations_are_correlations_of_known_data_sets() -> None:
    for table in TABLES.values():
        for name in table.columns:
            data, _, statistic = name.partition(" ")
            if statistic in ("srocc", "plcc"):
                assert data in {*READERS, "average"}, name
                values = column(table, name)
                assert (values[~np.isnan(values)] > 0.3).all()
                assert (values[~np.isnan(values)] < 0.99).all()
        for pair in [*table.columns, *table.rows]:
            if ">" in pair:
                train, test = pair.split(">")
                assert train in {*READERS, "exiqa"}
                assert test in READERS
                assert train != test


@pytest.mark.parametrize("statistic", ["plcc", "srocc"])
def test_the_averages_of_exiqa_are_those_printed(statistic: str) -> None:
    table = TABLES["ExIQA table 3"]
    parts = [column(table, f"{name} {statistic}") for name in ("kadid", "tid2013", "csiq", "lvq", "live")]
    off = np.abs(np.mean(parts, axis=0) - column(table, f"average {statistic}"))
    wrong = [method for method, value in zip(table.rows, off, strict=True) if value > 0.00051]
    assert wrong == (["TReS"] if statistic == "srocc" else []), "more than rounding"
    assert max(off) < 0.001


def test_the_means_of_exiqa_table_2() -> None:
    single = [name for name in TABLES["ExIQA table 2"].rows if name != "exiqa"]
    accuracy = [TABLES["ExIQA table 2"].value(name, "accuracy") for name in single]
    rmse = [TABLES["ExIQA table 2"].value(name, "rmse") for name in single]
    assert np.mean(np.array(accuracy, float)) == pytest.approx(95.77, abs=0.005)
    assert np.mean(np.array(rmse, float)) == pytest.approx(0.0502, abs=0.00005)


def test_the_tables_agree_with_each_other() -> None:
    full = TABLES["ATTIQA table 7"].rows["ATTIQA"]
    assert TABLES["ATTIQA table 2"].rows["ATTIQA-joint"][:6] == full
    for source, row in (("MP-IQE table 2", "MP-IQE"), ("MP-IQE table 4", "full"), ("MP-IQE table 6", "visual 4")):
        for name in TABLES[source].columns:
            assert TABLES[source].value(row, name) == TABLES["MP-IQE table 1"].value("MP-IQE", name), (source, name)
    assert TABLES["MP-IQE table 6"].rows["text 8"] == TABLES["MP-IQE table 6"].rows["visual 4"]


@pytest.mark.parametrize(
    ("table", "row", "name", "value"),
    [
        ("ATTIQA table 2", "MUSIQ", "flive plcc", 0.739),
        ("ATTIQA table 2", "QPT", "ava srocc", None),
        ("ATTIQA table 3", "LIQE", "koniq>flive", 0.551),
        ("ATTIQA table 3", "ATTIQA", "flive>spaq", 0.867),
        ("ATTIQA table 4", "Re-IQA", "koniq 20 %", 0.888),
        ("ATTIQA table 6", "Re-IQA-both", "spaq plcc", 0.925),
        ("ATTIQA table 6", "ATTIQA", "clive srocc", 0.870),
        ("ATTIQA table 9", "ATTIQA", "agiqa plcc", 0.911),
        ("ExIQA table 3", "LIQE", "live srocc", 0.970),
        ("ExIQA table 4", "tid2013>kadid", "rmse", 14.49),
        ("ExIQA table 5", "tid2013>lvq", "ExIQA", 0.9562),
        ("MP-IQE table 1", "LIQE", "bid srocc", 0.875),
        ("MP-IQE table 5", "40 % HyperNet", "clive srocc", 0.832),
    ],
)
def test_single_entries(table: str, row: str, name: str, value: float | None) -> None:
    assert TABLES[table].value(row, name) == TABLES[table].cell(row, name) == value


def test_an_unknown_entry_names_those_there_are() -> None:
    with pytest.raises(KeyError, match=r"ATTIQA table 9: no 'ATTIQA', 'agiqa krocc'; rows .*'Re-IQA'.*agiqa plcc"):
        TABLES["ATTIQA table 9"].value("ATTIQA", "agiqa krocc")
    with pytest.raises(KeyError, match="no 'Nobody'"):
        TABLES["ATTIQA table 9"].value("Nobody", "agiqa plcc")


def test_own_results_by_experiment() -> None:
    assert [(figure.srocc, figure.plcc) for figure in published.in_domain("clive")] == [(0.898, 0.916), (0.900, 0.916)]
    assert [figure.source for figure in published.in_domain("kadid")] == [
        "ExIQA table 3, ExIQA",
        "MP-IQE table 1, MP-IQE",
    ]
    assert published.in_domain("pipal") == []
    assert [(figure.srocc, figure.plcc) for figure in published.linear_probe("koniq")] == [(0.903, 0.918)]
    assert published.linear_probe("kadid") == []
    assert [figure.srocc for figure in published.data_efficient("spaq", 0.1)] == [0.909]
    assert [figure.srocc for figure in published.data_efficient("spaq", 0.2)] == [0.917]
    assert published.data_efficient("spaq", 0.5) == []
    assert [figure.srocc for figure in published.cross_dataset("clive", "koniq")] == [0.829, 0.781]
    assert [figure.srocc for figure in published.cross_dataset("flive", "spaq")] == [0.867]
    assert published.cross_dataset("spaq", "ava") == []
    assert published.feature_cosine("spaq") == 0.945
    assert published.feature_cosine("ava") is None
    assert all("median of 10" in figure.protocol for figure in published.in_domain("csiq"))
