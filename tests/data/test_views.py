"""lib.data.views against torchvision and kornia, and its random numbers against torchvision's."""

import hashlib
import json

import kornia
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms
from torchvision.transforms import functional as tv
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv2

from lib.data import drawn, views
from lib.runs import settings

SIMSIAM = views.RECIPES["simsiam"]
ALIKE = 1e-3  # p-value below which two samples count as differently distributed; seeds are fixed


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(batch=6, channels=3, height=24, width=24, seed=0):
    return torch.rand(batch, channels, height, width, generator=generator(seed))


def photos(count=600, size=24):
    """Drawn colour images, uint8 [N, 3, H, W]."""
    return drawn.generated(count, size).batch(np.arange(count)).contiguous()


def same_distribution(ours, theirs):
    return stats.ks_2samp(np.asarray(ours, float), np.asarray(theirs, float)).pvalue > ALIKE


def close(ours, expected, tolerance=2e-5):
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


# ---------------------------------------------------------------------------- linear operations
@pytest.mark.parametrize("size", [7, 16, 40])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (20, 33)])
def test_crop_and_resize_is_torchvisions(size, height, width):
    images = noise(12, height=height, width=width)
    box = views.random_boxes(10, height, width, (0.02, 1.0), (0.3, 3.0), generator())
    extremes = torch.tensor([[0.0, 0, height, width], [height - 1, width - 1, 1, 1]])
    box = torch.cat([box, extremes])
    cropped = views.crop_and_resize(images, box, size)
    for image, (top, left, h, w), ours in zip(images, box.int().tolist(), cropped, strict=True):
        close(ours, tv2.resized_crop(image, top, left, h, w, [size, size], antialias=True))


def test_flips_are_mirrors():
    images = noise()
    whole = torch.tensor([[0.0, 0, 24, 24]]).expand(6, -1)
    assert torch.equal(views.crop_and_resize(images, whole, 24), images)
    box = views.random_boxes(6, 24, 24, (0.2, 1), (0.75, 4 / 3), generator())
    flip = torch.tensor([True, False] * 3)
    plain = views.crop_and_resize(images, box, 16)
    mirrored = views.crop_and_resize(images, box, 16, flip)
    upside_down = views.crop_and_resize(images, box, 16, None, flip)
    torch.testing.assert_close(mirrored[flip], plain[flip].flip(-1))
    torch.testing.assert_close(upside_down[flip], plain[flip].flip(-2))
    assert torch.equal(mirrored[~flip], plain[~flip])


@pytest.mark.parametrize("size", [8, 24, 50])
def test_resize_is_torchvisions(size):
    images = noise()
    close(views.resize(images, size), tv2.resize(images, [size, size], antialias=True), 1e-5)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 30), (5, 6)])
def test_blur_is_the_gaussian_of_kornia_borders_included(height, width):
    images = noise(5, height=height, width=width)
    sigma = torch.tensor([0.1, 0.4, 1.0, 1.7, 2.0])
    kernel = (min(17, 2 * height - 1), min(17, 2 * width - 1))  # no wider than a reflection
    blurred = views.gaussian_blur(images, sigma)
    for image, s, ours in zip(images, sigma.tolist(), blurred, strict=True):
        theirs = kornia.filters.gaussian_blur2d(image[None], kernel, (s, s), border_type="reflect")
        close(ours, theirs[0])


# --------------------------------------------------------------------------------------- colour
OPERATIONS = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
ORDERS = [(0,), (1,), (2,), (3,), (2, 0, 3, 1)]


@pytest.mark.parametrize("order", ORDERS)
def test_colour_jitter_is_torchvisions(order):
    images = noise(8)
    images[0] = 0.4  # grey and black have no hue
    images[1] = 0.0
    images[2, :2] = images[2, :1]  # two channels share the largest value
    strengths = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}
    factors = views.jitter_factors(8, strengths, generator())
    jittered = views.color_jitter(images, factors, order)
    for image, row, ours in zip(images, factors, jittered, strict=True):
        for part in order:
            image = OPERATIONS[part](image, row[part].item())
        close(ours, image, 1e-5)


def test_grey_is_torchvisions():
    images = noise()
    close(views.to_grey(images), tv.rgb_to_grayscale(images), 1e-6)


def test_grey_images_change_only_in_brightness_and_contrast():
    images = noise(4, channels=1)
    factors = views.jitter_factors(4, SIMSIAM, generator())
    jittered = views.color_jitter(images, factors, (3, 0, 2, 1))
    for image, row, ours in zip(images, factors, jittered, strict=True):
        brighter = tv.adjust_brightness(image, row[0].item())
        close(ours, tv.adjust_contrast(brighter, row[1].item()), 1e-5)


# ---------------------------------------------------------------------------- random parameters
@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(96, 64, (0.2, 1.0)), (40, 100, (0.05, 0.2)), (100, 40, (0.6, 1.0))],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    ratio = (3 / 4, 4 / 3)
    torch.manual_seed(1)
    image = torch.empty(1, height, width)
    draw = transforms.RandomResizedCrop.get_params
    theirs = np.array([draw(image, list(scale), list(ratio)) for _ in range(2000)], float)
    box = views.random_boxes(20_000, height, width, scale, ratio, generator())
    assert (box == box.round()).all() and (box[:, :2] >= 0).all()
    assert (box[:, 0] + box[:, 2] <= height).all() and (box[:, 1] + box[:, 3] <= width).all()

    def facts(boxes):
        top, left, h, w = boxes.T
        return {
            "area": h * w,
            "ratio": w / h,
            "height": h,
            "width": w,
            "top": top / np.maximum(height - h, 1),
            "left": left / np.maximum(width - w, 1),
        }

    expected = facts(theirs)
    for name, values in facts(box.numpy().astype(float)).items():
        assert same_distribution(values, expected[name]), name


def test_jitter_factors_are_uniform_in_torchvisions_ranges():
    factors = views.jitter_factors(20_000, SIMSIAM, generator())
    ranges = [(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]
    for values, (low, high) in zip(factors.T, ranges, strict=True):
        assert stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > ALIKE
    assert np.abs(np.corrcoef(factors.numpy().T) - np.eye(4)).max() < 0.03
    # torchvision starts at max(0, 1 - 1.5)
    strong = views.jitter_factors(20_000, SIMSIAM | {"brightness": 1.5}, generator())
    assert stats.kstest(strong[:, 0].numpy(), "uniform", (0, 2.5)).pvalue > ALIKE


@pytest.mark.parametrize("name", ["flip", "upside_down", "jitter", "grey", "blur"])
def test_each_part_happens_as_often_as_its_recipe_says(name):
    """All other parts off, the whole image kept: what differs was changed by this part."""
    images = noise(1).expand(3000, -1, -1, -1)
    probability = SIMSIAM.get(name, 0.5)
    off = dict.fromkeys(("flip", "jitter", "grey", "blur"), 0.0)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "sigma": (1.0, 2.0)}
    made = views.augment(images, 24, SIMSIAM | off | whole | {name: probability}, generator())
    changed = (made - images).abs().amax((1, 2, 3)) > 1e-4
    assert stats.binomtest(int(changed.sum()), 3000, probability).pvalue > ALIKE
    close(made[~changed], images[~changed], 1e-6)
    expected = {
        "flip": images[0].flip(-1),
        "upside_down": images[0].flip(-2),
        "grey": tv.rgb_to_grayscale(images[0], 3),
    }
    if name in expected:
        close(made[changed][0], expected[name], 1e-5)


# ---------------------------------------------------------------------------------- whole views
def torchvision_views(images, size, recipe):
    """SimSiam's pipeline image by image; every blur kernel reaches 4 sigma as ours does."""
    jitter = v2.ColorJitter(
        recipe["brightness"], recipe["contrast"], recipe["saturation"], recipe["hue"]
    )
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(size, recipe["scale"], recipe["ratio"], antialias=True),
            v2.RandomApply([jitter], recipe["jitter"]),
            v2.RandomGrayscale(recipe["grey"]),
            v2.RandomApply([v2.GaussianBlur(17, recipe["sigma"])], recipe["blur"]),
            v2.RandomSolarize(0.5, recipe.get("solarise", 0.0)),
            v2.RandomHorizontalFlip(recipe["flip"]),
            v2.RandomVerticalFlip(recipe.get("upside_down", 0.0)),
        ]
    )
    torch.manual_seed(0)
    return torch.stack([pipeline(image.float() / 255) for image in images])


def statistics(made):
    """What a change of any part would move: level, contrast, colour, sharpness and side."""
    made = made.double()
    grey = made.mean(1)
    half = grey.shape[-1] // 2
    edges = grey.diff(dim=-1).abs().mean((1, 2))
    return {
        "red": made[:, 0].mean((1, 2)),
        "green": made[:, 1].mean((1, 2)),
        "blue": made[:, 2].mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "brightest": grey.amax((1, 2)),
        "colour": made.std(1).mean((1, 2)),
        "sharpness": edges / grey.std((1, 2)).clamp(min=1e-3),
        "top minus bottom": grey[:, :half].mean((1, 2)) - grey[:, half:].mean((1, 2)),
        "left minus right": grey[..., :half].mean((1, 2)) - grey[..., half:].mean((1, 2)),
    }


# Every part of a recipe happens in one of these.
SECOND = views.BYOL | views.BYOL["second"]
DRAWN = {"simsiam": SIMSIAM, "byol's second view": SECOND, "simvae": views.SIMVAE_COLOUR}


@pytest.mark.parametrize("recipe", DRAWN.values(), ids=DRAWN)
def test_views_are_distributed_as_torchvisions(recipe):
    images = photos(400)[..., 4:]  # off-centre, so that a wrong flip or crop shows
    ours = views.augment(images.repeat(6, 1, 1, 1), 18, recipe, generator(3))
    expected = statistics(torchvision_views(images, 18, recipe))
    for quantity, values in statistics(ours).items():
        # Rounded: where no colour changes, a quantity has few values, equal except for rounding.
        theirs = expected[quantity].round(decimals=5)
        assert same_distribution(values.round(decimals=5), theirs), quantity
        assert stats.ttest_ind(values, expected[quantity], equal_var=False).pvalue > 6e-5, quantity


CHANGES = [
    {},
    {"hue": 0.5},
    {"scale": (0.002, 0.05)},
    {"sigma": (0.1, 6.0), "blur": 1.0},
    {"solarise": 0.5, "upside_down": 0.5},
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("height", "width", "size"), [(20, 33, 12), (9, 8, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_compiled_views_are_the_batched_ones(change, height, width, size, channels):
    """Every step at once, up- and down-sampling; grey, black and saturated images among them."""
    images = (noise(140, channels, height, width) * 255).byte()
    images[0] = 0
    images[1] = 255
    images[2, :1] = 255
    draws = views.draw(280, height, width, SIMSIAM | change, generator())
    chosen = torch.arange(140).repeat(2)
    batched = torch.empty(280, channels, size, size, memory_format=torch.channels_last)
    views._render_batched(images, chosen, draws, batched)
    close(views.render(images, chosen, draws, size), batched, 5e-5)
    close(views.render(images.float() / 255, chosen, draws, size), batched, 5e-5)


@pytest.mark.parametrize("local", [0, 2])
def test_parts_of_a_batch_have_together_the_views_of_the_whole(local):
    images = photos(128)
    whole = views.make_views(images, described(local_views=local), generator())
    parts = []
    for part, some in enumerate(images.chunk(4)):
        parts.append(views.make_views(some, described(local_views=local), generator(), part, 4))
    for view, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(view, torch.cat(pieces))


def test_views_depend_on_the_generator_and_not_on_the_number_of_threads():
    images = photos(70)
    state = torch.get_rng_state()
    first = views.augment(images, 16, SIMSIAM, generator(1))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(first, views.augment(images, 16, SIMSIAM, generator(1)))
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(first, views.augment(images, 16, SIMSIAM, generator(2)))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(images, photos(70))


# ------------------------------------------------------------------------------ kinds and recipes
def described(**changed):
    plain = {"augmentation": "simsiam", "image_size": 16, "local_size": 8, "local_views": 0}
    return plain | changed


@pytest.mark.parametrize("count", [1, 5])
def test_a_run_may_have_any_number_of_views_global_ones_first(count):
    run = described(augmentation="simvae_colour", views=count, local_views=3)
    made = views.make_views(photos(20), run, generator())
    assert [view.shape[-1] for view in made] == [16] * count + [8] * 3
    assert len({view.sum().item() for view in made}) == count + 3
    with pytest.raises(ValueError, match=f"'byol' is for two views, not {count}"):
        views.view_kinds(described(augmentation="byol", views=count))


def test_views_of_the_papers():
    standard, local = views.view_kinds(settings.recipe("vi_simsiam_2022"))
    assert (standard.size, standard.strengths) == (224, SIMSIAM)
    assert (local.size, local.strengths) == (96, SIMSIAM | {"scale": (0.05, 0.2)})
    first, second = views.view_kinds(described(augmentation="byol"))
    assert (first.count, second.count) == (1, 1)
    assert first.strengths == views.BYOL
    assert second.strengths == views.BYOL | {"blur": 0.1, "solarise": 0.2}
    local = views.view_kinds(described(augmentation="dino", local_views=3))[-1].strengths
    assert (local["scale"], local["blur"], local["solarise"]) == ((0.05, 0.4), 0.5, 0.0)


@pytest.mark.parametrize("augmentation", ["dino", "simsiam", "simsiam_small", "byol"])
def test_the_settings_local_scale_holds_under_every_augmentation(augmentation):
    run = described(augmentation=augmentation, local_views=2, local_scale=[0.1, 0.3])
    *standard, local = views.view_kinds(run)
    without = views.view_kinds({**run, "local_scale": None})
    assert local.strengths == without[-1].strengths | {"scale": (0.1, 0.3)}
    assert standard == without[:-1]


def test_a_changed_recipe_is_noticed():
    """Raise the version of every method that uses it in settings/recipes.toml, then this hash."""
    text = json.dumps(views.RECIPES, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "337e2bf45a2cf7af"
