"""State_dicts of whole models: written here under torchvision's names, without torch."""

import json
import logging

import numpy as np
import pytest
from torch_writer import tensor, zip_file

from detseg.backbones.create import create_backbone
from detseg.backbones.torch_weights import download
from detseg.config import load_config
from detseg.convert_weights import convert_weights
from detseg.errors import UserError
from detseg.pretrained.catalogue import COCO_CLASSES, COCO_NAMES, PRESETS, VOC_CLASSES
from detseg.pretrained.load import leaves
from detseg.pretrained.torchvision import head_module
from detseg.tasks import create_task

DATA = {"format": "coco", "root": "r", "train": {"annotations": "a", "images": "i"}}
TRAIN = {"epochs": 1, "batch_size": 2, "optimizer": {"name": "sgd", "learning_rate": 0.1}}


def config_of(preset, task="detection", **model):
    return load_config({"task": task, "data": DATA, "model": {"preset": preset, **model}, "train": TRAIN})


def model_of(config, classes, pretrained=True):
    return create_task(config, classes).create_model(pretrained)


def state_of(preset, classes, task="detection"):
    """{torchvision's name: array} of one of our models of random weights, in torchvision's layout."""
    config = config_of(preset, task)
    model, backbone = model_of(config, classes, pretrained=False)
    inside = {id(layer) for layer in backbone.model.layers}
    prefix = "backbone.body." if task == "detection" else "backbone."
    state = {}
    for layer in dict.fromkeys(leaves(model)):
        if not layer.weights:
            continue
        is_inside = id(layer) in inside
        module = prefix + backbone.torch_module(layer.name) if is_inside else head_module(config.model, layer.name)
        names = ("weight", "bias", "running_mean", "running_var")
        for name, array in zip(names, map(np.asarray, layer.weights), strict=False):
            if array.ndim == 4:
                array = array.transpose(3, 2, 0, 1)
            state[f"{module}.{name}"] = array.T if array.ndim == 2 else array
    return state


@pytest.fixture(scope="module")
def mask_rcnn_state():
    """Of a Mask R-CNN with COCO's 90 ids as torchvision counts them: background first."""
    state = state_of("maskrcnn_resnet50_fpn_coco", [name or f"unused {i}" for i, name in enumerate(COCO_NAMES)])
    for name in ("weight", "bias"):
        logits, boxes, masks = (
            f"roi_heads.{part}.{name}"
            for part in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        )
        state[logits] = np.roll(state[logits], 1, axis=0)
        state[boxes] = np.concatenate([np.zeros_like(state[boxes][:4]), state[boxes]])
        state[masks] = np.concatenate([np.zeros_like(state[masks][:1]), state[masks]])
    return state


def written(path, state):
    path.write_bytes(zip_file({name: tensor(np.ascontiguousarray(array)) for name, array in state.items()}))
    return str(path)


@pytest.fixture(scope="module")
def mask_rcnn_file(mask_rcnn_state, tmp_path_factory):
    return written(tmp_path_factory.mktemp("state") / "mask.pth", mask_rcnn_state)


def layer_weights(model):
    return {layer.name: [np.asarray(w) for w in layer.weights] for layer in leaves(model) if layer.weights}


def test_rows_of_classes_with_the_same_name_are_taken_over_and_the_rest_is_new(mask_rcnn_state, mask_rcnn_file, caplog):
    classes = ("nucleus", "Dog", "person")
    with caplog.at_level(logging.INFO, "detseg"):
        model, _ = model_of(config_of("maskrcnn_resnet50_fpn_coco", weights=mask_rcnn_file), classes)
    assert "classes taken over: Dog, person; new: nucleus" in caplog.text
    ours = layer_weights(model)
    dog, person = COCO_NAMES.index("dog") + 1, COCO_NAMES.index("person") + 1
    logits, boxes = (mask_rcnn_state[f"roi_heads.box_predictor.{name}.weight"] for name in ("cls_score", "bbox_pred"))
    masks = mask_rcnn_state["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    np.testing.assert_array_equal(ours["class_logits"][0][:, 1:], logits[[dog, person, 0]].T)
    np.testing.assert_array_equal(ours["class_boxes"][0][:, 4:8], boxes[4 * dog : 4 * dog + 4].T)
    np.testing.assert_array_equal(ours["mask_logits"][0][0, 0, :, 2], masks[person, :, 0, 0])
    assert not np.isin(ours["class_logits"][0][:, 0], logits).all()
    fc6 = mask_rcnn_state["roi_heads.box_head.fc6.weight"].reshape(1024, 256, 7, 7)
    np.testing.assert_array_equal(ours["fc6"][0].reshape(7, 7, 256, 1024), fc6.transpose(2, 3, 1, 0))


@pytest.mark.slow
def test_both_spellings_are_read(mask_rcnn_state, tmp_path):
    """As in the file of 2020: one number less in the pyramid and the proposal network, mask_fcn1 to 4."""
    old = {}
    for name, array in mask_rcnn_state.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "fpn." in name:
            name = name.replace("_blocks.0.0.", "_blocks.0.").replace("_blocks.1.0.", "_blocks.1.")
            name = name.replace("_blocks.2.0.", "_blocks.2.").replace("_blocks.3.0.", "_blocks.3.")
        for i in range(4):
            name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        old[name] = array
    assert len(old.keys() - mask_rcnn_state.keys()) == 2 * (8 + 1 + 4)
    paths = written(tmp_path / "new.pth", mask_rcnn_state), written(tmp_path / "old.pth", old)
    new, old = (
        layer_weights(model_of(config_of("maskrcnn_resnet50_fpn_coco", weights=path), COCO_CLASSES)[0])
        for path in paths
    )
    assert all(np.array_equal(a, b) for name in new for a, b in zip(new[name], old[name], strict=True))


def test_a_file_of_another_model_names_its_first_keys_and_the_preset_that_fits(mask_rcnn_state, mask_rcnn_file):
    with pytest.raises(UserError) as error:
        model_of(config_of("retinanet_resnet50_fpn_coco", weights=mask_rcnn_file), COCO_CLASSES)
    assert "does not fit retinanet on resnet50" in str(error.value)
    assert f"Its first keys are {', '.join(list(mask_rcnn_state)[:5])}" in str(error.value)
    assert "model.preset: maskrcnn_resnet50_fpn_coco would fit" in str(error.value)


def test_a_backbone_is_taken_out_of_a_whole_model(mask_rcnn_state, mask_rcnn_file):
    backbone = create_backbone("resnet50", weights=mask_rcnn_file, variant="b")
    kernel = np.asarray(backbone.model.get_layer("conv4_block6_2_conv").weights[0])
    np.testing.assert_array_equal(kernel, mask_rcnn_state["backbone.body.layer3.5.conv2.weight"].transpose(2, 3, 1, 0))
    with pytest.raises(UserError, match=r"state_dict of torchvision's resnet50, .* expected model.variant: b"):
        create_backbone("resnet50", weights=mask_rcnn_file)
    with pytest.raises(UserError, match=r"expected model\.backbone: resnet50"):
        create_backbone("resnet18", weights=mask_rcnn_file)


def test_a_form_that_torchvision_lacks_is_refused_with_the_preset_that_fits(mask_rcnn_file):
    model = {"name": "mask_rcnn", "backbone": "resnet50", "weights": mask_rcnn_file}
    config = load_config({"task": "detection", "data": DATA, "model": model, "train": TRAIN})
    with pytest.raises(UserError, match=r"whose form this resnet50 doesn't have; model\.preset: maskrcnn_resnet50_fpn"):
        model_of(config, COCO_CLASSES)


def test_models_that_torchvision_lacks_take_the_backbone_out_of_a_whole_model(mask_rcnn_state, mask_rcnn_file):
    model = {"name": "fcn8s", "backbone": "resnet50", "variant": "b", "weights": mask_rcnn_file}
    config = load_config({"task": "segmentation", "data": DATA, "model": model, "train": TRAIN})
    model, _ = model_of(config, VOC_CLASSES)
    kernel = layer_weights(model)["conv4_block6_2_conv"][0]
    expected = mask_rcnn_state["backbone.body.layer3.5.conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def test_segmenters_of_other_classes_keep_vocs(tmp_path, caplog):
    state = state_of("fcn_resnet50_coco", VOC_CLASSES, "segmentation")
    path = written(tmp_path / "fcn.pth", state)
    with caplog.at_level(logging.INFO, "detseg"):
        model, _ = model_of(config_of("fcn_resnet50_coco", "segmentation", weights=path), ("background", "car", "road"))
    assert "classes taken over: background, car; new: road" in caplog.text
    kernel = layer_weights(model)["logits_conv"][0][0, 0]
    np.testing.assert_array_equal(kernel[:, :2], state["classifier.4.weight"][[0, 7], :, 0, 0].T)


def test_a_published_model_becomes_a_run_and_a_backbone_alone_does_not(tmp_path):
    state = state_of("fcn_resnet50_coco", VOC_CLASSES, "segmentation")
    run = convert_weights("fcn_resnet50_coco", tmp_path / "run", written(tmp_path / "fcn.pth", state))
    facts = json.loads((run / "model.json").read_text())
    assert facts["score_name"] == "miou"
    assert json.loads((run / "classes.json").read_text()) == list(VOC_CLASSES)
    inner = {name.removeprefix("backbone."): array for name, array in state.items() if name.startswith("backbone.")}
    with pytest.raises(UserError, match=r"is of a backbone alone, without a classifier; expected all of fcn_resnet50"):
        convert_weights("fcn_resnet50_coco", tmp_path / "other", written(tmp_path / "resnet.pth", inner))
    assert not (tmp_path / "other").exists()


def test_without_a_network_the_error_says_how_to_place_the_file(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise Exception("URL fetch failure: no route to host")

    monkeypatch.setattr("keras.utils.get_file", fail)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"could not be downloaded: URL fetch failure.*download it elsewhere and put it"
    ) as error:
        download("x-0123abcd.pth")
    assert str(tmp_path / "models") in str(error.value)


def test_a_downloaded_file_that_was_altered_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "x-0123abcd.pth"
    path.write_bytes(b"altered")
    monkeypatch.setattr("keras.utils.get_file", lambda *_, **__: str(path))
    with pytest.raises(UserError, match="altered"):
        download(path.name)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_with_its_weights(name):
    preset = PRESETS[name]
    options = config_of(name, preset.task).model
    assert (options.preset, options.weights, options.name) == (name, "coco", preset.model["name"])


def test_a_key_that_contradicts_the_preset_is_an_error():
    with pytest.raises(UserError, match=r"model\.variant: got None, but fcn_resnet50_coco has 'b'; leave the key out"):
        config_of("fcn_resnet50_coco", "segmentation", variant=None)
    with pytest.raises(UserError, match=r"model\.preset: fcn_resnet50_coco is for task: segmentation"):
        config_of("fcn_resnet50_coco")
    with pytest.raises(UserError, match=r"got 'fcn_resnet50', expected one of .*; did you mean 'fcn_resnet50_coco'"):
        config_of("fcn_resnet50", "segmentation")
    model = {"name": "retinanet", "backbone": "resnet50", "weights": "coco"}
    with pytest.raises(UserError, match=r"weights is coco, the published weights of a preset; expected preset: NAME"):
        load_config({"task": "detection", "data": DATA, "model": model, "train": TRAIN})
