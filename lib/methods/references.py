"""Reference rows of every table: the same network with labels, untrained, and the image itself."""

from torch import Tensor, nn
from torch.nn import functional as F

from lib.methods.base import Embedding, TwoViews, forward_by_size
from lib.methods.simsiam import SimSiam


class Supervised(TwoViews):
    """The same network and views trained with labels: cross-entropy, mean over both views.

    Example:
        >>> method = Supervised(settings.resolve("supervised", "smoke") | {"classes": 10})
        >>> method.loss([first, second], labels)["loss"].backward()
    """

    takes_labels = True

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        self.projector = nn.Linear(self.backbone.features, settings["classes"])

    def loss(self, views: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        (first,), (second,) = forward_by_size(self, views)  # [B, classes]
        first_loss = F.cross_entropy(first.float(), labels)
        second_loss = F.cross_entropy(second.float(), labels)
        accuracy = (first.argmax(1) == labels).float().mean()
        return {"loss": (first_loss + second_loss) / 2, "accuracy": accuracy}


class RandomInitialisation(SimSiam):
    """SimSiam's network as initialised.

    Example:
        >>> method = RandomInitialisation(settings.resolve("random", "smoke"))
        >>> method.embed(first).features.shape
        torch.Size([4, 32])
    """


class RawPixels(nn.Module):
    """The image itself, flattened. Its uncertainty, a trivial one, is minus the image's norm.

    Example:
        >>> method = RawPixels(settings.resolve("raw_pixels", "smoke"))
        >>> method.embed(first).features.shape
        torch.Size([4, 768])
    """

    embeds_with = ()

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()

    def embed(self, images: Tensor) -> Embedding:
        pixels = images.flatten(1).float()
        return Embedding(features=pixels, uncertainty=-pixels.norm(dim=1), native={})
