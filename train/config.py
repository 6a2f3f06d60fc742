"""What shapes a training run: one frozen record, the systems of the paper, recipes by hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from engines.networks import NETWORKS
from train.discriminator import DISCRIMINATORS
from train.losses import LossName

NormName = Literal["batch", "none"]
OptimizerName = Literal["adam", "muon"]
ContentName = Literal["mse", "vgg22", "vgg54", "none"]
LPIPSNetwork = Literal["alex", "vgg"]
DegradationName = Literal["bicubic", "video"]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that shapes a run; stored in each checkpoint.

    The defaults are those of Ledig et al. 2017, section 3.2, for SRGAN-VGG54. A run has two stages:
    `steps` with a pixel loss alone (SRResNet), then `gan_steps` against a discriminator.
    """

    recipe: str = "paper"  # the one that it began from
    # --- the generator ---
    network: str = "srgan"
    channels: int | None = None  # None: the network's own default
    blocks: int | None = None
    norm: NormName = "batch"  # none: the deploy form itself is trained
    # --- stage 1: a pixel loss ---
    steps: int = 1_000_000
    loss: LossName = "mse"
    luma_weight: float = 0.0  # share of that loss taken on Y alone, 0 to 1
    optimizer: OptimizerName = "adam"
    learning_rate: float = 1e-4
    warmup_steps: int = 0  # the rate rises linearly from 0
    cooldown_steps: int = 0  # the rate falls linearly to 0 over the last steps of the stage
    # --- stage 2: the GAN, always with Adam ---
    gan_steps: int = 200_000
    gan_learning_rate: float = 1e-4  # falls to a tenth half way
    content: ContentName = "vgg54"
    content_weight: float = 1.0
    adversarial_weight: float = 1e-3
    pixel_weight: float = 0.0  # of the loss of stage 1, against colour drift
    lpips_weight: float = 0.0
    lpips_network: LPIPSNetwork = "alex"  # or "vgg": VGG16
    grid_weight: float = 0.0  # of the pattern locked to the grid of the pixel shuffle
    discriminator: str = "paper"
    discriminator_channels: int = 64
    spectral_norm: bool = False
    r1_weight: float = 0.0
    # --- the data ---
    batch: int = 16  # over all processes
    crop: int = 96  # side of the high-resolution patch, pixels
    candidates: int = 1  # of so many random patches the most detailed is taken
    degradation: DegradationName = "bicubic"
    # --- the rest ---
    ema: float = 0.0  # decay of the averaged weights, a step; 0 turns averaging off
    amp: bool = False  # compute in bfloat16 where PyTorch deems it safe
    compile: bool = False  # torch.compile the networks
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("batch", "crop", "candidates", "discriminator_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            *("steps", "gan_steps", "warmup_steps", "cooldown_steps", "content_weight"),
            *("adversarial_weight", "pixel_weight", "lpips_weight", "grid_weight", "r1_weight"),
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.steps + self.gan_steps < 1:
            raise ValueError("steps and gan_steps are both 0: there is nothing to do")
        for name in ("learning_rate", "gan_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.luma_weight <= 1:
            raise ValueError(f"luma_weight must be in [0, 1], got {self.luma_weight}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")

    def _check_choices(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise ValueError(f"unknown {name} {found!r}; known: {', '.join(known)}")

    @property
    def total_steps(self) -> int:
        """Steps of both stages."""
        return self.steps + self.gan_steps

    def network_config(self) -> dict[str, int]:
        """Return the fields of the network's configuration that this run sets."""
        chosen = {"channels": self.channels, "blocks": self.blocks}
        return {name: value for name, value in chosen.items() if value is not None}

    def rate_at(self, step: int) -> float:
        """Return the learning rate of the generator at a step counted from 0."""
        if step >= self.steps:
            late = step - self.steps >= self.gan_steps / 2
            return self.gan_learning_rate * (0.1 if late else 1.0)
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        # a run cut short by --steps still begins at the full rate
        cooldown = min(self.cooldown_steps, max(1, self.steps - self.warmup_steps))
        left = (self.steps - step) / cooldown if cooldown else 1.0
        return self.learning_rate * warmup * min(1.0, left)


# the systems of the paper's tables 1 and 2, as fields that differ from the defaults
SYSTEMS: dict[str, dict[str, Any]] = {
    "srcnn": {"network": "srcnn", "gan_steps": 0},
    "srresnet-mse": {"network": "srgan", "gan_steps": 0},
    "srgan-mse": {"network": "srgan", "content": "mse"},
    "srgan-vgg22": {"network": "srgan", "content": "vgg22"},
    "srgan-vgg54": {"network": "srgan", "content": "vgg54"},
}

# the same training fitted to the hardware at hand; `--system` and single flags go over it
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"recipe": "paper"},
    "gpu-20min": {
        "recipe": "gpu-20min",
        "norm": "none",
        "steps": 30_000,
        "loss": "l1",
        "optimizer": "muon",
        "learning_rate": 5e-4,  # Muon at 2e-3 makes 16 blocks without batch norm diverge
        "warmup_steps": 200,
        "cooldown_steps": 25_000,
        "gan_steps": 10_000,
        "pixel_weight": 2.0,
        "lpips_weight": 0.5,
        "lpips_network": "vgg",  # through AlexNet's every fourth pixel a weave on skin is not seen
        "grid_weight": 20.0,  # with 80 hardly anything leaves the fidelity end
        "adversarial_weight": 5e-3,
        "spectral_norm": True,
        "batch": 32,
        "ema": 0.999,
        "amp": True,
        "compile": True,
    },
    "cpu": {
        "recipe": "cpu",
        "network": "srgan-lite",
        "steps": 60_000,
        "loss": "l1",
        "luma_weight": 0.9,
        "optimizer": "muon",
        "learning_rate": 3e-3,
        "warmup_steps": 100,
        "cooldown_steps": 55_000,
        "gan_steps": 0,
        "content": "none",
        "pixel_weight": 2.0,
        "lpips_weight": 0.5,
        "lpips_network": "vgg",  # through AlexNet's every fourth pixel a weave on skin is not seen
        "grid_weight": 20.0,  # with 80 hardly anything leaves the fidelity end
        "adversarial_weight": 5e-3,
        "discriminator_channels": 16,
        "batch": 8,
        "crop": 128,
        "ema": 0.999,
    },
}

CHOICES: dict[str, tuple[str, ...]] = {
    "network": tuple(NETWORKS),
    "norm": get_args(NormName),
    "loss": get_args(LossName),
    "optimizer": get_args(OptimizerName),
    "content": get_args(ContentName),
    "lpips_network": get_args(LPIPSNetwork),
    "discriminator": tuple(DISCRIMINATORS),
    "degradation": get_args(DegradationName),
    "recipe": tuple(RECIPES),
}
