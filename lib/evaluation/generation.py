"""Images out of representations: reconstructions, decoders for encoders that have none, generation and interpolation in the latent space."""

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import networks
from lib.data import sets as image_sets
from lib.data import sources as data
from lib.data import views as augmentations
from lib.evaluation import measure as protocol
from lib.evaluation import probes as evaluation
from lib.evaluation import style as factors
from lib.evaluation.uncertainty import matrix
from lib.methods.simvae import VAE
from lib.runs import settings as resolution
from lib.runs import store as artifacts
from lib.training import loop as training

# SimVAE (Bizeul et al. 2024), App. A.7.6: about 10 to 80 epochs, as many as the validation loss falls.
PAPER_DECODER = {
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "loss": "squared error",
    "chosen_epoch": "least validation loss",
    "epochs": 80,
}
BATCH_SIZE, PATIENCE = 128, 5


def target_pixels(settings: dict, images: Tensor) -> Tensor:
    """What a reconstruction of images [B, C, S, S] in 0..1 is compared with: the pixels as the encoder sees them (binarised where it does so)."""
    return networks.Binarise(settings["binarise"])(images) if settings.get("binarise") else images


class Decoder(nn.Module):
    """Features [B, L] -> mean images [B, C, S, S] in 0..1, with the mean and scale of the features that it was trained on."""

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
    """A decoder of the VAEs' form for frozen features [N, L] of images, pixels [N, C, S, S] in 0..1 (SimVAE, App. A.7.6).

    The last tenth is the validation part; training stops after PATIENCE epochs without a new least squared error on it, and the weights of the
    least are kept. progress_path: the file that lib.training.loop.Progress writes. Deviation: features are standardised; encoders differ in scale by
    orders of magnitude, and the rate is the same for all.
    """
    features = matrix(features, "features")
    if len(features) != len(pixels) or len(features) < 20:
        raise ValueError(
            f"Expected features and pixels of the same images, at least 20, got {len(features)} and {len(pixels)}."
        )
    augmentations.check_range(pixels)
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; a decoder takes at least one.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(settings, features.shape[1], pixels.shape[1])
        held_out = max(1, len(features) // 10)
        x = torch.as_tensor(features, dtype=torch.float32)
        scale, mean = torch.std_mean(x[:-held_out], dim=0)
        scale[scale <= 1e-6 * mean.abs()] = 1.0  # a feature that does not vary, but for rounding
        decoder.mean.copy_(mean), decoder.scale.copy_(scale)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=PAPER_DECODER["learning_rate"])
        best, kept, since, step = float("inf"), {}, 0, 0
        steps = epochs * math.ceil((len(x) - held_out) / BATCH_SIZE)
        with closing(
            training.Progress(
                progress_path, f"decoder of {len(x):,} images", steps, 0, BATCH_SIZE, show=False
            )
        ) as progress:
            for _ in range(epochs):
                decoder.train()
                for rows in torch.randperm(len(x) - held_out).split(BATCH_SIZE):
                    loss = F.mse_loss(decoder(x[rows]), pixels[rows])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    step += 1
                    progress.update(step, round(loss.item(), 4) if loss.isfinite() else None)
                error, since = mse(decoder, x[-held_out:], pixels[-held_out:]), since + 1
                if not np.isfinite(error):
                    raise ValueError(
                        f"The decoder's validation error is {error}: its training has diverged. Train the run again, or set fewer decoder_epochs."
                    )
                if error < best:
                    best, since = error, 0
                    kept = {name: value.clone() for name, value in decoder.state_dict().items()}
                if since >= PATIENCE:
                    break
        decoder.load_state_dict(kept)
    return decoder.eval()


@torch.no_grad()
def decode(decoder, features: np.ndarray | Tensor, batch_size: int = 512) -> Tensor:
    """Mean images [N, C, S, S] of features [N, L]; decoder: a Decoder, or a VAE (its ``picture``)."""
    call = decoder.picture if isinstance(decoder, VAE) else decoder
    decoder.eval()
    return torch.cat(
        [
            call(rows).cpu()
            for rows in torch.as_tensor(features, dtype=torch.float32).split(batch_size)
        ]
    )


def mse(decoder, features: np.ndarray | Tensor, pixels: Tensor) -> float:
    """Mean squared error a pixel of the reconstructions."""
    return F.mse_loss(decode(decoder, features), pixels).item()


def sample_classes(
    features: np.ndarray, labels: np.ndarray, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` latents of every class from a Gaussian with full covariance fitted to its features [N, L], and their labels (SimVAE, App. A.7.6)."""
    features = matrix(features, "features")
    if np.shape(labels) != (len(features),):
        raise ValueError(f"labels must be [N] = [{len(features)}], got shape {np.shape(labels)}.")
    generator, drawn, names = np.random.default_rng(seed), [], np.unique(labels)
    for name in names:
        own = features[labels == name].astype(np.float64)
        if len(own) < 2:
            raise ValueError(
                f"Class {name} has {len(own)} image(s); a Gaussian needs at least two."
            )
        drawn.append(
            generator.multivariate_normal(
                own.mean(0), np.atleast_2d(np.cov(own, rowvar=False)), count, method="eigh"
            )
        )
    return np.concatenate(drawn).astype(np.float32), np.repeat(names, count)


def interpolate(first: np.ndarray, second: np.ndarray, steps: int = 8) -> np.ndarray:
    """Latents on the straight lines from first to second, both ends included: [N, L] twice -> [N, steps, L]."""
    return np.linspace(first, second, steps, axis=1, dtype=np.float32)


def fid(
    sets: dict[str, Tensor], real: Tensor, weights: Path, batch_size: int = 128
) -> dict[str, float]:
    """The FID (Heusel et al. 2017) of each of ``sets`` of images [N, C, S, S] in 0..1 to ``real`` ones, by torchmetrics.

    weights: data.inception_weights(). Grey images are given as three equal channels; the network resizes to 299 pixels. Where N is not far above
    the 2,048 features, an FID is biased upwards: compare sets of one size.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import

    for images in (real, *sets.values()):
        augmentations.check_range(images)
    measure = FrechetInceptionDistance(
        reset_real_features=False, feature_extractor_weights_path=str(weights)
    )

    def add(images: Tensor, real: bool) -> None:
        for batch in images.split(batch_size):
            measure.update(
                (255 * batch).round().clamp(0, 255).byte().expand(-1, 3, -1, -1), real=real
            )

    add(real, True)
    found = {}
    for name, images in sets.items():
        measure.reset()
        add(images, False)
        found[name] = float(measure.compute())
    return found


# ---------------------------------------------------------------------------------------------------------------- of a run
def pixels_of(run: protocol.Run, images: data.ImageSet) -> Tensor:
    """What reconstructions of ``images`` are compared with, [N, C, S, S] in 0..1: as the run takes them."""
    fitted = protocol.fit(run.settings, run.channels)(
        images.batch(range(len(images))).float() / 255
    )
    return target_pixels(run.settings, fitted)


def decoder_of(run: protocol.Run) -> nn.Module:
    """A VAE itself, or a decoder of the same form trained on the run's frozen features of its labelled images; stored with the run.

    FileNotFoundError for a VAE whose weights are not here: its committed encoder has no decoder.
    """
    if isinstance(run.method, VAE):
        if not hasattr(run.method, "decoder"):
            raise FileNotFoundError(
                f"Of run {run.name} only the committed encoder is here, not its decoder; train it: make reproduce PROFILE={run.profile}"
            )
        return run.method.cpu()
    path, bank = artifacts.run_dir(run.profile, run.name) / "decoder.safetensors", run.bank
    made_of = f"{run.hash} {bank.checksum} {run.settings['decoder_epochs']} {resolution.EVALUATION_VERSION}"
    features = run.embed(bank)["features"]
    if path.exists() and artifacts.read_tensors_info(path).get("made_of") == made_of:
        decoder = Decoder(run.settings, features.shape[1], run.channels)
        training.fill(decoder, artifacts.read_tensors(path)[0], path)
        return decoder.eval()
    pixels = pixels_of(run, bank)
    if bank.is_sorted:  # the last of these validate the decoder
        order = np.random.default_rng(0).permutation(len(bank))
        features, pixels = features[order], pixels[order]
    decoder = fit_decoder(
        features,
        pixels,
        run.settings,
        run.settings["seed"],
        run.settings["decoder_epochs"],
        progress_path=path.with_name("progress.json"),
    )
    artifacts.write_tensors(path, decoder.state_dict(), {"run": run.name, "made_of": made_of})
    return decoder


def measure_generation(
    run: protocol.Run, judge: protocol.Run | None, notebook: str
) -> pd.DataFrame:
    """mse of reconstructed test images (SimVAE, Table 7; of each image in the scores), and Fréchet distances of generated and reconstructed ones.

    Generated: as many of each class as the test set has on average, from class-conditional Gaussians. ``judge`` is the run whose features the
    distance is taken in, named in the column score (None: no distances); train: the distance of as many training images, the least to be
    expected. The FID besides, where the weights of its network are at hand (data.inception_weights). n: the images of each kind.
    """
    bank, test = run.bank, run.test()
    decoder, known, asked, pixels = (
        decoder_of(run),
        run.embed(bank),
        run.embed(test),
        pixels_of(run, test),
    )
    latents, _ = sample_classes(
        known["features"],
        known["label"],
        len(pixels) // len(run.train.classes),
        run.settings["seed"],
    )
    pictures = {
        "generated": decode(decoder, latents),
        "reconstructed": decode(decoder, asked["features"]),
        "train": pixels_of(
            run,
            run.train.subset(np.random.default_rng(0).permutation(len(run.train))[: len(pixels)]),
        ),
    }

    def judged(images: Tensor) -> np.ndarray:
        labels = np.zeros(len(images), np.int64)
        return judge.ask(
            data.ImageSet("pictures", "test", image_sets.to_bytes(images), labels, ["picture"])
        )["features"]

    common = {"evaluated_on": test.title, "n": len(pixels)}
    error = (pictures["reconstructed"] - pixels).square().flatten(1).mean(1).numpy()  # [N]
    mse = evaluation.with_interval(np.mean, error, draws=run.settings["bootstrap_draws"])
    rows = [common | {"condition": "reconstructed", "metric": "mse"} | mse]
    if judge:
        real = judged(pixels)
        for condition, images in pictures.items():
            distance = factors.frechet_distance(judged(images), real)
            row = {
                "condition": condition,
                "metric": "frechet_distance",
                "score": judge.name,
                "value": distance,
                "n": len(images),
            }
            rows.append(common | row)
    if weights := data.inception_weights():
        found = fid(pictures, pixels, weights)
        rows += [
            common | {"condition": name, "metric": "fid", "value": value, "n": len(pictures[name])}
            for name, value in found.items()
        ]
    artifacts.write_scores(
        run.profile,
        run.name,
        f"{run.settings['dataset']}_reconstruction",
        {"squared_error": error.astype(np.float16)},
    )
    return run.write_metrics(rows, notebook)
