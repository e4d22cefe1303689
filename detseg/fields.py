"""The kinds of values that a config is made of."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field

Item = TypeVar("Item")

FORMS = ("<text>", "<number>", "<list>", "<mapping>", "[key]")  # in pydantic's locations: what was read, not a key


class Section(BaseModel):
    """A mapping of the config: closed, frozen, and strict: true is no number and "3" is no whole number.

    elsewhere:  {key that this mapping does not have, though others like it do: what its message says}.
    """

    elsewhere: ClassVar[dict[str, str]] = {}
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def refuse_unordered(self, lower: str, upper: str) -> None:
        """ValueError where the first of two keys has the larger value."""
        low, high = getattr(self, lower), getattr(self, upper)
        if low > high:
            raise ValueError(f"{lower} is {low}, {upper} is {high}: expected {lower} <= {upper}")


def checked(is_right: Callable[[Any], bool], expected: str, kind: type = AfterValidator) -> Any:
    """A validator, of pydantic's `kind`, that refuses a value unless it is right."""

    def check(value: Any) -> Any:
        if not is_right(value):
            raise ValueError(f"got {shown(value)}, expected {expected}")
        return value

    return kind(check)


def of_length(*names: str) -> BeforeValidator:
    """Refuses what isn't a list of as many items as there are names."""
    expected = f"[{', '.join(names)}]"
    return checked(
        lambda value: isinstance(value, list | tuple) and len(value) == len(names), expected, BeforeValidator
    )


def written_as(expected: str) -> Discriminator:
    """Chooses among the forms a value can be written in, tagged as in FORMS."""

    def form(value: Any) -> str | None:
        if isinstance(value, str):
            return "<text>"
        if isinstance(value, int | float) and not isinstance(value, bool):
            return "<number>"
        if isinstance(value, list | tuple):
            return "<list>"
        return "<mapping>" if isinstance(value, dict | BaseModel) else None

    return Discriminator(form, custom_error_type="form", custom_error_message=expected)


def shown(value: Any) -> str:
    """`value` as a config would have it, shortened to fit into a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        value = [list(entry) if isinstance(entry, tuple) else entry for entry in value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Threshold = Annotated[float, Field(gt=0, le=1)]  # that has to be reached
Probability = Annotated[float, Field(gt=0, lt=1)]
Several = Annotated[tuple[Item, ...], Field(strict=False)]  # a YAML list; a tuple once it is read
NotEmpty = checked(bool, "at least one entry")
Byte = Annotated[int, Field(ge=0, le=255)]
Size = Annotated[tuple[Count, Count], Field(strict=False), of_length("height", "width")]
Color = Annotated[tuple[Byte, Byte, Byte], Field(strict=False), of_length("red", "green", "blue")]
