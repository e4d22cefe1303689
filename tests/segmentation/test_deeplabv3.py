"""DeepLabv3 and DeepLabv3+: one set of weights at every output stride, every image size, the auxiliary classifier."""

import keras
import numpy as np
import pytest

from detseg.backbones.create import create_backbone
from detseg.layers.resize import resize_bilinear
from detseg.segmentation.deeplabv3 import create_deeplabv3, resize_offset
from detseg.segmentation.losses import SegmentationLoss
from detseg.segmentation.options import DeepLabV3Options, DeepLabV3PlusOptions

CROSS_ENTROPY = SegmentationLoss([{"name": "cross_entropy"}])


def small(output_stride=16, decoder=None, **options):
    """decoder: None, or (decoder_channels, low_level_channels) of a DeepLabv3+."""
    backbone = create_backbone("mobilenetv2", output_stride=output_stride, alpha=0.1)
    options |= {"backbone": "mobilenetv2", "aspp_channels": 8}
    if decoder is None:
        return create_deeplabv3(DeepLabV3Options(name="deeplabv3", **options), backbone, 3)
    options |= dict(zip(("decoder_channels", "low_level_channels"), decoder, strict=True))
    return create_deeplabv3(DeepLabV3PlusOptions(name="deeplabv3plus", **options), backbone, 3)


def randomise(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")


@pytest.mark.parametrize("decoder", [None, (8, 4)])
@pytest.mark.parametrize("size", [(64, 96), (33, 70), (1, 1)])
def test_logits_have_the_images_size(decoder, size):
    logits = small(decoder=decoder)(pictures(2, *size, 3))
    assert logits.shape == (2, *size, 3)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("separable", [False, True])
def test_the_head_at_output_stride_8_sampled_at_phase_zero_is_that_at_16(separable):
    """Trained at one output stride, evaluated at another: the rates follow. (The image's mean is no such thing.)"""
    models = [small(stride, image_pooling=False, separable=separable) for stride in (16, 8)]
    randomise(models[0])
    models[1].set_weights(models[0].get_weights())
    coarse, fine = (
        np.array(keras.Model(model.input, model.get_layer("aspp_join_relu").output)(pictures(1, 64, 96, 3)))
        for model in models
    )
    assert coarse.shape[1:3] == (4, 6)
    assert coarse.std() > 0
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-5 * np.abs(coarse).max())


@pytest.mark.parametrize("stride", [4, 8, 32])
@pytest.mark.parametrize("new_stride", [1, 4])
def test_resized_maps_of_every_output_stride_lie_where_those_of_16_do(stride, new_stride):
    """A ramp over the image, sampled where atrous convolution puts the features: at multiples of the stride."""
    size, places = 96, np.arange(96 // new_stride)

    def resized(stride):
        ramp = np.arange(0, size, stride, dtype="float32")  # of the image's pixels
        maps = np.broadcast_to(ramp[None, None, :, None], (1, 2, len(ramp), 1))
        return np.array(resize_bilinear(maps, 3, len(places), resize_offset(stride, new_stride)))[0, 1, :, 0]

    seen = [resized(stride), resized(16)]
    inner = (places * new_stride >= 8) & (places * new_stride < size - 32)
    np.testing.assert_allclose(seen[0][inner], seen[1][inner], atol=1e-4)
    np.testing.assert_allclose(seen[0][inner], (places * new_stride + (new_stride - 1) / 2 - 7.5)[inner], atol=1e-4)


def test_rates_are_those_of_the_paper_at_16_and_double_at_8():
    for output_stride, rates in ((32, (3, 6, 9)), (16, (6, 12, 18)), (8, (12, 24, 36))):
        model = small(output_stride)
        assert [model.get_layer(f"aspp_atrous{i}").dilation_rate for i in (1, 2, 3)] == [(rate, rate) for rate in rates]


def test_weights_saved_at_one_output_stride_load_at_another(tmp_path):
    trained, finer = small(16, decoder=(8, 4)), small(8, decoder=(8, 4))
    randomise(trained)
    trained.save_weights(tmp_path / "model.weights.h5")
    finer.load_weights(tmp_path / "model.weights.h5")
    for ours, expected in zip(finer.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_batch_of_one_image_trains_with_image_pooling():
    """Batch norm after the mean over the image sees a single value. (From a config it is refused.)"""
    model = small()
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=CROSS_ENTROPY, jit_compile=False)
    for _ in range(2):
        assert np.isfinite(model.train_on_batch(pictures(1, 64, 64, 3), pictures(1, 64, 64) % 3))
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_resnet50_with_aspp_has_the_parameters_worked_out_by_hand():
    backbone = create_backbone("resnet50", output_stride=16, variant="b")
    model = create_deeplabv3(DeepLabV3Options(name="deeplabv3", backbone="resnet50"), backbone, 21)
    norm = 4 * 256
    aspp = 2 * (2048 * 256 + norm) + 3 * (9 * 2048 * 256 + norm)
    join = 5 * 256 * 256 + norm
    classifier = 256 * 21 + 21
    assert model.count_params() == backbone.model.count_params() + aspp + join + classifier


def test_the_auxiliary_loss_is_added_by_its_weight_and_left_out_of_prediction(tmp_path):
    model = small(auxiliary_weight=0.4)
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=CROSS_ENTROPY, jit_compile=False)
    images, labels = pictures(2, 64, 64, 3), pictures(2, 64, 64) % 3
    outputs = model(images)
    losses = {name: float(CROSS_ENTROPY(labels, logits)) for name, logits in outputs.items()}
    total = model.test_on_batch(images, labels)
    assert total == pytest.approx(losses["logits"] + 0.4 * losses["auxiliary_logits"], rel=1e-5)
    np.testing.assert_array_equal(model.without_auxiliary()(images), outputs["logits"])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.auxiliary_weight == 0.4
    np.testing.assert_array_equal(loaded(images)["logits"], outputs["logits"])


def test_logits_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert small(decoder=(8, 4))(pictures(1, 64, 64, 3)).dtype == "float32"


@pytest.mark.slow
def test_a_run_with_an_auxiliary_classifier_is_evaluated_at_another_output_stride(quick_config, tmp_path, caplog):
    import logging

    import detseg
    from detseg.training.fit import train

    logging.getLogger("detseg").propagate = True
    keys = "name: deeplabv3plus, backbone: resnet18, alpha: 0.1, weights: null, auxiliary_weight: 0.4"
    heads = "aspp_channels: 8, decoder_channels: 8, low_level_channels: 4, multi_grid: [1, 2], norm: group"
    with caplog.at_level(logging.WARNING, logger="detseg"):
        folder = train(quick_config(f"model={{{keys}, {heads}}}", "train.epochs=1"), tmp_path / "run")
    assert "64x64 give maps of 4 pixels at output stride 16" in caplog.text
    image = pictures(50, 60, 3)
    scores = {
        stride: detseg.load(folder.path, [f"model.output_stride={stride}"]).predict(image, probabilities=True)
        for stride in (16, 8)
    }
    assert scores[8].probabilities.shape == scores[16].probabilities.shape == (50, 60, 6)
    assert not np.allclose(scores[8].probabilities, scores[16].probabilities, atol=1e-6)
