"""The views of lib.data.views on a CPU: every image passes through all its steps while it lies in the core's nearest cache.

The mathematics is that of the batched functions in lib.data.views, which define it and which tests hold this module to. There, each step
reads and writes the whole batch; here the compiled loop (Numba) does one image after the other, several times faster.
"""

import math

import numpy as np
from numba import njit

from lib.data import views as augmentations

COMPILED = {"nogil": True, "fastmath": True, "cache": True}
GREY_RED, GREY_GREEN, GREY_BLUE = (np.float32(weight) for weight in augmentations.GREY_WEIGHTS)
ONE, ZERO, HALF, TWO, SIX = (
    np.float32(1),
    np.float32(0),
    np.float32(0.5),
    np.float32(2),
    np.float32(6),
)
BLUR_REACH = np.float32(augmentations.BLUR_REACH)


@njit(**COMPILED)
def render(
    source,
    chosen,
    box,
    flip,
    jitter,
    factors,
    grey,
    blur,
    sigma,
    order,
    solarise,
    upside_down,
    scale,
    views,
):
    """Write views [B, S, S, C] of source [N, H, W * C] times ``scale``: view b is of image chosen[b], its parameters are row b of the draws."""
    size, channels = views.shape[1], views.shape[3]
    image = np.empty((channels, size * size), np.float32)
    for b in range(len(views)):
        crop_and_resize(source[chosen[b]], box[b], flip[b], upside_down[b], scale, image, size)
        if jitter[b]:
            for part in order[b]:
                if part == 0:
                    brightness(image, factors[b, 0])
                elif part == 1:
                    contrast(image, factors[b, 1])
                elif part == 2 and channels == 3:
                    saturation(image, factors[b, 2])
                elif part == 3 and channels == 3:
                    hue(image, factors[b, 3])
        if grey[b] and channels == 3:
            for i in range(size * size):
                image[0, i] = image[1, i] = image[2, i] = luma(
                    image[0, i], image[1, i], image[2, i]
                )
        if blur[b]:
            gaussian_blur(image, sigma[b], size)
        if solarise[b]:
            for c in range(channels):
                for i in range(size * size):
                    image[c, i] = image[c, i] if image[c, i] < HALF else ONE - image[c, i]
        for y in range(size):
            for x in range(size):
                for c in range(channels):
                    views[b, y, x, c] = image[c, y * size + x]


@njit(**COMPILED)
def filter_bank(start, extent, size, flip):
    """First pixel [S] and weights [K, S] of the anti-aliased bilinear filter from [start, start + extent) to ``size`` samples."""
    step = np.float32(extent / size)
    half = max(step, ONE)
    taps = min(int(2 * half) + 2, int(extent))
    lowest, highest = int(start), int(start + extent) - taps
    first, weight = np.empty(size, np.int32), np.empty((taps, size), np.float32)
    for i in range(size):
        centre = np.float32(start + ((size - 1 - i if flip else i) + 0.5) * step)
        first[i] = max(lowest, min(highest, int(math.ceil(centre - half - 0.5))))
        total = ZERO
        for k in range(taps):
            weight[k, i] = max(ZERO, ONE - abs(first[i] + k + np.float32(0.5) - centre) / half)
            total += weight[k, i]
        for k in range(taps):
            weight[k, i] /= total
    return first, weight


@njit(**COMPILED)
def crop_and_resize(source, box, flip, upside_down, scale, image, size):
    """Write image [C, S * S]: the box of source [H, W * C] resized, mirrored left-right and top-bottom where those say so."""
    channels = image.shape[0]
    top, row_weight = filter_bank(box[0], box[2], size, upside_down)
    left, column_weight = filter_bank(box[1], box[3], size, flip)
    begin, end = int(box[1]) * channels, int(box[1] + box[3]) * channels
    line, left = np.empty(source.shape[1], np.float32), (left * channels).astype(np.uint32)
    for y in range(size):
        line[begin:end] = ZERO
        for k in range(len(row_weight)):
            add_scaled(line[begin:end], source[top[y] + k, begin:end], row_weight[k, y] * scale)
        for c in range(channels):
            row = image[c, y * size : (y + 1) * size]
            row[:] = ZERO
            for k in range(len(column_weight)):
                add_gathered(row, line[k * channels + c :], left, column_weight[k])


@njit(**COMPILED)
def add_scaled(result, values, weight):
    for i in range(len(result)):
        result[i] += weight * values[i]


@njit(**COMPILED)
def add_gathered(result, values, index, weight):
    for i in range(len(result)):
        result[i] += weight[i] * values[index[i]]


@njit(**COMPILED)
def brightness(image, factor):
    for c in range(image.shape[0]):
        for i in range(image.shape[1]):
            value = image[c, i] * factor
            image[c, i] = ONE if value > ONE else value


@njit(**COMPILED)
def luma(red, green, blue):
    return GREY_RED * red + GREY_GREEN * green + GREY_BLUE * blue


@njit(**COMPILED)
def blended(first, second, weight):
    value = weight * first + (ONE - weight) * second
    value = ZERO if value < ZERO else value
    return ONE if value > ONE else value


@njit(**COMPILED)
def contrast(image, factor):
    mean = ZERO
    if image.shape[0] == 3:
        for i in range(image.shape[1]):
            mean += luma(image[0, i], image[1, i], image[2, i])
    else:
        for i in range(image.shape[1]):
            mean += image[0, i]
    mean /= np.float32(image.shape[1])
    for c in range(image.shape[0]):
        for i in range(image.shape[1]):
            image[c, i] = blended(image[c, i], mean, factor)


@njit(**COMPILED)
def saturation(image, factor):
    red, green, blue = image[0], image[1], image[2]
    for i in range(image.shape[1]):
        level = luma(red[i], green[i], blue[i])
        red[i], green[i], blue[i] = (
            blended(red[i], level, factor),
            blended(green[i], level, factor),
            blended(blue[i], level, factor),
        )


@njit(**COMPILED)
def turned(own, after, before, value, least, total, shift):
    """One channel after a turn of the hue; see lib.data.views.shift_hue."""
    chroma = value - least
    distance = value - TWO * least + total - TWO * own
    distance = abs((distance if after >= before else -distance) + chroma * shift)
    other_way = SIX * chroma - distance
    result = value + chroma - (distance if distance < other_way else other_way)
    result = least if result < least else result
    return value if result > value else result


@njit(**COMPILED)
def hue(image, turns):
    red, green, blue, shift = image[0], image[1], image[2], SIX * turns
    for i in range(image.shape[1]):
        r, g, b = red[i], green[i], blue[i]
        value = r if r > g else g
        value = b if b > value else value
        least = r if r < g else g
        least = b if b < least else least
        total = r + g + b
        red[i] = turned(r, g, b, value, least, total, shift)
        green[i] = turned(g, b, r, value, least, total, shift)
        blue[i] = turned(b, r, g, value, least, total, shift)


@njit(**COMPILED)
def gaussian_blur(image, sigma, size):
    """Separable Gaussian blur of image [C, S * S] in place, borders reflected, cut at BLUR_REACH sigma."""
    reach = min(int(math.ceil(BLUR_REACH * sigma)), size - 1)
    wide = size + 2 * reach
    kernel = np.empty(reach + 1, np.float32)
    for k in range(reach + 1):
        kernel[k] = math.exp(-np.float32(0.5) * (k / sigma) ** 2)
    kernel /= TWO * kernel.sum() - kernel[0]
    padded, blurred = np.empty(size * wide, np.float32), np.empty(size * wide, np.float32)
    for plane in image:
        for y in range(size):
            row, line = plane[y * size : (y + 1) * size], padded[y * wide : (y + 1) * wide]
            line[reach : reach + size] = row
            for x in range(reach):
                line[reach - 1 - x], line[reach + size + x] = row[x + 1], row[size - 2 - x]
        symmetric_filter(
            padded, kernel, 1, blurred
        )  # [S, wide], of which the first S columns count
        for y in range(wide):
            row = reflected(y - reach, size) * wide
            padded[y * size : (y + 1) * size] = blurred[row : row + size]
        symmetric_filter(
            padded, kernel, size, blurred
        )  # [wide, S], of which the first S rows count
        plane[:] = blurred[: size * size]


@njit(**COMPILED)
def symmetric_filter(values, kernel, stride, result):
    """result[i] = sum over k of kernel[|k - reach|] values[i + k stride], wherever all of them exist."""
    reach = len(kernel) - 1
    result = result[: len(values) - 2 * reach * stride]
    result[:] = ZERO
    add_scaled(result, values[reach * stride :], kernel[0])
    for k in range(1, reach + 1):
        add_scaled_sum(
            result, values[(reach - k) * stride :], values[(reach + k) * stride :], kernel[k]
        )


@njit(**COMPILED)
def add_scaled_sum(result, first, second, weight):
    for i in range(len(result)):
        result[i] += weight * (first[i] + second[i])


@njit(**COMPILED)
def reflected(position, size):
    position = abs(position)
    return position if position < size else 2 * (size - 1) - position
