"""A model and what follows it as one compiled function of its weights (model.predict costs 100 ms more a call)."""

import functools

import keras


def compile_forward(model, postprocess):
    """Function (images uint8 (B, h, w, C), size or None) -> what `postprocess` makes of the logits.

    postprocess:  function (logits (B, h, w, K), height, width) -> tuple of tensors; None, None where size is None.
    """
    images, length = ((None, *model.input_shape[1:]), "uint8"), ((), "int32")

    def forward(images, height=None, width=None):
        return postprocess(model(images, training=False), height, width)

    plain, resized = compile_for(model, forward, images), compile_for(model, forward, images, length, length)
    return lambda images, size: plain(images) if size is None else resized(images, *size)


def compile_for(model, function, *arguments):
    """A function that calls the model, compiled: by TensorFlow once for all sizes, by JAX once for each size.

    arguments:  the (shape, dtype) of each; numbers, of shape (), are sizes.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        signature = [tf.TensorSpec(*argument) for argument in arguments]
        # Nothing is there for autograph to convert, which takes seconds.
        return tf.function(function, input_signature=signature, autograph=False)
    import jax

    sizes = [index for index, (shape, _) in enumerate(arguments, 1) if shape == ()]

    @functools.partial(jax.jit, static_argnums=sizes)
    def compiled(values, *arguments):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return function(*arguments)

    return lambda *arguments: compiled([variable.value for variable in model.variables], *arguments)
