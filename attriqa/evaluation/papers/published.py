"""What the three papers report, as data: ATTIQA (tables 2 to 9), ExIQA (1 to 5) and MP-IQE (1 to 6).

Numbers are as printed, also where the print is wrong (``note`` says so). Data sets have the names of
`attriqa.data.datasets.READERS`; ``a>b`` is trained on a and tested on b. ATTIQA's text refers to its tables 8 and 9 by
broken references: they are numbered by their order. A number of one protocol is never compared with one of another.
"""

from collections.abc import Mapping
from typing import NamedTuple

Cells = tuple[float | None, ...]


class Table(NamedTuple):
    """One published table.

    Attributes:
        source: paper and number.
        protocol: how its numbers came about.
        columns: what each cell of a row is: a data set and a statistic, or a pair of data sets.
        rows: cells by method, or by pair of data sets; None where the table has none.
        note: what to know before using it.
    """

    source: str
    protocol: str
    columns: tuple[str, ...]
    rows: Mapping[str, Cells]
    note: str = ""

    def value(self, row: str, column: str) -> float | None:
        """One cell; None where the paper has none.

        Raises:
            KeyError: there is no such row or column; those there are, are named.
        """
        if row not in self.rows or column not in self.columns:
            raise KeyError(f"{self.source}: no {row!r}, {column!r}; rows {list(self.rows)}, columns {self.columns}")
        return self.rows[row][self.columns.index(column)]


class Figure(NamedTuple):
    """A paper's own result for one experiment."""

    source: str  # paper, table, row
    protocol: str
    srocc: float | None
    plcc: float | None


def _each(names: str, *statistics: str) -> tuple[str, ...]:
    return tuple(f"{name} {statistic}" for name in names.split() for statistic in statistics)


def _pairs(text: str) -> tuple[str, ...]:
    sides = [pair.split(">") for pair in text.split()]
    return tuple(f"{train}>{test}" for train, tests in sides for test in tests.split(","))


_MEDIAN = "random 80/20 splits, median of 10"
_PHOTOS = "clive koniq spaq"

ATTIQA_2 = Table(
    "ATTIQA table 2",
    f"in-domain: {_MEDIAN}; FLIVE and AVA official split",
    _each("clive koniq spaq flive ava", "srocc", "plcc"),
    {
        "DBCNN": (0.844, 0.862, 0.878, 0.887, 0.906, 0.907, 0.542, 0.626, 0.554, 0.583),
        "HyperIQA": (0.855, 0.871, 0.908, 0.921, 0.916, 0.919, 0.535, 0.623, 0.668, 0.668),
        "CONTRIQUE": (0.824, 0.848, 0.900, 0.915, 0.910, 0.915, 0.598, 0.674, 0.674, 0.678),
        "MUSIQ": (None, None, 0.916, 0.928, 0.917, 0.921, 0.646, 0.739, 0.726, 0.738),
        "TReS": (0.846, 0.877, 0.915, 0.928, 0.915, 0.919, 0.554, 0.625, 0.658, 0.663),
        "Re-IQA": (0.823, 0.865, 0.924, 0.935, 0.915, 0.919, 0.574, 0.674, 0.714, 0.716),
        "QPT": (0.895, 0.914, 0.927, 0.941, 0.925, 0.928, 0.610, 0.677, None, None),
        "CLIP": (0.847, 0.881, 0.918, 0.932, 0.918, 0.922, 0.563, 0.628, 0.746, 0.745),
        "CLIP-IQA+": (0.805, 0.832, 0.895, 0.909, 0.864, 0.866, 0.575, 0.593, 0.692, 0.732),
        "LIQE": (0.865, 0.866, 0.898, 0.913, None, None, None, None, None, None),
        "ATTIQA-distortion": (0.891, 0.910, 0.929, 0.943, 0.922, 0.926, 0.625, 0.729, 0.754, 0.750),
        "ATTIQA-human": (0.890, 0.915, 0.942, 0.952, 0.925, 0.930, 0.635, 0.740, 0.756, 0.759),
        "ATTIQA-joint": (0.898, 0.916, 0.942, 0.952, 0.926, 0.930, 0.632, 0.742, 0.761, 0.761),
    },
)
ATTIQA_3 = Table(
    "ATTIQA table 3",
    "cross-dataset: SROCC, trained on one data set, tested on another",
    _pairs("clive>koniq,spaq,flive koniq>clive,spaq,flive spaq>clive,koniq,flive flive>clive,koniq,spaq"),
    {
        "CONTRIQUE": (0.676, 0.842, 0.346, 0.731, 0.789, 0.410, 0.549, 0.646, 0.338, 0.706, 0.709, 0.734),
        "Re-IQA": (0.769, 0.852, 0.424, 0.791, 0.862, 0.461, 0.732, 0.707, 0.497, 0.720, 0.676, 0.793),
        "CLIP": (0.725, 0.850, 0.405, 0.799, 0.837, 0.507, 0.773, 0.753, 0.496, 0.727, 0.717, 0.834),
        "CLIP-IQA+": (0.697, 0.836, 0.437, 0.803, 0.832, 0.516, 0.784, 0.722, 0.470, 0.620, 0.631, 0.661),
        "LIQE": (0.819, 0.877, 0.497, 0.824, 0.868, 0.551, None, None, None, None, None, None),
        "ATTIQA": (0.829, 0.887, 0.511, 0.856, 0.879, 0.540, 0.824, 0.819, 0.548, 0.756, 0.762, 0.867),
    },
)
ATTIQA_4 = Table(
    "ATTIQA table 4",
    "data-efficient: SROCC, trained on 10 % or 20 % of the data, tested on the usual 20 %",
    _each(_PHOTOS, "10 %", "20 %"),
    {
        "CONTRIQUE": (0.687, 0.740, 0.832, 0.835, 0.883, 0.885),
        "Re-IQA": (0.632, 0.683, 0.853, 0.888, 0.893, 0.902),
        "CLIP": (0.650, 0.728, 0.846, 0.863, 0.882, 0.884),
        "ATTIQA": (0.820, 0.838, 0.903, 0.919, 0.909, 0.917),
    },
)
ATTIQA_5 = Table(
    "ATTIQA table 5",
    "cosine of features before and after fine-tuning",
    _each(_PHOTOS, "cosine"),
    {
        "CONTRIQUE": (0.536, 0.566, 0.613),
        "Re-IQA": (0.158, 0.181, 0.243),
        "CLIP": (0.195, 0.203, 0.309),
        "ATTIQA": (0.890, 0.811, 0.945),
    },
)
ATTIQA_6 = Table(
    "ATTIQA table 6",
    f"linear probe: frozen encoder, {_MEDIAN}",
    _each(_PHOTOS, "srocc", "plcc"),
    {
        "CONTRIQUE": (0.845, 0.857, 0.894, 0.906, 0.916, 0.919),
        "Re-IQA-quality": (0.806, 0.824, 0.861, 0.885, 0.900, 0.910),
        "Re-IQA-content": (0.808, 0.844, 0.896, 0.912, 0.902, 0.908),
        "Re-IQA-both": (0.840, 0.854, 0.914, 0.923, 0.918, 0.925),
        "CLIP": (0.803, 0.829, 0.883, 0.895, 0.895, 0.896),
        "ATTIQA": (0.870, 0.891, 0.903, 0.918, 0.918, 0.922),
    },
)
ATTIQA_7 = Table(
    "ATTIQA table 7",
    f"in-domain, ablations: {_MEDIAN}",
    _each(_PHOTOS, "srocc", "plcc"),
    {
        "ATTIQA": (0.898, 0.916, 0.942, 0.952, 0.926, 0.930),
        "single-prompt": (0.880, 0.909, 0.928, 0.939, 0.916, 0.920),
        "worst-prompt": (0.869, 0.889, 0.930, 0.943, 0.920, 0.925),
        "median-prompt": (0.872, 0.893, 0.931, 0.944, 0.921, 0.925),
        "L2-loss": (0.875, 0.904, 0.933, 0.945, 0.923, 0.928),
    },
)
ATTIQA_8 = Table(
    "ATTIQA table 8",
    "zero-shot: accuracy in % on 200 pairs by Stable Diffusion, model of KonIQ-10k",
    ("accuracy",),
    {"CONTRIQUE": (61.5,), "Re-IQA": (55.0,), "CLIP-IQA+": (57.5,), "ATTIQA": (71.0,)},
)
ATTIQA_9 = Table(
    "ATTIQA table 9",
    "zero-shot: AGIQA-3k, model of KonIQ-10k",
    _each("agiqa", "srocc", "plcc"),
    {
        "CONTRIQUE": (0.643, 0.795),
        "Re-IQA": (0.807, 0.876),
        "CLIP-IQA+": (0.835, 0.885),
        "ATTIQA": (0.854, 0.911),
    },
)
ATTIQA_ISP_WIN_RATE = 58.0  # % of 200 pairs in which the tuned ISP beat Expert C of MIT-Adobe FiveK

EXIQA_1 = Table(
    "ExIQA table 1",
    "sizes of data sets and the ends of their scales",
    ("distortions", "references", "images", "low", "high"),
    {
        "kadid": (25, 81, 10125, 1, 5),
        "tid2013": (24, 25, 3000, 0, 9),
        "csiq": (6, 30, 866, 0, 1),
        "live": (5, 29, 779, 1, 100),
        "lvq": (25, 2561, 51220, 0, 3),
        "exiqa": (25, 10000, 100000, None, None),
    },
    "LVQ has 5 distortions, and its references are frames of 10 videos",
)
EXIQA_2 = Table(
    "ExIQA table 2",
    "distortion identification in-domain; visual prompts, for ExIQA-100k all of CLIP",
    ("prompts", "accuracy", "rmse"),
    {
        "kadid": (100, 97.65, 0.0347),
        "tid2013": (100, 96.98, 0.0581),
        "csiq": (15, 92.44, 0.0572),
        "lvq": (30, 98.37, 0.0315),
        "live": (15, 93.42, 0.0697),
        "exiqa": (None, 68.82, 0.156),
    },
    "an all-zero prediction has an accuracy of 96 % where one of 25 distortions is present",
)
EXIQA_3 = Table(
    "ExIQA table 3",
    f"in-domain: {_MEDIAN}",
    _each("kadid tid2013 csiq lvq live average", "plcc", "srocc"),
    {
        "NIQE": (0.428, 0.374, 0.393, 0.315, 0.712, 0.627, 0.458, 0.499, 0.901, 0.907, 0.578, 0.544),
        "BRISQUE": (0.567, 0.528, 0.694, 0.604, 0.829, 0.746, 0.472, 0.436, 0.935, 0.939, 0.699, 0.651),
        "CORNIA": (0.558, 0.516, 0.768, 0.678, 0.776, 0.678, 0.567, 0.519, 0.950, 0.947, 0.724, 0.668),
        "HOSA": (0.653, 0.618, 0.815, 0.735, 0.823, 0.741, 0.602, 0.577, 0.950, 0.946, 0.769, 0.723),
        "DB-CNN": (0.856, 0.851, 0.865, 0.816, 0.959, 0.946, 0.902, 0.876, 0.971, 0.968, 0.911, 0.891),
        "HyperIQA": (0.845, 0.852, 0.858, 0.840, 0.942, 0.923, 0.937, 0.911, 0.966, 0.962, 0.910, 0.898),
        "TReS": (0.858, 0.859, 0.883, 0.863, 0.942, 0.922, 0.928, 0.918, 0.968, 0.969, 0.916, 0.907),
        "CONTRIQUE": (0.937, 0.934, 0.857, 0.843, 0.955, 0.942, 0.959, 0.945, 0.961, 0.960, 0.934, 0.925),
        "Re-IQA": (0.885, 0.872, 0.861, 0.804, 0.960, 0.947, 0.961, 0.958, 0.971, 0.970, 0.928, 0.910),
        "LIQE": (0.931, 0.930, 0.875, 0.856, 0.939, 0.936, 0.969, 0.944, 0.951, 0.970, 0.933, 0.927),
        "ARNIQA": (0.912, 0.908, 0.901, 0.880, 0.973, 0.962, 0.970, 0.937, 0.970, 0.966, 0.945, 0.931),
        "ExIQA": (0.943, 0.939, 0.899, 0.912, 0.961, 0.965, 0.987, 0.966, 0.967, 0.973, 0.951, 0.951),
    },
    "the averages are those of the cells, but for the SROCC of TReS: printed 0.907, 0.906 by its cells",
)
EXIQA_4 = Table(
    "ExIQA table 4",
    "distortion identification zero-shot: CLIP tuned on one data set, tested on another",
    ("accuracy", "rmse"),
    {
        "kadid>tid2013": (81.15, 0.1612),
        "kadid>csiq": (71.41, 0.2710),
        "kadid>lvq": (84.0, 0.2710),
        "kadid>live": (70.81, 0.1914),
        "tid2013>kadid": (88.51, 14.49),
        "tid2013>csiq": (66.41, 0.2528),
        "tid2013>lvq": (83.94, 0.2722),
        "tid2013>live": (72.33, 0.1893),
        "exiqa>kadid": (94.00, 0.1285),
        "exiqa>tid2013": (90.35, 0.1421),
        "exiqa>csiq": (76.15, 0.2383),
        "exiqa>lvq": (88.97, 0.2382),
        "exiqa>live": (71.44, 0.1933),
    },
    "the RMSE of 14.49 (tid2013>kadid) must mean 0.1449",
)
EXIQA_5 = Table(
    "ExIQA table 5",
    "SROCC; attributes of one data set, regressor trained on the training split of the other, tested on its test split",
    ("HyperIQA", "CONTRIQUE", "Re-IQA", "ARNIQA", "ExIQA"),
    {
        "kadid>tid2013": (0.706, 0.612, 0.777, 0.760, 0.817),
        "kadid>csiq": (0.809, 0.773, 0.855, 0.882, 0.913),
        "kadid>lvq": (0.854, 0.867, 0.927, 0.933, 0.966),
        "kadid>live": (0.908, 0.900, 0.892, 0.898, 0.883),
        "tid2013>kadid": (0.581, 0.640, 0.636, 0.726, 0.845),
        "tid2013>csiq": (0.709, 0.811, 0.850, 0.866, 0.9154),
        "tid2013>lvq": (0.844, 0.893, 0.922, 0.920, 0.9562),
        "tid2013>live": (0.876, 0.904, 0.900, 0.869, 0.914),
        "exiqa>kadid": (None, None, None, None, 0.931),
        "exiqa>tid2013": (None, None, None, None, 0.8237),
        "exiqa>csiq": (None, None, None, None, 0.939),
        "exiqa>lvq": (None, None, None, None, 0.940),
        "exiqa>live": (None, None, None, None, 0.922),
    },
    "not the cross-dataset protocol: the regressor has seen scores of the tested data set",
)

MP_IQE_1 = Table(
    "MP-IQE table 1",
    f"in-domain: {_MEDIAN}",
    _each("live csiq kadid clive bid koniq", "plcc", "srocc"),
    {
        "ILNIQE": (0.906, 0.902, 0.865, 0.822, 0.558, 0.534, 0.508, 0.508, 0.494, 0.548, 0.537, 0.523),
        "UNIQUE": (0.952, 0.961, 0.912, 0.902, 0.875, 0.852, 0.884, 0.854, 0.885, 0.884, 0.900, 0.895),
        "DBCNN": (0.971, 0.968, 0.959, 0.946, 0.856, 0.851, 0.869, 0.851, 0.883, 0.864, 0.884, 0.875),
        "MetaIQA": (0.959, 0.960, 0.908, 0.899, 0.775, 0.762, 0.835, 0.802, 0.868, 0.856, 0.887, 0.850),
        "HyperIQA": (0.966, 0.962, 0.942, 0.923, 0.845, 0.852, 0.882, 0.859, 0.868, 0.848, 0.917, 0.906),
        "TReS": (0.968, 0.969, 0.942, 0.922, 0.858, 0.859, 0.877, 0.846, 0.871, 0.853, 0.928, 0.915),
        "MUSIQ": (0.911, 0.940, 0.893, 0.871, 0.872, 0.875, 0.746, 0.702, 0.774, 0.744, 0.928, 0.916),
        "DACNN": (0.980, 0.978, 0.957, 0.943, 0.905, 0.905, 0.884, 0.866, 0.759, 0.754, 0.912, 0.901),
        "LIQE": (0.951, 0.970, 0.939, 0.936, 0.931, 0.930, 0.910, 0.904, 0.900, 0.875, 0.908, 0.919),
        "MP-IQE": (0.980, 0.978, 0.968, 0.961, 0.944, 0.941, 0.916, 0.900, 0.887, 0.862, 0.904, 0.898),
    },
)
MP_IQE_2 = Table(
    "MP-IQE table 2",
    f"in-domain: {_MEDIAN}",
    _each("clive koniq", "plcc", "srocc"),
    {
        "CLIP-IQA": (0.594, 0.612, 0.727, 0.695),
        "CLIP-IQA+": (0.832, 0.805, 0.909, 0.895),
        "MP-IQE": (0.916, 0.900, 0.904, 0.898),
    },
    "the row CLIP-IQA+ is printed as a second CLIP-IQA",
)
MP_IQE_3 = Table(
    "MP-IQE table 3",
    "cross-dataset: SROCC, trained on one data set, tested on another",
    ("clive>koniq", "koniq>clive", "live>csiq", "csiq>live"),
    {
        "DBCNN": (0.754, 0.755, 0.758, 0.877),
        "P2P-BM": (0.740, 0.770, 0.712, None),
        "HyperIQA": (0.772, 0.785, 0.744, 0.926),
        "TReS": (0.733, 0.786, 0.761, None),
        "MP-IQE": (0.781, 0.844, 0.783, 0.935),
    },
)
MP_IQE_4 = Table(
    "MP-IQE table 4",
    f"in-domain, ablations: {_MEDIAN}",
    _each("csiq clive", "plcc", "srocc"),
    {
        "full": (0.968, 0.961, 0.916, 0.900),
        "no-scene": (0.965, 0.956, 0.913, 0.882),
        "no-distortion": (0.961, 0.953, 0.911, 0.884),
        "no-visual": (0.947, 0.932, 0.893, 0.874),
        "shallow-visual": (0.956, 0.947, 0.905, 0.888),
    },
)
MP_IQE_5 = Table(
    "MP-IQE table 5",
    "trained on 20, 40 or 60 % of the data",
    _each("live clive", "plcc", "srocc"),
    {
        "20 % ViT-BIQA": (0.828, 0.894, 0.641, 0.662),
        "20 % HyperNet": (0.950, 0.951, 0.809, 0.776),
        "20 % MP-IQE": (0.960, 0.956, 0.845, 0.808),
        "40 % ViT-BIQA": (0.847, 0.903, 0.714, 0.684),
        "40 % HyperNet": (0.961, 0.959, 0.849, 0.832),
        "40 % MP-IQE": (0.974, 0.972, 0.889, 0.856),
        "60 % ViT-BIQA": (0.856, 0.915, 0.739, 0.705),
        "60 % HyperNet": (0.963, 0.960, 0.862, 0.843),
        "60 % MP-IQE": (0.975, 0.973, 0.904, 0.880),
    },
)
MP_IQE_6 = Table(
    "MP-IQE table 6",
    f"in-domain, lengths of prompts: {_MEDIAN}; of text with 4 visual ones, visual with 8 of text",
    _each("live csiq", "plcc", "srocc"),
    {
        "text 2": (0.977, 0.974, 0.964, 0.956),
        "text 4": (0.979, 0.975, 0.963, 0.953),
        "text 8": (0.980, 0.978, 0.968, 0.961),
        "text 16": (0.980, 0.978, 0.963, 0.952),
        "visual 1": (0.978, 0.974, 0.965, 0.957),
        "visual 2": (0.978, 0.975, 0.969, 0.961),
        "visual 4": (0.980, 0.978, 0.968, 0.961),
        "visual 8": (0.978, 0.974, 0.967, 0.959),
    },
)

TABLES = (
    *(ATTIQA_2, ATTIQA_3, ATTIQA_4, ATTIQA_5, ATTIQA_6, ATTIQA_7, ATTIQA_8, ATTIQA_9),
    *(EXIQA_1, EXIQA_2, EXIQA_3, EXIQA_4, EXIQA_5),
    *(MP_IQE_1, MP_IQE_2, MP_IQE_3, MP_IQE_4, MP_IQE_5, MP_IQE_6),
)


def in_domain(name: str) -> list[Figure]:
    """Each paper's own in-domain result on a data set; empty where none has one."""
    own = ((ATTIQA_2, "ATTIQA-joint"), (EXIQA_3, "ExIQA"), (MP_IQE_1, "MP-IQE"))
    return [
        _figure(table, row, f"{name} srocc", f"{name} plcc") for table, row in own if f"{name} srocc" in table.columns
    ]


def linear_probe(name: str) -> list[Figure]:
    """ATTIQA's linear probe on a data set; empty where it has none."""
    columns = f"{name} srocc", f"{name} plcc"
    return [_figure(ATTIQA_6, "ATTIQA", *columns)] if columns[0] in ATTIQA_6.columns else []


def data_efficient(name: str, fraction: float) -> list[Figure]:
    """ATTIQA trained on a fraction, 0.1 or 0.2, of a data set; empty where it has none."""
    column = f"{name} {fraction * 100:g} %"
    return [_figure(ATTIQA_4, "ATTIQA", column)] if column in ATTIQA_4.columns else []


def cross_dataset(train: str, test: str) -> list[Figure]:
    """Each paper's own result trained on one data set, tested on another; empty where none has one."""
    column, own = f"{train}>{test}", ((ATTIQA_3, "ATTIQA"), (MP_IQE_3, "MP-IQE"))
    return [_figure(table, row, column) for table, row in own if column in table.columns]


def feature_cosine(name: str) -> float | None:
    """ATTIQA's cosine of features before and after fine-tuning on a data set; None where it has none."""
    column = f"{name} cosine"
    return ATTIQA_5.value("ATTIQA", column) if column in ATTIQA_5.columns else None


def _figure(table: Table, row: str, srocc: str, plcc: str | None = None) -> Figure:
    return Figure(
        f"{table.source}, {row}", table.protocol, table.value(row, srocc), table.value(row, plcc) if plcc else None
    )
