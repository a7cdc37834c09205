"""Images and their views.

    from lib import data
    images = data.load("cifar10", "test")            an ImageSet
    batch = images.batch([0, 1, 2])                  uint8 [3, C, H, W]
    image = data.read_image("mine.jpg", 32)          floats in 0..1, [3, 32, 32]

sources.py finds sets by name; sets.py says what a set is; files.py reads image files; drawn.py
draws sets; views.py makes random views, which kernels.py compiles.
"""

from lib.lazy import lazily

# Names are imported when they are used, as torch is slow to import.
_MODULE_OF = {
    "ImageSet": "sets",
    "generated": "drawn",
    "load": "sources",
    "read_image": "files",
}
_MODULES = (
    "avatars",
    "catalogue",
    "constants",
    "downloads",
    "drawn",
    "files",
    "kernels",
    "layouts",
    "sets",
    "sources",
    "views",
)
__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazily(__name__, _MODULES, _MODULE_OF)
