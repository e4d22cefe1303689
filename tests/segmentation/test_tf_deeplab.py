"""Checkpoints of TensorFlow's DeepLab: our models give what its nets, in raw operations, give from the same file."""

import logging

import keras
import numpy as np
import pytest
import tf_deeplab_reference as reference

from detseg.backbones.backbone import Preprocess
from detseg.backbones.create import create_backbone
from detseg.backbones.tf_deeplab import load_tf_checkpoint, read_tf_checkpoint
from detseg.errors import UserError
from detseg.segmentation.deeplabv3 import create_deeplabv3
from detseg.segmentation.options import DeepLabV3Options, DeepLabV3PlusOptions

ALPHA = {"mobilenetv2": 1.0, "xception65": 0.125}  # mobilenetv2 at its own widths, whose rounding is part of it
SECTIONS = {
    "mobilenetv2": DeepLabV3Options(
        name="deeplabv3", backbone="mobilenetv2", variant="deeplab", aspp_rates=[], resize="align_corners"
    ),
    "xception65": DeepLabV3PlusOptions(
        name="deeplabv3plus", backbone="xception65", separable=True, separable_norm=True, resize="align_corners"
    ),
}


def create(net, output_stride=16, classes=21, **options):
    options = SECTIONS[net].model_copy(update=options)
    backbone = create_backbone(net, output_stride, alpha=ALPHA[net], variant=options.variant)
    return create_deeplabv3(options, backbone, classes)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """{net: (variables, prefix)} of a DeepLab on each."""
    made = {}
    for net, add in (("mobilenetv2", reference.add_mobilenetv2), ("xception65", reference.add_xception65)):
        variables = reference.Variables()
        features = add(variables, ALPHA[net])
        low_level = int(256 * ALPHA[net]) if net == "xception65" else None
        reference.add_head(variables, features, low_level=low_level)
        made[net] = variables, reference.save(variables, tmp_path_factory.mktemp(net) / "model.ckpt")
    return made


@pytest.fixture(scope="module")
def models(checkpoints):
    """{net: our model at output stride 16 with the checkpoint's values}."""
    made = {net: create(net) for net in checkpoints}
    for net, model in made.items():
        assert load_tf_checkpoint(model, checkpoints[net][1]) == (), "the whole checkpoint is used"
    return made


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max()


# ----- parity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(65, 65), (97, 65), (321, 33)])  # the last: rate 18 sees more than its centre
@pytest.mark.parametrize("net", SECTIONS)
def test_logits_equal_those_of_tensorflows_net(net, size, checkpoints, models):
    images = pictures(2, *size, 3)
    expected = reference.deeplab(checkpoints[net][0], images)
    assert np.std(expected, axis=(1, 2)).mean() > 0.05 * np.std(expected), "they differ from place to place"
    logits = models[net](images)
    assert logits.shape == (2, *size, 21)
    assert relative_error(logits, expected) < 1e-4


@pytest.mark.parametrize("net", SECTIONS)
def test_images_of_other_sizes_are_padded_by_the_mean_pixel_as_for_a_crop(net, checkpoints, models):
    images = pictures(2, 70, 90, 3)
    crop = np.full((2, 81, 97, 3), 127.5, "float32")
    crop[:, :70, :90] = images
    expected = reference.deeplab(checkpoints[net][0], crop)[:, :70, :90]
    assert relative_error(models[net](images), expected) < 1e-4


@pytest.mark.parametrize("net", ["mobilenetv2", pytest.param("xception65", marks=pytest.mark.slow)])
def test_at_output_stride_8_the_same_checkpoint_gives_tensorflows_logits(net, checkpoints):
    import tensorflow as tf

    variables, prefix = checkpoints[net]
    model, images = create(net, output_stride=8), pictures(1, 65, 97, 3)
    load_tf_checkpoint(model, prefix)
    # a graph: that is where dilated convolutions take their fast path
    assert relative_error(tf.function(model)(images), reference.deeplab(variables, images, 8)) < 1e-4


@pytest.mark.slow
def test_xception65_at_its_own_width_and_the_size_of_a_crop(tmp_path):
    variables = reference.Variables()
    reference.add_head(variables, reference.add_xception65(variables), low_level=256)
    prefix = reference.save(variables, tmp_path / "model.ckpt")
    model = create_deeplabv3(SECTIONS["xception65"], create_backbone("xception65", 16), 21)
    load_tf_checkpoint(model, prefix)
    assert model.count_params() == sum(array.size for array in variables.values())
    images = pictures(1, 257, 257, 3)
    assert relative_error(model(images), reference.deeplab(variables, images)) < 1e-4


def test_slims_mobilenetv2_is_our_backbone_from_its_moving_averages(tmp_path):
    variables, raw = reference.Variables(), reference.Variables(seed=1)
    for each in (variables, raw):
        reference.add_mobilenetv2(each, alpha=0.5, top=True)
    averages = {f"{name}/ExponentialMovingAverage": array for name, array in variables.items()}
    prefix = reference.save(raw | averages, tmp_path / "mobilenet_v2_0.5_224.ckpt")
    backbone, images = create_backbone("mobilenetv2", alpha=0.5), pictures(2, 64, 96, 3)
    unused = load_tf_checkpoint(backbone, prefix)
    assert unused == ("MobilenetV2/Logits/Conv2d_1c_1x1/biases", "MobilenetV2/Logits/Conv2d_1c_1x1/weights")
    x = Preprocess(backbone.preprocessing)(images)
    assert relative_error(backbone(x)[32], reference.mobilenetv2(variables, x, 32)) < 1e-4


def test_imagenets_xception65_is_our_backbone_also_of_four_channels(tmp_path):
    variables = reference.Variables()
    reference.add_xception65(variables, ALPHA["xception65"], top=True)
    prefix = reference.save(variables, tmp_path / "model.ckpt")
    backbone, images = create_backbone("xception65", 16, alpha=ALPHA["xception65"]), pictures(1, 64, 90, 3)
    assert load_tf_checkpoint(backbone, prefix) == ("xception_65/logits/biases", "xception_65/logits/weights")
    x = Preprocess("tf")(images)
    features, low_level = reference.xception65(variables, x, 16)
    assert relative_error(backbone(x)[32], features) < 1e-4
    assert relative_error(backbone(x)[4], low_level) < 1e-4
    wide = create_backbone("xception65", in_channels=4, alpha=ALPHA["xception65"])
    load_tf_checkpoint(wide, prefix)
    kernel = np.array(wide.model.get_layer("entry_flow_conv1_1").kernel)
    mean = variables["xception_65/entry_flow/conv1_1/weights"].mean(axis=2)
    np.testing.assert_allclose(kernel[:, :, 3], mean * 3 / 4, rtol=1e-6)


def test_a_backbone_takes_its_part_of_a_whole_deeplab(checkpoints):
    variables, prefix = checkpoints["mobilenetv2"]
    backbone = create_backbone("mobilenetv2", 16, variant="deeplab")
    unused = load_tf_checkpoint(backbone, prefix)
    heads = {"aspp_pooling", "aspp_pooling_norm", "aspp_1x1", "aspp_1x1_norm", "aspp_join", "aspp_join_norm"}
    assert set(unused) == heads | {"logits_conv"}
    kernel = backbone.model.get_layer("block_16_project").kernel
    np.testing.assert_array_equal(kernel, variables["MobilenetV2/expanded_conv_16/project/weights"])


def test_norms_have_the_epsilons_of_the_release(models):
    for model in models.values():
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        (net,) = (layer for layer in model.layers if isinstance(layer, keras.Model))
        inner = [layer for layer in net.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert {layer.epsilon for layer in norms} == {1e-5}
        assert {layer.epsilon for layer in inner} == {1e-3}


def test_a_saved_model_aligns_corners_to_the_bit(models, tmp_path):
    models["mobilenetv2"].save(tmp_path / "model.keras")
    loaded, images = keras.models.load_model(tmp_path / "model.keras"), pictures(1, 50, 70, 3)
    np.testing.assert_array_equal(np.array(loaded(images)), np.array(models["mobilenetv2"](images)))


# ----- files ---------------------------------------------------------------------------------------------------------


def test_variables_of_optimizers_are_ignored_and_counted(tmp_path, caplog):
    logging.getLogger("detseg").propagate = True
    kept = {"MobilenetV2/Conv/weights": np.ones((3, 3, 3, 8), "float32")}
    slots = ("Momentum", "Adam", "Adam_1", "RMSProp", "RMSProp_1")
    others = {f"MobilenetV2/Conv/weights/{slot}": np.zeros(1, "float32") for slot in slots}
    others |= {"global_step": np.array(30000), "beta1_power": np.float32(0.9)}
    prefix = reference.save(kept | others, tmp_path / "model.ckpt")
    with caplog.at_level(logging.INFO, logger="detseg"):
        found = read_tf_checkpoint(prefix)
    assert found.keys() == kept.keys()
    np.testing.assert_array_equal(found["MobilenetV2/Conv/weights"], kept["MobilenetV2/Conv/weights"])
    assert "7 variables of an optimizer are ignored" in caplog.text


def truncated(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def overwritten(path):
    path.write_bytes(b"this is no table" * 20)


@pytest.mark.parametrize(
    ("suffix", "spoil", "message"),
    [
        (".index", lambda path: path.unlink(), r"model\.ckpt\.index: missing; expected a checkpoint's prefix: DIR/"),
        (".data-00000-of-00001", lambda path: path.unlink(), r"data-00000-of-00001: missing beside model\.ckpt\.index"),
        (".data-00000-of-00001", truncated, r"model\.ckpt: this checkpoint can't be read: .* Is it complete\?"),
        (".data-00000-of-00001", overwritten, r"model\.ckpt: this checkpoint can't be read: .* Is it complete\?"),
        (".index", truncated, r"model\.ckpt: this checkpoint can't be read: .* Is it complete\?"),
        (".index", overwritten, r"model\.ckpt: this checkpoint can't be read: .* Is it complete\?"),
    ],
)
def test_a_missing_or_broken_file_is_refused(suffix, spoil, message, tmp_path):
    variables = {"MobilenetV2/Conv/weights": np.random.default_rng(0).normal(size=(3, 3, 3, 32)).astype("float32")}
    prefix = reference.save(variables, tmp_path / "model.ckpt")
    spoil(prefix.with_name(f"model.ckpt{suffix}"))
    with pytest.raises(UserError, match=f"^model\\.weights: .*{message}"):
        read_tf_checkpoint(prefix)


def test_each_of_several_data_files_is_asked_for(tmp_path):
    prefix = reference.save({"MobilenetV2/Conv/weights": np.zeros(3)}, tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt.data-00000-of-00001").rename(tmp_path / "model.ckpt.data-00000-of-00002")
    with pytest.raises(UserError, match=r"model\.ckpt\.data-00001-of-00002: missing beside"):
        read_tf_checkpoint(prefix)


def test_a_file_of_the_checkpoint_is_not_its_prefix(checkpoints):
    _, prefix = checkpoints["mobilenetv2"]
    with pytest.raises(UserError, match=r"model\.ckpt\.index\.index: missing; expected a checkpoint's prefix"):
        read_tf_checkpoint(f"{prefix}.index")


def test_another_nets_checkpoint_is_refused_by_its_first_five_names(tmp_path):
    names = [f"resnet_v1_50/block{index}/weights" for index in range(7)]
    slots = {f"{name}/Momentum": np.zeros(1) for name in names}
    prefix = reference.save(dict.fromkeys(names, np.zeros(1)) | slots, tmp_path / "model.ckpt")
    with pytest.raises(UserError) as refused:
        read_tf_checkpoint(prefix)
    assert "is not a checkpoint of TensorFlow's DeepLab: it has " + ", ".join(names[:5]) in str(refused.value)
    assert str(refused.value).endswith("and 2 more; expected variables in xception_65/ or MobilenetV2/")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": 19}, "logits_conv: file (1, 1, 256, 21) (21,), model (1, 1, 256, 19) (19,)"),
        ({"variant": None}, "Conv_1: missing in the file"),
        ({"aspp_rates": (6,)}, "aspp_atrous1: missing in the file"),
        ({"image_pooling": False}, "no layers for image_pooling/BatchNorm/beta, image_pooling/BatchNorm/gamma, "),
    ],
)
def test_a_model_of_another_form_is_refused_and_left_as_it_was(changes, problem, checkpoints):
    _, prefix = checkpoints["mobilenetv2"]
    model = create("mobilenetv2", **changes)
    before = model.get_weights()
    with pytest.raises(UserError) as refused:
        load_tf_checkpoint(model, prefix)
    assert f"model.weights: {prefix} does not fit deeplabv3" in str(refused.value)
    assert problem in str(refused.value)
    assert "The checkpoint is of mobilenetv2; docs/models.md has the model section" in str(refused.value)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_checkpoint_of_the_backbone_alone_is_no_segmenter(tmp_path):
    variables = reference.Variables()
    reference.add_mobilenetv2(variables)
    prefix = reference.save(variables, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=r"does not fit deeplabv3: 7 of 109 layers differ.*\n.*aspp_pooling: missing"):
        load_tf_checkpoint(create("mobilenetv2"), prefix)
