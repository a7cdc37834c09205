"""lib.data.views against torchvision and kornia, image by image, and its random numbers against torchvision's distributions."""

import math

import kornia
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms
from torchvision.transforms import functional as tv
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv2

from lib.data import sources as data
from lib.data import views as aug
from lib.runs import settings

SIMSIAM = aug.RECIPES["simsiam"]
ALIKE = 1e-3  # p-value below which two samples count as differently distributed; seeds are fixed, so the tests do not flicker


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(batch=6, channels=3, height=24, width=24, seed=0):
    return torch.rand(batch, channels, height, width, generator=generator(seed))


def photos(count=600, size=24):
    """Drawn colour images, uint8 [N, 3, H, W]."""
    return data.generated("shapes", count, size).batch(np.arange(count)).contiguous()


def same_distribution(ours, theirs):
    return stats.ks_2samp(np.asarray(ours, float), np.asarray(theirs, float)).pvalue > ALIKE


# ---------------------------------------------------------------------------------------------------------------- linear operations
@pytest.mark.parametrize("size", [7, 16, 40])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (20, 33)])
def test_crop_and_resize_is_torchvisions(size, height, width):
    """Up- and down-sampling, in single boxes of one pixel up to the whole image."""
    images = noise(12, height=height, width=width)
    box = aug.random_boxes(10, height, width, (0.02, 1.0), (0.3, 3.0), generator())
    box = torch.cat([box, torch.tensor([[0.0, 0, height, width], [height - 1, width - 1, 1, 1]])])
    for image, (top, left, h, w), got in zip(
        images, box.int().tolist(), aug.crop_and_resize(images, box, size), strict=True
    ):
        expected = tv2.resized_crop(image, top, left, h, w, [size, size], antialias=True)
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_crop_of_the_whole_image_at_its_own_size_is_the_image_and_flips_are_mirrors():
    images = noise()
    box = torch.tensor([[0.0, 0, 24, 24]]).expand(6, -1)
    assert torch.equal(aug.crop_and_resize(images, box, 24), images)
    box, flip = (
        aug.random_boxes(6, 24, 24, (0.2, 1), (0.75, 4 / 3), generator()),
        torch.tensor([True, False] * 3),
    )
    plain, mirrored = (
        aug.crop_and_resize(images, box, 16),
        aug.crop_and_resize(images, box, 16, flip),
    )
    torch.testing.assert_close(mirrored[flip], plain[flip].flip(-1))
    assert torch.equal(mirrored[~flip], plain[~flip])
    torch.testing.assert_close(
        aug.crop_and_resize(images, box, 16, None, flip)[flip], plain[flip].flip(-2)
    )


@pytest.mark.parametrize("size", [8, 24, 50])
def test_resize_is_torchvisions(size):
    images = noise()
    torch.testing.assert_close(
        aug.resize(images, size),
        tv2.resize(images, [size, size], antialias=True),
        rtol=0,
        atol=1e-5,
    )
    assert aug.resize(images, 24) is images


@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 30)])
def test_blur_is_the_gaussian_of_kornia_and_torchvision_borders_included(height, width):
    images, sigma = noise(5, height=height, width=width), torch.tensor([0.1, 0.4, 1.0, 1.7, 2.0])
    blurred = aug.gaussian_blur(images, sigma)
    for image, s, got in zip(images, sigma.tolist(), blurred, strict=True):
        expected = kornia.filters.gaussian_blur2d(
            image[None], (17, 17), (s, s), border_type="reflect"
        )[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(
            got, tv.gaussian_blur(image, [17, 17], [s, s]), rtol=0, atol=2e-5
        )


def test_blur_of_images_smaller_than_its_reach():
    images = noise(2, height=5, width=6)
    expected = kornia.filters.gaussian_blur2d(images, (9, 11), (2.0, 2.0), border_type="reflect")
    torch.testing.assert_close(
        aug.gaussian_blur(images, torch.full((2,), 2.0)), expected, rtol=0, atol=2e-5
    )


# ---------------------------------------------------------------------------------------------------------------- colour
OPERATIONS = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]


@pytest.mark.parametrize(
    "order", [(0,), (1,), (2,), (3,), (0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]
)
def test_colour_jitter_is_torchvisions(order):
    images = noise(8)
    images[0], images[1] = 0.4, 0.0  # grey and black: the hue is not defined
    images[2, :2] = images[2, :1]  # two channels share the largest value
    factors = aug.jitter_factors(
        8, {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}, generator()
    )
    for i, got in enumerate(aug.color_jitter(images, factors, order)):
        expected = images[i]
        for part in order:
            expected = OPERATIONS[part](expected, factors[i, part].item())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_grey_is_torchvisions():
    images = noise()
    torch.testing.assert_close(aug.to_grey(images), tv.rgb_to_grayscale(images), rtol=0, atol=1e-6)
    assert aug.to_grey(images[:, :1]).shape == (6, 1, 24, 24)


def test_grey_images_only_change_in_brightness_and_contrast():
    images = noise(4, channels=1)
    factors = aug.jitter_factors(4, SIMSIAM, generator())
    got = aug.color_jitter(images, factors, (3, 0, 2, 1))
    for i in range(4):
        expected = tv.adjust_contrast(
            tv.adjust_brightness(images[i], factors[i, 0].item()), factors[i, 1].item()
        )
        torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- random parameters
@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.2, 1.0)), (96, 64, (0.2, 1.0)), (40, 100, (0.05, 0.2)), (100, 40, (0.6, 1.0))],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    ratio = (3 / 4, 4 / 3)
    torch.manual_seed(1)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(image, list(scale), list(ratio))
            for _ in range(4000)
        ],
        dtype=float,
    )
    box = aug.random_boxes(20_000, height, width, scale, ratio, generator())
    ours = box.numpy().astype(float)
    assert (box == box.round()).all() and (box[:, :2] >= 0).all()
    assert (box[:, 0] + box[:, 2] <= height).all() and (box[:, 1] + box[:, 3] <= width).all()

    def described(boxes):
        top, left, h, w = boxes.T
        rows, columns = height - h, width - w
        place = {"top": top / np.maximum(rows, 1), "left": left / np.maximum(columns, 1)}
        return {"area": h * w, "ratio": w / h, "height": h, "width": w, **place}

    for name, values in described(ours).items():
        assert same_distribution(values, described(theirs)[name]), name


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (30, 30)])
def test_where_no_box_fits_the_largest_central_one_is_taken(height, width):
    scale, ratio = (2.0, 3.0), (3 / 4, 4 / 3)  # never fits
    expected = transforms.RandomResizedCrop.get_params(
        torch.empty(1, height, width), list(scale), list(ratio)
    )
    assert (
        aug.random_boxes(2, height, width, scale, ratio, generator()).int().tolist()
        == [list(expected)] * 2
    )


def test_jitter_factors_are_uniform_in_torchvisions_ranges():
    factors = aug.jitter_factors(20_000, SIMSIAM, generator())
    for values, low, high in zip(
        factors.T, (0.6, 0.6, 0.6, -0.1), (1.4, 1.4, 1.4, 0.1), strict=True
    ):
        assert stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > ALIKE
    strong = aug.jitter_factors(20_000, SIMSIAM | {"brightness": 1.5}, generator())[
        :, 0
    ]  # torchvision starts at max(0, 1 - 1.5)
    assert stats.kstest(strong.numpy(), "uniform", (0, 2.5)).pvalue > ALIKE
    assert np.abs(np.corrcoef(factors.numpy().T) - np.eye(4)).max() < 0.03


OFF = SIMSIAM | {
    "flip": 0.0,
    "jitter": 0.0,
    "grey": 0.0,
    "blur": 0.0,
    "scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
}


@pytest.mark.parametrize("name", ["flip", "upside_down", "jitter", "grey", "blur"])
def test_each_part_happens_as_often_as_its_recipe_says_and_alone(name):
    """All other parts off, the whole image kept: what differs from the input was changed by this part."""
    images = noise(1).expand(3000, -1, -1, -1)
    often = SIMSIAM.get(name, 0.5)
    strengths = OFF | {name: often, "sigma": (1.0, 2.0)}
    views = aug.augment(images, 24, strengths, generator())
    changed = ((views - images).abs().amax((1, 2, 3)) > 1e-4).numpy()
    assert stats.binomtest(int(changed.sum()), 3000, often).pvalue > ALIKE
    view = views[torch.from_numpy(changed)][0]
    if name == "flip":
        torch.testing.assert_close(view, images[0].flip(-1))
    if name == "upside_down":
        torch.testing.assert_close(view, images[0].flip(-2))
    if name == "grey":
        torch.testing.assert_close(view, tv.rgb_to_grayscale(images[0], 3), rtol=0, atol=1e-5)
    if name == "blur":
        assert view.diff(dim=-1).abs().mean() < images[0].diff(dim=-1).abs().mean()


def test_nothing_on_is_the_identity():
    images = noise()
    torch.testing.assert_close(aug.augment(images, 24, OFF, generator()), images, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- whole views
def torchvision_views(images, size, recipe, seed=0):
    """SimSiam's pipeline (App. A) image by image; every blur kernel reaches 4 sigma as ours does."""
    parts = [recipe[name] for name in ("brightness", "contrast", "saturation", "hue")]
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(size, recipe["scale"], recipe["ratio"], antialias=True),
            v2.RandomApply([v2.ColorJitter(*parts)], recipe["jitter"]),
            v2.RandomGrayscale(recipe["grey"]),
            v2.RandomApply([v2.GaussianBlur(17, recipe["sigma"])], recipe["blur"]),
            v2.RandomSolarize(0.5, recipe.get("solarise", 0.0)),
            v2.RandomHorizontalFlip(recipe["flip"]),
            v2.RandomVerticalFlip(recipe.get("upside_down", 0.0)),
        ]
    )
    torch.manual_seed(seed)
    return torch.stack([pipeline(image.float() / 255) for image in images])


def statistics(views):
    """What a change of any part would move: level, contrast, colour, sharpness and side."""
    views = views.double()
    grey = views.mean(1)
    return {
        **{f"mean of channel {c}": views[:, c].mean((1, 2)) for c in range(3)},
        "contrast": grey.std((1, 2)),
        "brightest": grey.amax((1, 2)),
        "colour": views.std(1).mean((1, 2)),
        "sharpness": grey.diff(dim=-1).abs().mean((1, 2)) / grey.std((1, 2)).clamp(min=1e-3),
        "top minus bottom": grey[:, : grey.shape[1] // 2].mean((1, 2))
        - grey[:, grey.shape[1] // 2 :].mean((1, 2)),
        "left minus right": grey[..., : grey.shape[-1] // 2].mean((1, 2))
        - grey[..., grey.shape[-1] // 2 :].mean((1, 2)),
    }


@pytest.mark.parametrize(
    "recipe",
    [aug.RECIPES[name] for name in sorted(aug.RECIPES)]
    + [aug.RECIPES["byol"] | aug.RECIPES["byol"]["second"]],
)
@pytest.mark.parametrize("shape", ["square", "tall"])
def test_views_are_distributed_as_torchvisions(recipe, shape):
    images = photos(400)
    if shape == "tall":
        images = images[..., 4:]  # off-centre, so that a wrong flip or crop shows
    ours = aug.augment(images.repeat(6, 1, 1, 1), 18, recipe, generator(3))
    theirs = torchvision_views(images, 18, recipe)
    assert ours.min() >= -1e-6 and ours.max() <= 1 + 1e-6
    expected = statistics(theirs)
    for quantity, values in statistics(ours).items():
        # rounded: where a recipe changes no colour, a quantity has few values, equal but for their last digits
        assert same_distribution(values.round(decimals=5), expected[quantity].round(decimals=5)), (
            quantity
        )
        a, b = values.numpy(), expected[quantity].numpy()
        error = math.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
        assert abs(a.mean() - b.mean()) < 4 * error, quantity


CHANGES = [
    {},
    {"hue": 0.5},
    {"scale": (0.002, 0.05)},
    {"sigma": (0.1, 6.0), "blur": 1.0},
    {"solarise": 0.5, "upside_down": 0.5},
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("height", "width", "size"), [(24, 24, 24), (20, 33, 12), (9, 8, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_compiled_views_are_the_batched_ones(change, height, width, size, channels):
    """Every step at once, on up- and down-sampling, grey, black and saturated images among them."""
    images = (noise(140, channels, height, width) * 255).byte()
    images[0], images[1], images[2, :1] = 0, 255, 255
    draws = aug.draw(280, height, width, SIMSIAM | change, generator())
    chosen = torch.arange(140).repeat(2)
    batched = torch.empty(280, channels, size, size).contiguous(memory_format=torch.channels_last)
    aug._render_batched(images, chosen, draws, batched)
    for source in (images, images.float() / 255):
        torch.testing.assert_close(
            aug.render(source, chosen, draws, size), batched, rtol=0, atol=5e-5
        )


def test_compiled_views_do_not_depend_on_the_number_of_threads():
    images, threads = photos(70), torch.get_num_threads()
    views = []
    for count in (1, 3):
        torch.set_num_threads(count)
        views.append(aug.augment(images, 16, SIMSIAM, generator()))
    torch.set_num_threads(threads)
    assert torch.equal(*views)


@pytest.mark.parametrize("local", [0, 2])
def test_parts_of_a_batch_have_together_the_views_of_the_whole(local):
    images = photos(128)
    described = {"augmentation": "simsiam", "image_size": 16, "local_size": 8, "local_views": local}
    whole = aug.make_views(images, described, generator())
    parts = [
        aug.make_views(images[32 * part : 32 * part + 32], described, generator(), part, 4)
        for part in range(4)
    ]
    for view, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(view, torch.cat(pieces))


def test_views_of_digits_stay_grey_and_move():
    images = data.load("digits", "train").batch(np.arange(64))
    views = aug.augment(images, 16, SIMSIAM, generator())
    assert views.shape == (64, 1, 16, 16) and views.min() >= -1e-6 and views.max() <= 1 + 1e-6


def test_each_image_has_its_own_parameters():
    image = photos(1)
    views = aug.augment(image.expand(200, -1, -1, -1), 24, SIMSIAM, generator())
    differences = torch.cdist(views.flatten(1), views.flatten(1)) + 10 * torch.eye(200)
    assert differences.min() > 1e-3


@pytest.mark.parametrize("batch", [1, 63, 64, 65, 130])
def test_batches_of_every_length(batch):
    images = photos(130)[:batch]
    views = aug.augment(images, 12, SIMSIAM, generator())
    assert views.shape == (batch, 3, 12, 12) and views.isfinite().all()
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert (views.std((1, 2, 3)) > 0).all()


def test_views_depend_on_the_generator_alone():
    images = photos(70)
    original, state = images.clone(), torch.get_rng_state()
    first, again, other = (aug.augment(images, 16, SIMSIAM, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(images, original)


def test_float_images_are_taken_as_they_are():
    images = photos(70)
    floats = images.float() / 255
    kept = floats.clone()
    views = aug.augment(floats, 16, SIMSIAM, generator())
    torch.testing.assert_close(
        views, aug.augment(images, 16, SIMSIAM, generator()), rtol=0, atol=1e-6
    )
    assert torch.equal(floats, kept)


@pytest.mark.parametrize("local", [0, 3])
def test_make_views_gives_global_views_first(local):
    images = photos(20)
    described = {"augmentation": "simsiam", "image_size": 16, "local_size": 8, "local_views": local}
    views = aug.make_views(images, described, generator())
    assert [tuple(view.shape) for view in views] == [(20, 3, 16, 16)] * 2 + [(20, 3, 8, 8)] * local
    assert all(
        not torch.equal(views[i], views[j])
        for i in range(len(views))
        for j in range(i)
        if views[i].shape == views[j].shape
    )
    again = aug.make_views(images, described, generator())
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))


def test_local_views_see_a_small_part(monkeypatch):
    sizes, drawn = [], []
    monkeypatch.setattr(
        aug, "render", lambda images, chosen, draws, size: sizes.append(size) or images
    )
    draw = aug.draw
    monkeypatch.setattr(
        aug, "draw", lambda *arguments: drawn.append(arguments[3]) or draw(*arguments)
    )
    aug.make_views(photos(4), settings.recipe("vi_simsiam_2022"), generator())
    (size, local_size), (strengths, local) = sizes, drawn
    assert (size, strengths["scale"]) == (224, (0.2, 1.0)) and (local_size, local["scale"]) == (
        96,
        (0.05, 0.2),
    )
    assert {**local, "scale": None} == {**strengths, "scale": None}


def test_recipes_are_those_of_the_paper():
    """Chen & He 2021, App. A and D; Chen et al. 2020, App. A; Grill et al. 2020, App. B; Bizeul et al. 2024, Table 2; the others as lib has them."""
    paper = {
        "scale": (0.2, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "grey": 0.2,
        "blur": 0.5,
        "sigma": (0.1, 2.0),
    }
    message = "a change of the views must raise the version of every method that uses them in settings/recipes.toml"
    assert aug.RECIPES["simsiam"] == paper, message
    assert aug.RECIPES["simsiam_small"] == paper | {"blur": 0.0}, message
    strong = {
        "scale": (0.08, 1.0),
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
    }
    assert aug.RECIPES["simclr"] == paper | strong, message
    byol = {
        "scale": (0.08, 1.0),
        "saturation": 0.2,
        "blur": 1.0,
        "solarise": 0.0,
        "second": {"blur": 0.1, "solarise": 0.2},
    }
    assert aug.RECIPES["byol"] == paper | byol, message
    none = {"flip": 0.0, "grey": 0.0, "blur": 0.0, "upside_down": 0.5, "ratio": (3 / 4, 1.3)}
    colour = {
        "scale": (0.6, 1.0),
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
    }
    assert aug.RECIPES["simvae_colour"] == paper | none | colour, message
    uncoloured = {
        "scale": (0.4, 1.0),
        "jitter": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
    }
    assert aug.RECIPES["simvae_grey"] == paper | none | uncoloured, message
    others = {
        "crop_and_flip": paper | uncoloured | {"scale": (0.2, 1.0), "grey": 0.0, "blur": 0.0},
        "dino": paper | byol | {"scale": (0.4, 1.0), "local": {"scale": (0.05, 0.4), "blur": 0.5}},
        "prosmin": paper | strong | {"scale": (0.8, 1.0)},
        "simvae_colour_crop_0.2": paper | none | colour | {"scale": (0.2, 1.0)},
        "simvae_colour_crop_1": paper | none | colour | {"scale": (1.0, 1.0)},
        "simvae_colour_jitter_0": paper | none | uncoloured | {"scale": (0.6, 1.0), "jitter": 0.8},
    }
    pinned = {"simsiam", "simsiam_small", "simclr", "byol", "simvae_colour", "simvae_grey"} | set(
        others
    )
    assert {name: aug.RECIPES[name] for name in others} == others and set(aug.RECIPES) == pinned, (
        message
    )


@pytest.mark.parametrize("views", [1, 5])
def test_a_recipe_may_have_any_number_of_views(views):
    described = {
        "augmentation": "simvae_colour",
        "image_size": 16,
        "local_size": 8,
        "local_views": 0,
        "views": views,
    }
    made = aug.make_views(photos(6), described, generator())
    assert len(made) == views and len({view.sum().item() for view in made}) == views
    with pytest.raises(ValueError, match=f"'byol' is for two views, not {views}"):
        aug.make_views(photos(6), described | {"augmentation": "byol"}, generator())


def test_the_second_view_has_the_recipes_own_parameters(monkeypatch):
    drawn, draw = [], aug.draw
    monkeypatch.setattr(
        aug,
        "draw",
        lambda *arguments: drawn.append((arguments[0], arguments[3])) or draw(*arguments),
    )
    described = {"augmentation": "byol", "image_size": 16, "local_size": 8, "local_views": 3}
    assert [len(view) for view in aug.make_views(photos(4), described, generator())] == [4] * 5
    assert [
        (count, parts["blur"], parts["solarise"], parts["scale"]) for count, parts in drawn
    ] == [
        (4, 1.0, 0.0, (0.08, 1.0)),
        (4, 0.1, 0.2, (0.08, 1.0)),
        (12, 1.0, 0.0, aug.LOCAL_SCALE),
    ]


def test_dinos_low_resolution_views_have_crops_and_blur_of_their_own(monkeypatch):
    drawn, draw = [], aug.draw
    monkeypatch.setattr(
        aug,
        "draw",
        lambda *arguments: drawn.append((arguments[0], arguments[3])) or draw(*arguments),
    )
    aug.make_views(
        photos(4),
        {"augmentation": "dino", "image_size": 16, "local_size": 8, "local_views": 3},
        generator(),
    )
    assert [
        (count, parts["scale"], parts["blur"], parts["solarise"]) for count, parts in drawn
    ] == [
        (4, (0.4, 1.0), 1.0, 0.0),
        (4, (0.4, 1.0), 0.1, 0.2),
        (12, (0.05, 0.4), 0.5, 0.0),
    ]


def test_unknown_recipe_is_an_error():
    with pytest.raises(
        ValueError, match="Unknown augmentation recipe 'none'; choose one of .*'simsiam'"
    ):
        aug.recipe("none")
