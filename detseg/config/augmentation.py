"""The items of `augmentation`, each written as a mapping with one key: {scale_jitter: [0.5, 2.0]}."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_serializer, model_validator

from detseg.fields import Count, Positive, Section, Size, Text, shown

Strength = Annotated[float, Field(ge=0, le=1)]


class _Transform(Section):
    """One random change. `kind` is the key it is written under; what stands behind the key becomes the fields."""

    kind: ClassVar[str]

    @classmethod
    def fields_of(cls, written: Any) -> Any:
        """The mapping of fields for what stands behind the key."""
        return written

    def written(self) -> Any:
        """What stands behind the key for these fields."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        """JSON schema of what stands behind the key, from that of the mapping of fields."""
        return fields

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return cls.fields_of(value[cls.kind]) if isinstance(value, dict) and list(value) == [cls.kind] else value

    @model_serializer
    def _write(self) -> dict:
        return {self.kind: self.written()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema, handler):
        fields = handler.resolve_ref_schema(handler(core_schema))
        item = {"properties": {cls.kind: cls.written_schema(dict(fields))}, "additionalProperties": False}
        item["properties"][cls.kind]["description"] = cls.__doc__
        return {"type": "object", "title": cls.__name__, **item}


class _ListTransform(_Transform):
    """Written as the list of its fields' values."""

    @classmethod
    def fields_of(cls, written: Any) -> dict:
        names = list(cls.model_fields)
        if not isinstance(written, list) or len(written) != len(names):
            raise ValueError(f"got {shown(written)}, expected [{', '.join(names)}]")
        return dict(zip(names, written, strict=True))

    def written(self) -> list:
        return [getattr(self, name) for name in type(self).model_fields]

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        values = list(fields["properties"].values())
        return {"type": "array", "prefixItems": values, "minItems": len(values), "maxItems": len(values)}


class ScaleJitter(_ListTransform):
    """[low, high]: scales image and labels by a random factor between low and high."""

    kind = "scale_jitter"
    low: Positive = Field(description="The smallest factor.")
    high: Positive = Field(description="The largest factor.")

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError(f"got [{self.low}, {self.high}], expected [low, high] with low <= high")
        return self


class _Crop(_Transform):
    """Written as the bare size where the other fields have their defaults."""

    kind = "random_crop"
    size: Size = Field(description="[height, width] of the window in pixels.")

    @classmethod
    def fields_of(cls, written: Any) -> dict:
        if isinstance(written, dict):
            return written
        if not isinstance(written, list) or len(written) != 2:
            raise ValueError(f"got {shown(written)}, expected [height, width] or {{size: [height, width], ..}}")
        return {"size": written}

    def written(self) -> Any:
        is_plain = self == type(self)(size=self.size)
        return list(self.size) if is_plain else super().written()

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        return {"anyOf": [fields["properties"]["size"], fields]}


class RandomCrop(_Crop):
    """[height, width], or {size: [height, width]} with more keys: cuts out a window; small images are padded first."""

    elsewhere: ClassVar = {"min_visibility": "it is for task: detection"}
    rare_classes: Strength = Field(
        default=0.0,
        description="Probability that the window is laid over a pixel of a class that the training split has few "
        "pixels of, instead of anywhere.",
    )
    max_class_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of a window's labelled pixels that no class should exceed: up to 10 windows are tried; "
        "null: any.",
    )


class ObjectCrop(_Crop):
    """[height, width], or {size: [height, width]} with more keys: cuts out a window; small images are padded first."""

    elsewhere: ClassVar = dict.fromkeys(("rare_classes", "max_class_share"), "it is for task: segmentation")
    min_visibility: Strength = Field(
        default=0.1,
        description="Share of an object's area (of its mask, where masks are read) that has to be in the window; of "
        "which less is there is left out. Boxes are clipped to the window.",
    )


class Resize(_ListTransform):
    """[height, width]: scales image and labels to this size."""

    kind = "resize"
    height: Count = Field(description="Height in pixels.")
    width: Count = Field(description="Width in pixels.")


class Flip(_Transform):
    """horizontal, vertical or both: mirrors half of the images, with `both` in each direction independently."""

    kind = "flip"
    direction: Literal["horizontal", "vertical", "both"] = Field(description="The direction.")

    @classmethod
    def fields_of(cls, written: Any) -> dict:
        return {"direction": written}

    def written(self) -> str:
        return self.direction

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        return dict(fields["properties"]["direction"])


class Rotate90(_Transform):
    """Probability with which an image is turned by 90, 180 or 270 degrees, each alike."""

    kind = "rotate90"
    probability: Strength = Field(description="The probability; 0.75 makes all four positions alike.")

    @classmethod
    def fields_of(cls, written: Any) -> dict:
        return {"probability": written}

    def written(self) -> float:
        return self.probability

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        return dict(fields["properties"]["probability"])


class Elastic(_Transform):
    """A standard deviation in pixels, or {sigma, grid}: moves what is seen by a smooth random field (U-Net paper)."""

    kind = "elastic"
    sigma: Positive = Field(default=10.0, description="Standard deviation of the grid's displacements in pixels.")
    grid: Annotated[int, Field(ge=2)] = Field(
        default=3, description="Displacements are drawn on a grid of this many by as many places, bicubic in between."
    )

    @classmethod
    def fields_of(cls, written: Any) -> dict:
        if isinstance(written, dict):
            return written
        if isinstance(written, bool) or not isinstance(written, int | float) or written <= 0:
            raise ValueError(f"got {shown(written)}, expected a number of pixels > 0 or {{sigma, grid}}")
        return {"sigma": float(written)}

    def written(self) -> Any:
        return self.sigma if self.grid == type(self).model_fields["grid"].default else super().written()

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        return {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, fields]}


class ColorJitter(_Transform):
    """How far colours are changed: {brightness, contrast, saturation, hue}, or a number s for [s, s, s, s / 10]."""

    kind = "color_jitter"
    brightness: Strength = Field(default=0.0, description="Brightness changes by a factor of 1 - x to 1 + x.")
    contrast: Strength = Field(default=0.0, description="Contrast changes by a factor of 1 - x to 1 + x.")
    saturation: Strength = Field(default=0.0, description="Saturation changes by a factor of 1 - x to 1 + x.")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="Hue turns by -x to x, 1 being the full circle.")

    @classmethod
    def fields_of(cls, written: Any) -> dict:
        if isinstance(written, dict):
            return written
        if isinstance(written, bool) or not isinstance(written, int | float) or not 0 <= written <= 1:
            raise ValueError(
                f"got {shown(written)}, expected a number from 0 to 1 or {{brightness, contrast, saturation, hue}}"
            )
        return {"brightness": written, "contrast": written, "saturation": written, "hue": written / 10}

    def written(self) -> Any:
        strength = self.brightness
        if (self.contrast, self.saturation, self.hue) == (strength, strength, strength / 10):
            return strength
        return super().written()

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        return {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, fields]}


class Albumentations(_Transform):
    """{name, arguments}: any transform of albumentations, by its own name and arguments."""

    kind = "albumentations"
    name: Text = Field(description="Name of the class in albumentations.")
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the class.")


_ALL = (ScaleJitter, RandomCrop, ObjectCrop, Flip, Rotate90, Elastic, ColorJitter, Resize, Albumentations)


def _kind_of(value: Any) -> str | None:
    if isinstance(value, _ALL):
        return value.kind
    if isinstance(value, dict) and len(value) == 1:
        (kind,) = value
        return kind if kind in KINDS else None
    return None


_KIND = Discriminator(_kind_of, custom_error_type="augmentation", custom_error_message="not one known key")
_ForAllTasks = (
    Annotated[ScaleJitter, Tag("scale_jitter")]
    | Annotated[Flip, Tag("flip")]
    | Annotated[Rotate90, Tag("rotate90")]
    | Annotated[Elastic, Tag("elastic")]
    | Annotated[ColorJitter, Tag("color_jitter")]
    | Annotated[Resize, Tag("resize")]
    | Annotated[Albumentations, Tag("albumentations")]
)
Transform = Annotated[_ForAllTasks | Annotated[RandomCrop, Tag("random_crop")], _KIND]
ObjectTransform = Annotated[_ForAllTasks | Annotated[ObjectCrop, Tag("random_crop")], _KIND]
KINDS = tuple(dict.fromkeys(member.kind for member in _ALL))
