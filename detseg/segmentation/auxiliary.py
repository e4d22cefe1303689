"""A second classifier on an earlier stage, whose loss helps training and which prediction leaves out."""

import keras


@keras.saving.register_keras_serializable("detseg")
class ModelWithAuxiliary(keras.Model):
    """images -> {"logits": .., "auxiliary_logits": ..}, both trained on the same labels (PSPNet, section 4.2).

    loss = loss(logits) + auxiliary_weight * loss(auxiliary_logits); set `auxiliary_weight` (an attribute, since Keras
    saves functional models only if their constructor is the stock one).
    """

    auxiliary_weight = 0.4

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred["logits"], sample_weight, training)
        # Not compute_loss again, which would add the layers' own losses a second time.
        auxiliary = self._compile_loss(y, y_pred["auxiliary_logits"], sample_weight)
        return loss + self.auxiliary_weight * auxiliary

    def without_auxiliary(self):
        """The keras.Model images -> logits, of the same weights."""
        return keras.Model(self.input, self.output["logits"], name=self.name)

    def get_config(self):
        return {**super().get_config(), "auxiliary_weight": self.auxiliary_weight}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        weight = config.pop("auxiliary_weight")
        model = super().from_config(config, custom_objects)
        model.auxiliary_weight = weight
        return model
