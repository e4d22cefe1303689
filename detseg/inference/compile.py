"""A model and what follows it as one compiled function."""

import functools

import keras


def compile_forward(model, postprocess):
    """A model and what follows it as one compiled function. (model.predict costs 100 ms more a call.)

    postprocess:  function (logits (B, h, w, K), height, width) -> tuple of tensors; height and width are None where the
                  result has the images' own size.
    Returns       function (images uint8 (B, h, w, C), size) -> that tuple; size is (height, width) or None.
    """
    compilers = {"tensorflow": _compile_tensorflow, "jax": _compile_jax}
    return compilers[keras.backend.backend()](model, postprocess)


def _compile_tensorflow(model, postprocess):
    """Two graphs for images of all sizes, without and with resizing: a new size traces nothing."""
    import tensorflow as tf

    images = tf.TensorSpec((None, None, None, model.input_shape[-1]), tf.uint8)
    length = tf.TensorSpec((), tf.int32)

    @tf.function(input_signature=[images])
    def forward(images):
        return postprocess(model(images, training=False), None, None)

    @tf.function(input_signature=[images, length, length])
    def forward_resized(images, height, width):
        return postprocess(model(images, training=False), height, width)

    return lambda images, size: forward(images) if size is None else forward_resized(images, *size)


def _compile_jax(model, postprocess):
    """One executable an image size, kept by jax.jit."""
    import jax

    @functools.partial(jax.jit, static_argnums=2)
    def forward(variables, images, size):
        logits, _ = model.stateless_call(*variables, images, training=False)
        return postprocess(logits, *(size or (None, None)))

    def call(images, size):
        variables = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]
        return forward(variables, images, size)

    return call
