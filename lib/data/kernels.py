"""The views of lib.data.views on a CPU, compiled by Numba.

lib.data.views defines the mathematics for whole batches: each step reads and writes the batch.
Here one image passes through all its steps while it lies in the core's nearest cache, which is
several times faster. The tests compare the two.

An image is float32 [C, S * S], one plane a channel; all steps change it in place.
"""

import math

import numpy as np
from numba import njit

from lib.data import constants

COMPILED = {"nogil": True, "fastmath": True, "cache": True}

# In float32: a Python float would make a whole expression float64.
ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
TWO = np.float32(2)
SIX = np.float32(6)
GREY_RED = np.float32(constants.GREY_WEIGHTS[0])
GREY_GREEN = np.float32(constants.GREY_WEIGHTS[1])
GREY_BLUE = np.float32(constants.GREY_WEIGHTS[2])
BLUR_REACH = np.float32(constants.BLUR_REACH)


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
    """Write ``views`` [B, S, S, C]: view b is of image chosen[b], with row b of the draws.

    source: [N, H, W * C], multiplied by ``scale``. The draws (box to upside_down) are the
    arrays of lib.data.views.Draws.
    """
    size = views.shape[1]
    channels = views.shape[3]
    image = np.empty((channels, size * size), np.float32)
    for b in range(len(views)):
        crop_and_resize(source[chosen[b]], box[b], flip[b], upside_down[b], scale, image, size)
        if jitter[b]:
            jitter_colours(image, factors[b], order[b])
        if grey[b] and channels == 3:
            to_grey(image)
        if blur[b]:
            gaussian_blur(image, sigma[b], size)
        if solarise[b]:
            invert_bright(image)
        for y in range(size):
            for x in range(size):
                for c in range(channels):
                    views[b, y, x, c] = image[c, y * size + x]


# ------------------------------------------------------------------------------ crop and resize
@njit(**COMPILED)
def filter_bank(start, extent, size, flip):
    """The anti-aliased bilinear filter from [start, start + extent) to ``size`` samples.

    Returns the first pixel [S] and the weights [K, S] of every sample.
    """
    step = np.float32(extent / size)
    half = max(step, ONE)
    taps = min(int(2 * half) + 2, int(extent))
    lowest = int(start)
    highest = int(start + extent) - taps
    first = np.empty(size, np.int32)
    weight = np.empty((taps, size), np.float32)
    for i in range(size):
        sample = size - 1 - i if flip else i
        centre = np.float32(start + (sample + 0.5) * step)
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
    """Write the box of source [H, W * C] resized, mirrored left-right and top-bottom if asked."""
    channels = image.shape[0]
    top, row_weight = filter_bank(box[0], box[2], size, upside_down)
    left, column_weight = filter_bank(box[1], box[3], size, flip)
    begin = int(box[1]) * channels
    end = int(box[1] + box[3]) * channels
    line = np.empty(source.shape[1], np.float32)
    first_value = (left * channels).astype(np.uint32)
    for y in range(size):
        line[begin:end] = ZERO
        for k in range(len(row_weight)):
            add_scaled(line[begin:end], source[top[y] + k, begin:end], row_weight[k, y] * scale)
        for c in range(channels):
            row = image[c, y * size : (y + 1) * size]
            row[:] = ZERO
            for k in range(len(column_weight)):
                add_gathered(row, line[k * channels + c :], first_value, column_weight[k])


@njit(**COMPILED)
def add_scaled(result, values, weight):
    for i in range(len(result)):
        result[i] += weight * values[i]


@njit(**COMPILED)
def add_gathered(result, values, index, weight):
    for i in range(len(result)):
        result[i] += weight[i] * values[index[i]]


# --------------------------------------------------------------------------------------- colour
@njit(**COMPILED)
def jitter_colours(image, factors, order):
    """Brightness, contrast, saturation and hue in the order given; grey images have two of them."""
    coloured = image.shape[0] == 3
    for part in order:
        if part == 0:
            brightness(image, factors[0])
        elif part == 1:
            contrast(image, factors[1])
        elif part == 2 and coloured:
            saturation(image, factors[2])
        elif part == 3 and coloured:
            hue(image, factors[3])


@njit(**COMPILED)
def luma(red, green, blue):
    return GREY_RED * red + GREY_GREEN * green + GREY_BLUE * blue


@njit(**COMPILED)
def blended(first, second, weight):
    value = weight * first + (ONE - weight) * second
    value = ZERO if value < ZERO else value
    return ONE if value > ONE else value


@njit(**COMPILED)
def brightness(image, factor):
    for c in range(image.shape[0]):
        for i in range(image.shape[1]):
            value = image[c, i] * factor
            image[c, i] = ONE if value > ONE else value


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
    red = image[0]
    green = image[1]
    blue = image[2]
    for i in range(image.shape[1]):
        level = luma(red[i], green[i], blue[i])
        red[i] = blended(red[i], level, factor)
        green[i] = blended(green[i], level, factor)
        blue[i] = blended(blue[i], level, factor)


@njit(**COMPILED)
def hue(image, turns):
    """Turn the hue by ``turns``, at most half a turn; lib.data.views.shift_hue derives how."""
    red = image[0]
    green = image[1]
    blue = image[2]
    shift = SIX * turns
    for i in range(image.shape[1]):
        r = red[i]
        g = green[i]
        b = blue[i]
        highest = r if r > g else g
        highest = b if b > highest else highest
        lowest = r if r < g else g
        lowest = b if b < lowest else lowest
        total = r + g + b
        red[i] = turned(r, g, b, highest, lowest, total, shift)
        green[i] = turned(g, b, r, highest, lowest, total, shift)
        blue[i] = turned(b, r, g, highest, lowest, total, shift)


@njit(**COMPILED)
def turned(channel, after, before, highest, lowest, total, shift):
    """One channel after a turn of the hue."""
    chroma = highest - lowest
    distance = highest - TWO * lowest + total - TWO * channel
    distance = abs((distance if after >= before else -distance) + chroma * shift)
    other_way = SIX * chroma - distance
    result = highest + chroma - (distance if distance < other_way else other_way)
    result = lowest if result < lowest else result
    return highest if result > highest else result


@njit(**COMPILED)
def to_grey(image):
    for i in range(image.shape[1]):
        level = luma(image[0, i], image[1, i], image[2, i])
        image[0, i] = level
        image[1, i] = level
        image[2, i] = level


@njit(**COMPILED)
def invert_bright(image):
    """Solarisation: values of at least one half are inverted."""
    for c in range(image.shape[0]):
        for i in range(image.shape[1]):
            image[c, i] = image[c, i] if image[c, i] < HALF else ONE - image[c, i]


# ----------------------------------------------------------------------------------------- blur
@njit(**COMPILED)
def gaussian_blur(image, sigma, size):
    """Separable Gaussian blur, borders reflected, cut at BLUR_REACH sigma."""
    reach = min(int(math.ceil(BLUR_REACH * sigma)), size - 1)
    wide = size + 2 * reach
    kernel = np.empty(reach + 1, np.float32)
    for k in range(reach + 1):
        kernel[k] = math.exp(-np.float32(0.5) * (k / sigma) ** 2)
    kernel /= TWO * kernel.sum() - kernel[0]
    padded = np.empty(size * wide, np.float32)
    blurred = np.empty(size * wide, np.float32)
    for plane in image:
        for y in range(size):
            row = plane[y * size : (y + 1) * size]
            line = padded[y * wide : (y + 1) * wide]
            line[reach : reach + size] = row
            for x in range(reach):
                line[reach - 1 - x] = row[x + 1]
                line[reach + size + x] = row[size - 2 - x]
        symmetric_filter(padded, kernel, 1, blurred)  # [S, wide]; the first S columns count
        for y in range(wide):
            begin = reflected(y - reach, size) * wide
            padded[y * size : (y + 1) * size] = blurred[begin : begin + size]
        symmetric_filter(padded, kernel, size, blurred)  # [wide, S]; the first S rows count
        plane[:] = blurred[: size * size]


@njit(**COMPILED)
def symmetric_filter(values, kernel, stride, result):
    """result[i] = sum over k of kernel[|k - reach|] values[i + k stride], where all exist."""
    reach = len(kernel) - 1
    result = result[: len(values) - 2 * reach * stride]
    result[:] = ZERO
    add_scaled(result, values[reach * stride :], kernel[0])
    for k in range(1, reach + 1):
        before = values[(reach - k) * stride :]
        after = values[(reach + k) * stride :]
        add_scaled_sum(result, before, after, kernel[k])


@njit(**COMPILED)
def add_scaled_sum(result, first, second, weight):
    for i in range(len(result)):
        result[i] += weight * (first[i] + second[i])


@njit(**COMPILED)
def reflected(position, size):
    position = abs(position)
    return position if position < size else 2 * (size - 1) - position
