"""Pictures of all kinds, made of real images, as the models take them."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifartune.data import LabelledImages
from cifartune.errors import UserError
from cifartune.pictures import find_pictures, read_picture


@pytest.fixture
def original(cifar: LabelledImages) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(cifar.images[7].transpose(1, 2, 0)))


def framed(image: Image.Image) -> Image.Image:
    """Four times as large, between black borders on the left and on the right."""
    frame = Image.new("RGB", (200, 128))
    frame.paste(image.resize((128, 128), Image.Resampling.NEAREST), (36, 0))
    return frame


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def transparent(image: Image.Image) -> Image.Image:
    """Its left half is not to be seen."""
    image = image.convert("RGBA")
    alpha = np.full((32, 32), 255, np.uint8)
    alpha[:, :16] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def half_white(image: Image.Image) -> Image.Image:
    pixels = np.array(image)
    pixels[:, :16] = 255
    return Image.fromarray(pixels)


def as_it_is(image: Image.Image) -> Image.Image:
    return image


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


Change = Callable[[Image.Image], Image.Image]


@pytest.mark.parametrize(
    ("name", "saved", "seen", "apart"),
    [
        ("a.png", as_it_is, as_it_is, 0),
        ("a.webp", framed, as_it_is, 6),
        ("a.jpg", framed, as_it_is, 6),
        ("a.jpg", lambda image: image.convert("CMYK"), as_it_is, 12),
        ("a.png", lambda image: image.convert("L"), grey, 0),
        ("a.png", sixteen_bits, grey, 0),
        ("a.gif", lambda image: image.convert("P", palette=Image.Palette.ADAPTIVE), as_it_is, 6),
        ("a.png", lambda image: image.convert("1"), lambda image: image.convert("1"), 0),
        ("a.png", transparent, half_white, 0),
        ("a.tif", lambda image: image.resize((16, 16)), as_it_is, 20),
    ],
)
def test_every_kind_of_picture(
    name: str, saved: Change, seen: Change, apart: float, original: Image.Image, tmp_path: Path
) -> None:
    saved(original).save(tmp_path / name)
    picture = read_picture(tmp_path / name)
    assert picture.pixels.shape == (32, 32, 3) and picture.pixels.dtype == np.uint8
    expected = np.asarray(seen(original).convert("RGB")).astype(float)
    assert np.abs(picture.pixels - expected).mean() <= apart


def test_a_camera_that_was_held_upright(original: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    turned = original.resize((32, 64)).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.png", exif=exif)
    picture = read_picture(tmp_path / "a.png")
    assert (picture.width, picture.height) == (32, 64)
    middle = np.asarray(original.resize((32, 64)))[16:48]
    np.testing.assert_array_equal(picture.pixels, middle)


@pytest.mark.parametrize(
    ("size", "is_far"),
    [
        ((32, 32), False),
        ((64, 48), False),
        ((11, 11), False),
        ((96, 96), False),
        ((10, 12), True),
        ((97, 97), True),
        ((40, 80), True),
    ],
)
def test_what_is_far_from_what_the_models_know(
    size: tuple[int, int], is_far: bool, original: Image.Image, tmp_path: Path
) -> None:
    original.resize(size).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").is_far is is_far


def too_large() -> bytes:
    """The head of a PNG of 100,000 pixels a side."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def test_files_that_cannot_be_read(original: Image.Image, tmp_path: Path) -> None:
    for kind in ("png", "jpg", "gif", "webp", "bmp", "tif"):
        framed(original).save(tmp_path / f"whole.{kind}")
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"half.{kind}").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(too_large())
    shares = np.asarray(original.convert("L")).astype(np.float32) / 255
    Image.fromarray(shares).save(tmp_path / "shares.tif")  # nothing tells that 1 is white
    Image.fromarray((shares * 2**31).astype(np.int32)).save(tmp_path / "wide.tif")
    names = ("empty.png", "text.png", "bomb.png", "shares.tif", "wide.tif")
    broken = [*tmp_path.glob("half.*"), *(tmp_path / name for name in names)]
    for path in broken:
        with pytest.raises(UserError) as refused:
            read_picture(path)
        [line] = str(refused.value).splitlines()
        assert line.startswith(f"{path}: ")
    for path in tmp_path.glob("whole.*"):
        read_picture(path)


def test_folders_are_gone_through(original: Image.Image, tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "below/c.webp", ".hidden/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).touch()
        else:
            original.save(tmp_path / name)
    found = find_pictures([tmp_path / "b.png", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b.png", "a.JPG", "below/c.webp"]
    # What is named is read, whatever it is called.
    assert find_pictures([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no picture in this folder, or below it"):
        find_pictures([tmp_path])
    with pytest.raises(UserError, match=r"none\.png: no such file or folder"):
        find_pictures([tmp_path / "none.png"])
