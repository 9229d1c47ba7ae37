"""Pictures of any size and kind, as the models take them: RGB, upright, 32 x 32."""

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cifartune.errors import UserError, first_line

SIDE = 32
"""Of the images that the models know, in pixels."""

FAR = 3.0
"""A side this many times as long or as short as theirs is far from them."""

MOST_CROPPED = 2.0
"""A picture this many times as wide as high, or as high as wide, loses half of itself."""


@dataclass(frozen=True)
class Picture:
    """An image file.

    Attributes:
        path: Where it is.
        width: In pixels, when it stands upright.
        height: Likewise.
        pixels: uint8 (32, 32, 3), RGB.
    """

    path: Path
    width: int
    height: int
    pixels: npt.NDArray[np.uint8] = field(repr=False, compare=False)

    @property
    def is_far(self) -> bool:
        """Whether it is far from what the models know: much larger, smaller, or no square."""
        short, long = sorted((self.width, self.height))
        return not SIDE / FAR <= short <= SIDE * FAR or long >= short * MOST_CROPPED


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files of `paths`, and of folders among them all pictures in them and below.

    In a folder, pictures are told by the ends of their names, and hidden files are passed over.

    Raises:
        UserError: One is not there, or a folder has no picture.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_picture(file, path))
            if not inside:
                raise UserError(f"{path}: there is no picture in this folder, or below it")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


def _is_picture(file: Path, folder: Path) -> bool:
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return False
    kind = Image.registered_extensions().get(file.suffix.lower())
    return kind in Image.OPEN and file.is_file()


def read_picture(path: Path) -> Picture:
    """Reads a file of any format that Pillow knows, and of an animation its first frame.

    It is turned upright as its EXIF data say; what is transparent becomes white; 16 bits a channel
    become 8. Then the largest square in its middle is resized to 32 x 32: bicubic, antialiased.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of pictures that are just large
            with Image.open(path) as image:
                upright = _rgb(ImageOps.exif_transpose(image))
            square = ImageOps.fit(upright, (SIDE, SIDE), Image.Resampling.BICUBIC)
    except UnidentifiedImageError:
        raise UserError(f"{path}: no picture of a format that can be read") from None
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path}: cannot be read: {reason}") from None
    return Picture(path, upright.width, upright.height, np.asarray(square))


# What Pillow raises of damaged files, one format or another.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    struct.error,
    MemoryError,
    Image.DecompressionBombError,
)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and what is white is not known")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        grey = np.asarray(image).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")
