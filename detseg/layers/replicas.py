"""How many copies of a model share a batch."""

import keras


def replica_count():
    """Copies under TensorFlow's current distribution strategy. (On JAX a sharded batch is one batch to every layer.)"""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync
