"""Where pixels come from: maps of the plane, composed, and one resampling for all of them.

A map is a homography, float32 (N, 3, 3), that takes a place in the new image to the place in the
old one that is shown there. Places are (x, y, 1) in pixels from the image's centre, y downwards.
Maps compose by matrix product: `a @ b` does `a` first, then `b` on what came out of it. As pixels
are sampled once, nothing is blurred twice, and what one map pushes over the border another can
bring back.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from cifartune.training.augment.nowait import constant

ELASTIC_SIGMA = 5.0
"""Deviation in pixels of the blur of an elastic displacement, as in torchvision."""


def rotation(degrees: Tensor) -> Tensor:
    """Maps (N, 3, 3) that turn images counter-clockwise by `degrees` (N,)."""
    angle = degrees.deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _matrix(cos, -sin, zero, sin, cos, zero)


def affine(x: Tensor, y: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Maps (N, 3, 3) that shear horizontally, then scale, then shift.

    Args:
        x: Shift to the right in pixels, (N,).
        y: Shift downwards in pixels, (N,).
        scale: Factor, (N,); below 1 the image shrinks.
        shear: Angle in degrees, (N,).
    """
    tangent, zero = shear.deg2rad().tan(), torch.zeros_like(x)
    a, b = 1 / scale, tangent / scale
    return _matrix(a, b, -a * x - b * y, zero, a, -a * y)


def corner_shear(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Maps (N, 3, 3) that shear by tangents `x` and `y`, (N,); the top left corner stays."""
    one = torch.ones_like(x)
    return _matrix(one, x, x * height / 2, y, one, y * width / 2)


def perspective(corners: Tensor, height: int, width: int) -> Tensor:
    """Maps (N, 3, 3) that take each corner of an image inwards.

    Args:
        corners: How far in pixels, (N, 4, 2): x and y of the top left, top right, bottom right
            and bottom left corner.
        height: Of the images.
        width: Of the images.
    """
    x, y = (width - 1.0, height - 1.0)
    device = corners.device
    old = constant(((0, 0), (x, 0), (x, y), (0, y)), device)
    inwards = constant(((1, 1), (-1, 1), (-1, -1), (1, -1)), device)
    centre = constant((width / 2, height / 2), device)
    new = old + inwards * corners - centre
    old = (old - centre).expand_as(new)
    # Eight equations: the map takes each new corner to its old place.
    ones, zeros = torch.ones_like(new[..., :1]), torch.zeros_like(new)
    in_x = torch.cat([new, ones, zeros, zeros[..., :1], -new * old[..., :1]], 2)
    in_y = torch.cat([zeros, zeros[..., :1], new, ones, -new * old[..., 1:]], 2)
    # Without a check for singular systems, which on a GPU would wait for the result.
    entries = torch.linalg.solve_ex(
        torch.cat([in_x, in_y], 1), torch.cat([old[..., 0], old[..., 1]], 1)
    )[0]
    return torch.cat([entries, torch.ones_like(entries[:, :1])], 1).view(-1, 3, 3)


def elastic(noise: Tensor, alpha: Tensor) -> Tensor:
    """A smooth displacement in pixels, (N, H, W, 2), for `resample`.

    Simard et al., Best practices for convolutional neural networks applied to visual document
    analysis, 2003.

    Args:
        noise: Uniform in [-1, 1], (N, 2, H, W).
        alpha: Its size, (N,), in torchvision's unit: of half a pixel.
    """
    height, width = noise.shape[2:]
    # A blur is linear in rows and in columns: two matrix products, whatever its radius.
    smooth = _blur(height, noise.device) @ noise @ _blur(width, noise.device).T
    return (smooth * (alpha / 2).view(-1, 1, 1, 1)).permute(0, 2, 3, 1)


def resample(
    images: Tensor, maps: Tensor, padding: str, displacement: Tensor | None = None
) -> Tensor:
    """Shows in each place of an image what its map finds there, by bilinear interpolation.

    Args:
        images: uint8 (N, 3, H, W).
        maps: (N, 3, 3).
        padding: What lies beyond the border: `zero`, or `reflect` for the image reflected.
        displacement: Of each place, in pixels, before the map; (N, H, W, 2).

    Returns:
        New uint8 images (N, 3, H, W).
    """
    count, _, height, width = images.shape
    if not count:  # as when no coin of a batch says yes
        return images
    ys = torch.arange(height, device=images.device) - (height - 1) / 2
    xs = torch.arange(width, device=images.device) - (width - 1) / 2
    places = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), 2).expand(count, -1, -1, -1)
    if displacement is not None:
        places = places + displacement
    # In units of half the image, as grid_sample counts, which spares a pass over all places.
    half = constant((width / 2, height / 2, 1.0), images.device)
    maps = maps / half[:, None]
    flat = torch.baddbmm(maps[:, :, 2:], maps[:, :, :2], places.reshape(count, -1, 2).mT)
    grid = (flat[:, :2] / flat[:, 2:]).mT.view(count, height, width, 2)
    # Near the horizon of a perspective places are far away: too far to be counted in integers.
    grid = grid.clamp(-1000, 1000)
    mode = "reflection" if padding == "reflect" else "zeros"
    found = F.grid_sample(images.float(), grid, padding_mode=mode, align_corners=False)
    return found.round_().to(torch.uint8)


def _matrix(*rows: Tensor) -> Tensor:
    """Maps (N, 3, 3) of six entries (N,), row by row; the last row is 0, 0, 1."""
    zero, one = torch.zeros_like(rows[0]), torch.ones_like(rows[0])
    return torch.stack([*rows, zero, zero, one], 1).view(-1, 3, 3)


@cache
def _blur(size: int, device: torch.device) -> Tensor:
    """A Gaussian blur of `size` values, reflected at the border, as a matrix (size, size)."""
    radius = min(int(4 * ELASTIC_SIGMA), size - 1)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / ELASTIC_SIGMA).square())
    weights /= weights.sum()
    sources = (torch.arange(size)[:, None] + offsets).abs()
    sources = torch.where(sources >= size, 2 * (size - 1) - sources, sources)
    matrix = torch.zeros(size, size).scatter_add_(1, sources, weights.expand(size, -1))
    return matrix.to(device)
