"""A file says what a model is, never where to look: nothing in it runs code, asks a network or leads to a folder."""

import copy
import json
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from attriqa import cli, load
from attriqa.models import checkpoint
from attriqa.models.checkpoint import CheckpointError
from attriqa.models.clip.towers import CLIPEncoder, build_clip, load_clip
from tests.models import test_contract
from tests.support import small_clip

ON_CLIP = [name for name in test_contract.CASES if name != "attribute-net"]
PLACES = ("hf-hub:attacker/model", "local-dir:{folder}", "{folder}", "https://example.invalid/model")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What is connected to or looked up meanwhile; each test ends with nothing in it."""
    found: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        found.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the library itself must not ask
    yield found
    assert found == []


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder with a tokenizer whose module leaves a mark when it is imported."""
    folder = tmp_path / "evil"
    folder.mkdir()
    about = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    Image.new("RGB", (64, 64)).save(folder / "photo.png")
    mark = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "evil.py").write_text(mark + "class Evil: pass\n")
    return folder


def test_the_folder_is_evil(tmp_path: Path, evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this control the tests below could not fail."""
    from transformers import AutoTokenizer

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(Exception, match="Evil"):
        AutoTokenizer.from_pretrained(str(evil), trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def spoilt(text: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A ``text_cfg`` that would have the module in ``folder`` imported."""
    return text | {"hf_tokenizer_name": str(folder), "tokenizer_kwargs": {"trust_remote_code": True}}


@cache
def saved(case: str) -> checkpoint.Checkpoint:
    """What a checkpoint of this kind holds; nobody changes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        test_contract.CASES[case].build().save(path, {})
        return checkpoint.load(path)


def rewrite(path: Path, found: checkpoint.Checkpoint, config: dict[str, Any]) -> None:
    """The same checkpoint with another config and a digest that is right."""
    checkpoint.save(path, found.state, architecture=found.architecture, config=config, provenance={},
                    prompts_hash=found.prompts_hash)  # fmt: skip


@pytest.mark.parametrize("case", ON_CLIP)
def test_a_checkpoint_imports_no_tokenizer(
    case: str, tmp_path: Path, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    found = saved(case)
    config = copy.deepcopy(found.config)
    config["clip"]["architecture"]["model_cfg"]["text_cfg"] = spoilt(
        config["clip"]["architecture"]["model_cfg"]["text_cfg"], evil
    )
    rewrite(path, found, config)
    with pytest.raises(CheckpointError, match=r"text_cfg\.(hf_tokenizer_name|tokenizer_kwargs): expected"):
        load(path)
    assert cli.main(["score", str(evil), "--model", str(path)]) == 2
    assert "text_cfg." in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "field",
    ["text_cfg.hf_tokenizer_name", "text_cfg.hf_model_name", "vision_cfg.timm_model_name", "vision_cfg.hf_hub",
     "text_cfg.pool_kwargs", "trust_remote_code", "hf_model_name"],
)  # fmt: skip
@pytest.mark.parametrize("case", ON_CLIP)
def test_no_field_of_a_clip_names_a_place(case: str, field: str, place: str, tmp_path: Path, evil: Path) -> None:
    path = tmp_path / "model.safetensors"
    found = saved(case)
    config = copy.deepcopy(found.config)
    part, _, name = field.rpartition(".")
    architecture = config["clip"]["architecture"]["model_cfg"]
    (architecture[part] if part else architecture)[name] = place.format(folder=evil)
    rewrite(path, found, config)
    with pytest.raises(CheckpointError, match=rf"{field}: expected .*, got"):
        load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("pretrained", [None, "openai", "{folder}/open_clip_model.safetensors"])
@pytest.mark.parametrize("case", ON_CLIP)
def test_a_clip_that_was_left_out_is_no_place(
    case: str, place: str, pretrained: str | None, tmp_path: Path, evil: Path
) -> None:
    """Its name and its tag are looked up among open_clip's own, and its weights on this machine."""
    small_clip.write(evil)  # a model that would load
    path = tmp_path / "model.safetensors"
    found = saved(case)
    config = copy.deepcopy(found.config)
    config["clip"] |= {
        "name": place.format(folder=evil),
        "pretrained": pretrained and pretrained.format(folder=evil),
        "weights": "0" * 16,
    }
    rewrite(path, found, config)
    with pytest.raises(CheckpointError, match="expected a model and a tag of open_clip"):
        load(path)


@pytest.mark.parametrize("case", ON_CLIP)
def test_weights_that_are_not_here_are_not_fetched(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    found = saved(case)
    config = copy.deepcopy(found.config)
    config["clip"] |= {"name": "RN50", "pretrained": "yfcc15m", "weights": "0" * 16}
    rewrite(path, found, config)
    with pytest.raises(CheckpointError, match=r"weights 'yfcc15m' of RN50 are not on this machine.*fetch them once"):
        load(path)


@pytest.mark.parametrize("field", ["name", "pretrained", "architecture", "weights"])
def test_fields_of_another_type_are_named(field: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    found = saved("liqe")
    config = copy.deepcopy(found.config)
    config["clip"][field] = 3
    rewrite(path, found, config)
    with pytest.raises(CheckpointError, match=rf"clip\.{field} is a int"):
        load(path)


@pytest.mark.parametrize("place", [*PLACES, "hf-hub:timm/resnet18", "local-dir:resnet18", "../resnet18", "no_such_net"])
def test_a_backbone_is_a_model_of_timm(place: str, tmp_path: Path, evil: Path) -> None:
    path = tmp_path / "model.safetensors"
    found = saved("attribute-net")
    rewrite(path, found, found.config | {"backbone": place.format(folder=evil)})
    with pytest.raises(CheckpointError, match=r"backbone: expected .* or the name of a model of timm, got"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_file_imports_no_tokenizer(tmp_path: Path, evil: Path) -> None:
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(small_clip.VIT | {"text_cfg": spoilt(small_clip.VIT["text_cfg"], evil)}))
    with pytest.raises(ValueError, match=r"evil: text_cfg\.hf_tokenizer_name: expected one of"):
        load_clip(str(path))
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_a_user_names_imports_nothing_either(tmp_path: Path, evil: Path) -> None:
    name = small_clip.write(evil)
    path = evil / "open_clip_config.json"
    about = json.loads(path.read_text())
    about["model_cfg"]["text_cfg"] = spoilt(about["model_cfg"]["text_cfg"], evil)
    path.write_text(json.dumps(about))
    for use in (load_clip, CLIPEncoder):
        with pytest.raises(ValueError, match=r"text_cfg\.hf_tokenizer_name: expected one of"):
            use(name)
    about["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {}}
    path.write_text(json.dumps(about))
    for use in (load_clip, CLIPEncoder):  # the files of its tokenizer are taken from the folder
        with pytest.raises(ValueError, match=r"the tokenizer .*evil cannot be had"):
            use(name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("vision_cfg", "width", 2**40),
        ("vision_cfg", "act_kwargs", {"inplace": True}),
        ("text_cfg", "norm_kwargs", {"device": "meta"}),
        ("text_cfg", "tokenizer_kwargs", {"bpe_path": "/dev/zero"}),
        ("text_cfg", "tokenizer_kwargs", {"clean": "eval"}),
        ("text_cfg", "tokenizer_kwargs", [1]),
        ("vision_cfg", "layers", ["x"]),
        ("vision_cfg", "layers", [1] * 9),
        ("vision_cfg", "pool_type", ["tok"]),
    ],
)
def test_a_value_that_no_model_has_is_refused(part: str, field: str, value: object) -> None:
    config = small_clip.VIT | {part: small_clip.VIT[part] | {field: value}}
    with pytest.raises(ValueError, match=rf"x: {part}\.{field}: expected .*, got"):
        build_clip({"model_cfg": config}, name="x")


@pytest.mark.parametrize(("field", "value"), [("trust_remote_code", True), ("mean", "hf-hub:x"), ("size", {"a": 1})])
def test_a_preprocessing_that_open_clip_does_not_know_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"x: preprocess_cfg\.{field}: expected numbers"):
        build_clip({"model_cfg": small_clip.VIT, "preprocess_cfg": {field: value}}, name="x")


def test_every_model_of_open_clip_passes_but_those_with_a_text_tower_of_hugging_face() -> None:
    import open_clip

    from attriqa.models.clip.architecture import ArchitectureError, check_architecture

    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if "multimodal_cfg" in config:  # CoCa, which is no CLIP
            continue
        check_architecture(config, text_tower=True)
        if config["text_cfg"].get("hf_model_name"):
            with pytest.raises(ArchitectureError, match="hf_model_name: expected no text tower"):
                check_architecture(config)
        else:
            check_architecture(config)


def test_settings_that_models_have_are_kept() -> None:
    text = {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}, "tokenizer_kwargs": {"clean": "lower"}}
    towers = build_clip({"model_cfg": small_clip.VIT | {"text_cfg": small_clip.VIT["text_cfg"] | text}}, name="x")
    assert torch.equal(towers.tokenize(["A  Photo"]), towers.tokenize(["a photo"]))
    assert towers.model.ln_final.eps == 1e-6
