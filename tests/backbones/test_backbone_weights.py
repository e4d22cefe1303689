"""Weights copied by layer name from every kind of file, and what is said when they don't fit."""

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from detseg.backbones.create import create_backbone
from detseg.backbones.weights import dense_weights
from detseg.errors import UserError

REAL_WEIGHTS = Path(__file__).resolve().parents[2] / "../shared/weights"


def small(**arguments):
    return create_backbone("mobilenet", alpha=0.25, **arguments)


def numbered(backbone):
    """The backbone with weights that differ from every other backbone's and from each other."""
    rng = np.random.default_rng(5)
    for weight in backbone.model.weights:
        weight.assign(rng.uniform(0.1, 1.0, weight.shape))
    return backbone


def assert_same_weights(ours, theirs):
    for mine, other in zip(ours.model.get_weights(), theirs.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


def segmenter(backbone):
    """A whole model that contains the backbone, as a run saves it."""
    inputs = keras.Input((None, None, 3))
    feature = backbone(keras.layers.Rescaling(1 / 255, name="preprocess")(inputs))[32]
    return keras.Model(inputs, keras.layers.Conv2D(4, 1, name="score")(feature), name="segmenter")


@pytest.mark.parametrize(
    ("file", "name", "alpha"),
    [
        ("mobilenet_v1_0.25_128_imagenet_dequant_no_top.h5", "mobilenet", 0.25),
        ("mobilenet_v1_0.5_160_imagenet_dequant_no_top.h5", "mobilenet", 0.5),
        ("mobilenet_v2_1.0_224_imagenet_dequant_no_top.h5", "mobilenetv2", 1.0),
    ],
)
def test_real_imagenet_files_give_the_features_of_keras_applications(file, name, alpha):
    path = REAL_WEIGHTS / file
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    backbone = create_backbone(name, weights=path, alpha=alpha)
    assert backbone.unused_layers == ()
    function = {"mobilenet": keras.applications.MobileNet, "mobilenetv2": keras.applications.MobileNetV2}[name]
    twin = function(alpha=alpha, include_top=False, weights=str(path), input_shape=(None, None, 3))
    for layer in backbone.model.layers[1:]:
        for mine, other in zip(layer.get_weights(), twin.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(mine, other)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype("float32")
    expected = np.asarray(twin(images))
    # rounding alone: MobileNetV2's variances of up to 100 carry 1e-6 in the first layers to 2e-5 in the last
    np.testing.assert_allclose(backbone(images)[32], expected, rtol=0, atol=5e-5 * expected.max())


@pytest.mark.parametrize("file", ["twin.h5", "twin.keras", "twin.weights.h5"])
def test_files_of_a_classifier_load_and_its_top_is_reported(file, tmp_path):
    twin = keras.applications.MobileNet(alpha=0.25, weights=None, classes=7)
    rng = np.random.default_rng(1)
    twin.set_weights([rng.uniform(0.1, 1.0, weight.shape) for weight in twin.weights])
    twin.save_weights(tmp_path / file) if file.endswith("weights.h5") else twin.save(tmp_path / file)
    backbone = small(weights=tmp_path / file)
    assert backbone.unused_layers == ("conv_preds",)
    for layer in backbone.model.layers[1:]:
        for mine, other in zip(layer.get_weights(), twin.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("file", ["model.h5", "model.keras", "model.weights.h5"])
def test_files_of_a_whole_model_load_into_its_backbone(file, tmp_path):
    source = numbered(small())
    model = segmenter(source)
    model.save_weights(tmp_path / file) if file.endswith("weights.h5") else model.save(tmp_path / file)
    loaded = small(weights=str(tmp_path / file), output_stride=16)
    assert_same_weights(loaded, source)
    assert loaded.unused_layers == ("score",)


def test_old_files_with_split_attributes_and_byte_names_load(tmp_path):
    source = numbered(small())
    with h5py.File(tmp_path / "old.h5", "w") as file:
        names = []
        for layer in source.model.layers:
            group = file.create_group(layer.name)
            weights = [f"{layer.name}_1/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = np.array([name.encode() for name in weights], "S")
            for name, array in zip(weights, layer.get_weights(), strict=True):
                group[name] = array
            names.append(layer.name.encode())
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:40], names[40:]
    assert_same_weights(small(weights=tmp_path / "old.h5"), source)


@pytest.mark.parametrize("channels", [1, 4])
def test_rgb_weights_see_equal_channels_as_they_see_grey_rgb(channels, tmp_path):
    source = numbered(small())
    source.model.save_weights(tmp_path / "rgb.weights.h5")
    loaded = small(weights=tmp_path / "rgb.weights.h5", in_channels=channels)
    grey = np.random.default_rng(2).uniform(-1, 1, (1, 32, 32, 1)).astype("float32")
    expected, features = source(np.repeat(grey, 3, axis=-1)), loaded(np.repeat(grey, channels, axis=-1))
    for key, feature in features.items():
        np.testing.assert_allclose(feature, expected[key], rtol=1e-4, atol=1e-4 * np.max(np.abs(expected[key])))


def test_one_channel_kernel_is_the_sum_over_rgb(tmp_path):
    source = numbered(small())
    source.model.save_weights(tmp_path / "rgb.weights.h5")
    kernel = small(weights=tmp_path / "rgb.weights.h5", in_channels=1).model.get_layer("conv1").get_weights()[0]
    np.testing.assert_allclose(kernel[:, :, 0], source.model.get_layer("conv1").get_weights()[0].sum(2), rtol=1e-5)


def test_weights_of_another_width_are_refused_with_both_shapes_and_change_nothing(tmp_path):
    small().model.save_weights(tmp_path / "narrow.weights.h5")
    with pytest.raises(UserError) as caught:
        create_backbone("mobilenet", alpha=0.5, weights=tmp_path / "narrow.weights.h5")
    message = str(caught.value)
    assert "narrow.weights.h5 does not fit mobilenet: 54 of 54 layers differ" in message
    assert "model.alpha" in message
    assert "conv1: file (3, 3, 3, 8), model (3, 3, 3, 16)" in message
    assert "conv1_bn: file (8,) (8,) (8,) (8,), model (16,) (16,) (16,) (16,)" in message
    assert "and 42 more" in message


def test_a_missing_layer_is_named(tmp_path):
    numbered(small()).model.save_weights(tmp_path / "cut.weights.h5")
    with h5py.File(tmp_path / "cut.weights.h5", "a") as file:
        groups = []
        file.visititems(lambda path, group: groups.append(path) if group.attrs.get("name") == "conv_pw_13" else None)
        del file[groups[0]]
    with pytest.raises(UserError, match=r"1 of 54 layers differ[\s\S]*conv_pw_13: missing in the file"):
        small(weights=tmp_path / "cut.weights.h5")


def test_weights_of_batch_norm_do_not_fit_group_norm(tmp_path):
    small().model.save_weights(tmp_path / "batch.weights.h5")
    with pytest.raises(
        UserError, match=r"model\.norm[\s\S]*conv1_bn: file \(8,\) \(8,\) \(8,\) \(8,\), model \(8,\) \(8,\)"
    ):
        small(weights=tmp_path / "batch.weights.h5", norm="group")
    assert small(weights=tmp_path / "batch.weights.h5", norm="frozen").unused_layers == ()


def test_what_is_no_weight_file_is_refused_by_name(tmp_path):
    (tmp_path / "text.h5").write_text("version https://git-lfs.github.com/spec/v1")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    small().model.save(tmp_path / "whole.keras")
    (tmp_path / "half.keras").write_bytes((tmp_path / "whole.keras").read_bytes()[:1000])
    small().model.save_weights(tmp_path / "whole.weights.h5")
    (tmp_path / "half.weights.h5").write_bytes((tmp_path / "whole.weights.h5").read_bytes()[:100_000])
    for file, message in (
        ("half.weights.h5", r"half\.weights\.h5 cannot be read: .*truncated.*Is the file complete\?"),
        ("absent.h5", r"absent\.h5 is not a file; expected imagenet, null, or the path of"),
        ("text.h5", r"text\.h5 is neither HDF5 .* nor a \.keras model; is it complete"),
        ("half.keras", r"half\.keras is neither HDF5 .* nor a \.keras model; is it complete"),
        ("empty.h5", r"empty\.h5 has no named layers"),
    ):
        with pytest.raises(UserError, match=r"model\.weights: .*" + message):
            small(weights=tmp_path / file)


def test_imagenet_copies_the_twin_and_a_failed_download_says_how_to_go_on(monkeypatch):
    stock = keras.applications.MobileNet
    calls = []

    def downloaded(weights, include_top, input_shape, alpha):
        calls.append((weights, alpha))
        twin = stock(weights=None, include_top=include_top, input_shape=input_shape, alpha=alpha)
        twin.set_weights([np.full(weight.shape, 0.25) for weight in twin.weights])
        return twin

    monkeypatch.setattr(keras.applications, "MobileNet", downloaded)
    assert all((weight == 0.25).all() for weight in small(weights="imagenet").model.get_weights())
    assert calls == [("imagenet", 0.25)]

    def unreachable(alpha, **arguments):
        raise Exception("URL fetch failure on https://storage.googleapis.com")

    monkeypatch.setattr(keras.applications, "MobileNet", unreachable)
    with pytest.raises(
        UserError, match=r"model\.weights: .*mobilenet.*URL fetch failure.*Give the path of a weight file"
    ):
        small(weights="imagenet")


def dense_file(path, kernel_shape=(25088, 4096)):
    """A legacy file with VGG's dense layers; unwritten HDF5 data takes no room on disk and reads as fillvalue."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["fc1", "fc2"]
        for layer, shape, value in (("fc1", kernel_shape, 0.5), ("fc2", (4096, 4096), 2.0)):
            group = file.create_group(layer)
            group.attrs["weight_names"] = ["kernel:0", "bias:0"]
            group.create_dataset("kernel:0", shape, "f2", fillvalue=value)
            group.create_dataset("bias:0", shape[1:], "f2", fillvalue=-value)
    return path


def test_dense_layers_of_a_classifier_come_with_their_shapes(tmp_path):
    dense = dense_weights(dense_file(tmp_path / "vgg16.h5"), "vgg16")
    assert {name: (kernel.shape, bias.shape) for name, (kernel, bias) in dense.items()} == {
        "fc1": ((25088, 4096), (4096,)),
        "fc2": ((4096, 4096), (4096,)),
    }
    assert dense["fc1"][0][0, 0] == 0.5
    assert dense["fc2"][1][0] == -2.0


def test_no_dense_layers_where_there_are_none(tmp_path):
    numbered(small()).model.save_weights(tmp_path / "no_top.weights.h5")
    assert dense_weights(tmp_path / "no_top.weights.h5", "vgg16") is None
    assert dense_weights(dense_file(tmp_path / "other.h5", kernel_shape=(512, 4096)), "vgg16") is None
    assert dense_weights(None, "vgg16") is None
    assert dense_weights("imagenet", "mobilenet") is None


def test_learned_activations_keep_their_first_slopes_where_the_file_has_plain_relus(tmp_path):
    source = numbered(small())
    source.model.save_weights(tmp_path / "relu.weights.h5")
    ours = small(activation="prelu", weights=tmp_path / "relu.weights.h5")
    for layer in ours.model.layers:
        if isinstance(layer, keras.layers.PReLU):
            np.testing.assert_array_equal(layer.get_weights()[0], np.float32(0.25))
        elif layer.weights:
            for mine, other in zip(layer.get_weights(), source.model.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_array_equal(mine, other)
