"""Unconditional Gaussian diffusion over flat weights (Ho et al. 2020, arXiv 2006.11239): the usual weight generator, as a
baseline.

Weights are standardised coordinate by coordinate. 100 steps; the linear schedule is scaled so that the last state is noise, the
cosine one is that of Nichol & Dhariwal (arXiv 2102.09672). The denoiser is an MLP over the flat weights with a time embedding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.seeds import generator


@dataclass
class DdpmConfig:
    """schedule: linear or cosine; predicts: eps (the noise) or x0 (the clean weights)."""

    schedule: str = "cosine"
    predicts: str = "x0"
    steps: int = 100
    hidden: int = 256
    time_dim: int = 64
    updates: int = 800
    batch: int = 64
    learning_rate: float = 1e-3


def kept_signal(config: DdpmConfig) -> Tensor:
    """ᾱ_t [step], the share of the clean weights' variance that is left after t+1 steps; nearly 0 at the last.

    Raises: InputError for an unknown schedule or fewer than 2 steps.
    """
    if config.steps < 2:
        raise InputError(f"ddpm needs at least 2 steps, got {config.steps}")
    if config.schedule == "linear":
        times = 1000 / config.steps
        betas = torch.linspace(1e-4 * times, min(0.02 * times, 0.999), config.steps, dtype=torch.float64)
        return (1 - betas).cumprod(0)
    if config.schedule == "cosine":
        t = torch.arange(1, config.steps + 1, dtype=torch.float64) / config.steps
        curve = lambda x: torch.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        return (curve(t) / curve(torch.zeros(()))).clamp(1e-5, 1)
    raise InputError(f"ddpm schedule must be linear or cosine, got {config.schedule!r}")


class Denoiser(nn.Module):
    """Flat weights [net weights] and step [net] -> what is predicted [net weights]."""

    def __init__(self, n_weights: int, config: DdpmConfig):
        super().__init__()
        self.time = nn.Embedding(config.steps, config.time_dim)
        self.layers = nn.Sequential(
            nn.Linear(n_weights + config.time_dim, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, n_weights),
        )

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.layers(torch.cat([x, self.time(step)], dim=-1))


class Ddpm:
    """A diffusion model of nets [net weights]. Raises: InputError for settings that cannot work."""

    def __init__(self, training: Tensor, config: DdpmConfig, seed: int = 0):
        if config.predicts not in ("eps", "x0"):
            raise InputError(f"ddpm predicts eps or x0, got {config.predicts!r}")
        self.config, self.kept = config, kept_signal(config).float()
        self.mean, self.std = training.mean(0), training.std(0).clamp_min(1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "ddpm").initial_seed())
            self.denoiser = Denoiser(training.shape[1], config)
        self._train((training - self.mean) / self.std, seed)

    def _train(self, clean: Tensor, seed: int) -> None:
        config = self.config
        optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.updates)
        for update in range(config.updates):
            draw = generator(seed, "ddpm-batch", update)
            x = clean[torch.randint(len(clean), (config.batch,), generator=draw)]
            step = torch.randint(config.steps, (config.batch,), generator=draw)
            noise = torch.randn(x.shape, generator=draw)
            kept = self.kept[step, None]
            predicted = self.denoiser(kept.sqrt() * x + (1 - kept).sqrt() * noise, step)
            loss = (predicted - (noise if config.predicts == "eps" else x)).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0) -> Tensor:
        """`n` nets [net weights] by ancestral sampling from noise."""
        x = torch.randn(n, len(self.mean), generator=generator(seed, "ddpm-sample"))
        for step in range(self.config.steps - 1, -1, -1):
            kept, before = self.kept[step], self.kept[step - 1] if step else torch.ones(())
            predicted = self.denoiser(x, torch.full((n,), step))
            clean = predicted if self.config.predicts == "x0" else (x - (1 - kept).sqrt() * predicted) / kept.sqrt()
            clean = clean.clamp(-6, 6)
            alpha = kept / before
            mean = (before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * x) / (1 - kept)
            noise = torch.randn(x.shape, generator=generator(seed, "ddpm-noise", step)) if step else torch.zeros(())
            x = mean + ((1 - before) / (1 - kept) * (1 - alpha)).sqrt() * noise
        return self.mean + self.std * x
