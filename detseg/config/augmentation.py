"""The items of `augmentation`, each written as a mapping with one key: {scale_jitter: [0.5, 2.0]}."""

from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, Field, Tag, model_serializer, model_validator

from detseg.fields import Count, Positive, Probability, Section, Share, Size, Text, shown


class _Transform(Section):
    """One random change. `kind` is the key it is written under; what stands behind the key becomes the fields:
    `fields_of` makes their mapping of it, `written` the other way round, `written_schema` the JSON schema from theirs.
    """

    kind: ClassVar[str]

    @classmethod
    def fields_of(cls, written: Any) -> Any:
        return written

    def written(self) -> Any:
        return {name: getattr(self, name) for name in type(self).model_fields}

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
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
    """Written as the list of its fields' values, or as the value of its only field."""

    @classmethod
    def fields_of(cls, written: Any) -> dict:
        names = list(cls.model_fields)
        values = [written] if len(names) == 1 else written
        if not isinstance(values, list) or len(values) != len(names):
            raise ValueError(f"got {shown(written)}, expected [{', '.join(names)}]")
        return dict(zip(names, values, strict=True))

    def written(self) -> Any:
        values = list(super().written().values())
        return values if len(values) > 1 else values[0]

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        values = list(fields["properties"].values())
        items = {"type": "array", "prefixItems": values, "minItems": len(values), "maxItems": len(values)}
        return items if len(values) > 1 else dict(values[0])


class _ShortTransform(_Transform):
    """Written as the mapping of its fields, or short: as the first field alone, from which the others follow."""

    short: ClassVar[str]  # what messages say is expected

    @classmethod
    def expanded(cls, written: Any) -> dict | None:
        """The fields that the short way of writing stands for, None where it isn't one; by default a number > 0."""
        is_short = isinstance(written, int | float) and not isinstance(written, bool) and written > 0
        return {next(iter(cls.model_fields)): written} if is_short else None

    @classmethod
    def fields_of(cls, written: Any) -> dict:
        fields = written if isinstance(written, dict) else cls.expanded(written)
        if fields is None:
            raise ValueError(f"got {shown(written)}, expected {cls.short}")
        return fields

    def written(self) -> Any:
        fields = super().written()
        first = next(iter(fields.values()))
        is_short = self == type(self)(**self.expanded(first))
        return (list(first) if isinstance(first, tuple) else first) if is_short else fields

    @classmethod
    def written_schema(cls, fields: dict) -> dict:
        return {"anyOf": [next(iter(fields["properties"].values())), fields]}


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


class _Crop(_ShortTransform):
    kind = "random_crop"
    short = "[height, width] or {size: [height, width], ..}"
    size: Size = Field(description="[height, width] of the window in pixels.")

    @classmethod
    def expanded(cls, written: Any) -> dict | None:
        return {"size": written} if isinstance(written, list | tuple) and len(written) == 2 else None


class RandomCrop(_Crop):
    """[height, width], or {size: [height, width]} with more keys: cuts out a window; small images are padded first."""

    elsewhere: ClassVar = {"min_visibility": "it is for task: detection"}
    rare_classes: Share = Field(
        0.0,
        description="Probability that the window is laid over a pixel of a class that is rare in the training split.",
    )
    max_class_share: Probability | None = Field(
        None,
        description="The most that one class should have of a window's labelled pixels, as a share: up to 10 windows "
        "are tried; null: any.",
    )


class ObjectCrop(_Crop):
    """[height, width], or {size: [height, width]} with more keys: cuts out a window; small images are padded first."""

    elsewhere: ClassVar = dict.fromkeys(("rare_classes", "max_class_share"), "it is for task: segmentation")
    min_visibility: Share = Field(
        0.1,
        description="Objects with a smaller visible share are dropped. It is the share of the mask's area, or of the "
        "box's where no masks are read, that lies in the window. Boxes are clipped to the window.",
    )


class Resize(_ListTransform):
    """[height, width]: scales image and labels to this size."""

    kind = "resize"
    height: Count = Field(description="Height in pixels.")
    width: Count = Field(description="Width in pixels.")


class Flip(_ListTransform):
    """horizontal, vertical or both: mirrors half of the images, with `both` in each direction independently."""

    kind = "flip"
    direction: Literal["horizontal", "vertical", "both"] = Field(description="The direction.")


class Rotate90(_ListTransform):
    """Probability with which an image is turned by 90, 180 or 270 degrees, all equally likely."""

    kind = "rotate90"
    probability: Share = Field(description="The probability; 0.75 makes all four positions equally likely.")


class Elastic(_ShortTransform):
    """A standard deviation in pixels, or {sigma, grid}: bends images by a smooth random displacement (U-Net paper)."""

    kind = "elastic"
    short = "a number of pixels > 0 or {sigma, grid}"
    sigma: Positive = Field(10.0, description="Standard deviation of the displacements in pixels.")
    grid: Annotated[int, Field(ge=2)] = Field(
        3, description="Displacements are drawn at grid x grid points, and interpolated bicubically in between."
    )


class ColorJitter(_ShortTransform):
    """How far colours are changed: {brightness, contrast, saturation, hue}, or a number s for [s, s, s, s / 10]."""

    kind = "color_jitter"
    short = "a number from 0 to 1 or {brightness, contrast, saturation, hue}"
    brightness: Share = Field(0.0, description="Brightness changes by a factor of 1 - x to 1 + x.")
    contrast: Share = Field(0.0, description="Contrast changes by a factor of 1 - x to 1 + x.")
    saturation: Share = Field(0.0, description="Saturation changes by a factor of 1 - x to 1 + x.")
    hue: float = Field(0.0, ge=0, le=0.5, description="Hue turns by -x to x, 1 being the full circle.")

    @classmethod
    def expanded(cls, written: Any) -> dict | None:
        if not isinstance(written, int | float) or isinstance(written, bool) or not 0 <= written <= 1:
            return None
        return {"brightness": written, "contrast": written, "saturation": written, "hue": written / 10}


class Albumentations(_Transform):
    """{name, arguments}: any transform of albumentations, by its own name and arguments."""

    kind = "albumentations"
    name: Text = Field(description="Name of the class in albumentations.")
    arguments: dict[str, Any] = Field({}, description="Keyword arguments of the class.")


_ALL = (ScaleJitter, RandomCrop, ObjectCrop, Flip, Rotate90, Elastic, ColorJitter, Resize, Albumentations)


def _kind_of(value: Any) -> str | None:
    kind = next(iter(value)) if isinstance(value, dict) and len(value) == 1 else getattr(value, "kind", None)
    return kind if kind in KINDS else None


def _one_of(*members: type[_Transform]) -> Any:
    kind = Discriminator(_kind_of, custom_error_type="augmentation", custom_error_message="not one known key")
    return Annotated[Union[tuple(Annotated[member, Tag(member.kind)] for member in members)], kind]  # noqa: UP007


_FOR_ALL_TASKS = tuple(member for member in _ALL if not issubclass(member, _Crop))
Transform = _one_of(*_FOR_ALL_TASKS, RandomCrop)
ObjectTransform = _one_of(*_FOR_ALL_TASKS, ObjectCrop)
KINDS = tuple(dict.fromkeys(member.kind for member in _ALL))
