"""Images from representations: reconstruction, and generation from the latent space.

A VAE has a decoder. For an encoder without one, a decoder of the same form is trained on its frozen
features (SimVAE, Bizeul et al. 2024, App. A.7.6). The last functions measure a stored run.
"""

import math
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import networks, training
from lib.data import sets, sources
from lib.data.views import check_range
from lib.evaluation import measure
from lib.evaluation.embed import input_transform
from lib.evaluation.style import frechet_distance
from lib.evaluation.suite import metrics_row, value_rows
from lib.evaluation.uncertainty import checked_features
from lib.methods.simvae import VAE
from lib.runs import store
from lib.runs.settings import EVALUATION_VERSION

# SimVAE, App. A.7.6: 10 to 80 epochs, as long as the validation loss falls.
PAPER_DECODER = {
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "loss": "squared error",
    "chosen_epoch": "least validation loss",
    "epochs": 80,
}
BATCH_SIZE = 128
PATIENCE = 5  # epochs without a lower validation error, after which training stops


class Decoder(nn.Module):
    """Features [B, L] -> mean images [B, C, S, S] in 0..1.

    It standardises features by the ``mean`` and ``scale`` of those that it was trained on.
    """

    def __init__(self, settings: dict, inputs: int, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.network = networks.decoder(
            inputs, channels, settings["image_size"], settings["backbone"]
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.network((features - self.mean) / self.scale).float())


def fit_decoder(
    features: np.ndarray,
    pixels: Tensor,
    settings: dict,
    seed: int = 0,
    epochs: int = PAPER_DECODER["epochs"],
    progress_path: Path | None = None,
) -> Decoder:
    """A decoder for frozen features [N, L] of images [N, C, S, S] in 0..1 (SimVAE, App. A.7.6).

    It minimises the squared error. The last tenth of the images validates: training stops after
    PATIENCE epochs without a lower error there, and the weights with the lowest are kept.
    progress_path: the file that lib.training.Progress writes. Deviation: features are
    standardised, as encoders differ in scale by orders of magnitude and share one learning rate.

    Example:
        decoder = fit_decoder(train["features"], train_pixels, run.settings)
        images = decode(decoder, test["features"])
    """
    features = checked_features(features, "features")
    check_range(pixels)
    x = torch.as_tensor(features, dtype=torch.float32)
    count = len(x) - max(1, len(x) // 10)  # training images; the rest validates
    batches = math.ceil(count / BATCH_SIZE)
    progress = training.Progress(
        progress_path, f"decoder of {len(x):,} images", epochs * batches, 0, BATCH_SIZE, show=False
    )
    with torch.random.fork_rng(devices=[]), closing(progress):
        torch.manual_seed(seed)
        decoder = Decoder(settings, features.shape[1], pixels.shape[1])
        scale, mean = torch.std_mean(x[:count], dim=0)
        scale[scale <= 1e-6 * mean.abs()] = 1.0  # a feature that varies by rounding alone
        decoder.mean.copy_(mean)
        decoder.scale.copy_(scale)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=PAPER_DECODER["learning_rate"])
        lowest_error = math.inf
        best_epoch = 0
        best_weights = {}
        for epoch in range(epochs):
            _train_epoch(
                decoder, optimizer, x[:count], pixels[:count], progress, done=epoch * batches
            )
            error = mse(decoder, x[count:], pixels[count:])
            if not np.isfinite(error):
                raise ValueError(
                    f"The decoder's validation error is {error}: its training has diverged. "
                    "Train the run again, or set fewer decoder_epochs."
                )
            if error < lowest_error:
                lowest_error = error
                best_epoch = epoch
                best_weights = deepcopy(decoder.state_dict())
            if epoch - best_epoch >= PATIENCE:
                break
        decoder.load_state_dict(best_weights)
    return decoder.eval()


def _train_epoch(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    pixels: Tensor,
    progress: training.Progress,
    done: int,
) -> None:
    """One pass over the images in random order; done: the steps of the epochs before."""
    decoder.train()
    for step, rows in enumerate(torch.randperm(len(x)).split(BATCH_SIZE), done + 1):
        loss = F.mse_loss(decoder(x[rows]), pixels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress.update(step, round(loss.item(), 4) if loss.isfinite() else None)


@torch.no_grad()
def decode(decoder: Decoder | VAE, features: np.ndarray | Tensor, batch_size: int = 512) -> Tensor:
    """Mean images [N, C, S, S] of features [N, L]."""
    decoder.eval()
    mean_image = decoder.picture if isinstance(decoder, VAE) else decoder
    features = torch.as_tensor(features, dtype=torch.float32)
    return torch.cat([mean_image(batch).cpu() for batch in features.split(batch_size)])


def mse(decoder: Decoder | VAE, features: np.ndarray | Tensor, pixels: Tensor) -> float:
    """Mean squared error a pixel of the reconstructions of features [N, L]."""
    return F.mse_loss(decode(decoder, features), pixels).item()


def sample_classes(
    features: np.ndarray, labels: np.ndarray, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` latents of every class, [C count, L], and their labels (SimVAE, App. A.7.6).

    They are drawn from a Gaussian with full covariance fitted to the class's features, of [N, L].
    """
    features = checked_features(features, "features")
    generator = np.random.default_rng(seed)
    classes = np.unique(labels)
    latents = []
    for label in classes:
        members = features[labels == label].astype(np.float64)
        if len(members) < 2:
            raise ValueError(
                f"Class {label} has {len(members)} image(s); a Gaussian needs at least two."
            )
        covariance = np.atleast_2d(np.cov(members, rowvar=False))
        latents.append(
            generator.multivariate_normal(members.mean(0), covariance, count, method="eigh")
        )
    return np.concatenate(latents).astype(np.float32), np.repeat(classes, count)


def fid(
    generated: dict[str, Tensor], real: Tensor, weights: Path, batch_size: int = 128
) -> dict[str, float]:
    """FID (Heusel et al. 2017) of each set of images [N, C, S, S] in 0..1 to real ones.

    weights: the file of lib.data.sources.inception_weights(). The network resizes to 299 pixels and
    is given grey images as three equal channels. Where N is not far above its 2,048 features the
    FID is biased upwards: compare sets of one size.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import

    metric = FrechetInceptionDistance(
        reset_real_features=False, feature_extractor_weights_path=str(weights)
    )
    for batch in real.split(batch_size):
        metric.update(_colour_bytes(batch), real=True)
    distances = {}
    for name, images in generated.items():
        metric.reset()
        for batch in images.split(batch_size):
            metric.update(_colour_bytes(batch), real=False)
        distances[name] = float(metric.compute())
    return distances


def _colour_bytes(images: Tensor) -> Tensor:
    """Images [B, 1 or 3, S, S] in 0..1 as uint8 with three channels."""
    return (255 * images).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)


# ----------------------------------------------------------------------------------------- of a run
def pixels_of(run: measure.Run, images: sets.ImageSet) -> Tensor:
    """What reconstructions are compared with: the encoder's input [N, C, S, S] in 0..1.

    It has the size and channels that the run takes, and is binarised where the encoder binarises.
    """
    fit = input_transform(run.settings, run.channels)
    pixels = fit(images.batch(range(len(images))).float() / 255)
    if run.settings.get("binarise"):
        return networks.Binarise(run.settings["binarise"])(pixels)
    return pixels


def decoder_of(run: measure.Run) -> Decoder | VAE:
    """The VAE itself, or a Decoder trained on the run's frozen features and stored with the run.

    FileNotFoundError for a VAE without weights here: its committed encoder has no decoder.
    """
    if isinstance(run.method, VAE):
        if not hasattr(run.method, "decoder"):
            raise FileNotFoundError(
                f"Of run {run.name} only the committed encoder is here, not its decoder; "
                f"train it: make reproduce PROFILE={run.profile}"
            )
        return run.method.cpu()
    bank = run.bank
    epochs = run.settings["decoder_epochs"]
    path = store.run_dir(run.profile, run.name) / "decoder.safetensors"
    made_of = f"{run.hash} {bank.checksum} {epochs} {EVALUATION_VERSION}"
    features = run.embed(bank)["features"]
    if path.exists() and store.read_tensors_info(path).get("made_of") == made_of:
        decoder = Decoder(run.settings, features.shape[1], run.channels)
        training.fill(decoder, store.read_tensors(path)[0], path)
        return decoder.eval()
    pixels = pixels_of(run, bank)
    if bank.is_sorted:  # the last images validate the decoder, so all classes have to be among them
        order = np.random.default_rng(0).permutation(len(bank))
        features = features[order]
        pixels = pixels[order]
    progress_path = path.with_name("progress.json")
    decoder = fit_decoder(
        features, pixels, run.settings, run.settings["seed"], epochs, progress_path
    )
    store.write_tensors(path, decoder.state_dict(), {"run": run.name, "made_of": made_of})
    return decoder


def measure_generation(run: measure.Run, judge: measure.Run | None) -> list[dict]:
    """Metrics rows: error of reconstructed test images, and quality of generated ones.

    - mse of condition reconstructed (SimVAE, Table 7); of each image in the scores
      ``<dataset>_reconstruction``
    - frechet_distance to the test images in the features of ``judge``, named in column score; none
      without a judge
    - fid, where the weights of its network are here (lib.data.sources.inception_weights).

    Conditions: generated, as many of each class as the test set has on average, from
    class-conditional Gaussians; reconstructed; and train, as many training images, the lowest
    distance to be expected. n: the images of each kind.
    """
    test = run.test()
    pixels = pixels_of(run, test)
    decoder = decoder_of(run)
    reconstructed = decode(decoder, run.embed(test)["features"])
    error = (reconstructed - pixels).square().flatten(1).mean(1).numpy()  # [N]
    common = {"evaluated_on": test.title, "condition": "reconstructed"}
    rows = [metrics_row("mse", np.mean, error, draws=run.settings["bootstrap_draws"], **common)]
    images = {
        "generated": _generated_images(run, decoder, len(pixels)),
        "reconstructed": reconstructed,
        "train": _training_images(run, len(pixels)),
    }
    if judge:
        real_features = _judged_features(judge, pixels)
        for condition, pictures in images.items():
            distance = frechet_distance(_judged_features(judge, pictures), real_features)
            columns = {"condition": condition, "score": judge.name, "n": len(pictures)}
            rows += value_rows({"frechet_distance": distance}, **(common | columns))
    weights = sources.inception_weights()
    if weights:
        for condition, distance in fid(images, pixels, weights).items():
            columns = {"condition": condition, "n": len(images[condition])}
            rows += value_rows({"fid": distance}, **(common | columns))
    store.write_scores(
        run.profile,
        run.name,
        f"{run.settings['dataset']}_reconstruction",
        {"squared_error": error.astype(np.float16)},
    )
    return rows


def _generated_images(run: measure.Run, decoder: Decoder | VAE, count: int) -> Tensor:
    """About ``count`` images, equally many of each class, from ``sample_classes``."""
    bank = run.embed(run.bank)
    per_class = count // len(run.train.classes)
    latents, _ = sample_classes(bank["features"], bank["label"], per_class, run.settings["seed"])
    return decode(decoder, latents)


def _training_images(run: measure.Run, count: int) -> Tensor:
    rows = np.random.default_rng(0).permutation(len(run.train))[:count]
    return pixels_of(run, run.train.subset(rows))


def _judged_features(judge: measure.Run, images: Tensor) -> np.ndarray:
    """Features [N, D] that another run has of images [N, C, S, S] in 0..1."""
    labels = np.zeros(len(images), np.int64)
    pictures = sets.ImageSet("pictures", "test", sets.to_bytes(images), labels, ["picture"])
    return judge.embed_unstored(pictures)["features"]
