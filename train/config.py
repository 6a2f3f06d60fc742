"""What shapes a training run: one frozen record, the systems of the paper, recipes by hardware."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from engines.networks import NETWORKS
from train.discriminator import DISCRIMINATORS
from train.losses import LossName

NormName = Literal["batch", "none"]
OptimizerName = Literal["adam", "muon"]
ContentName = Literal["mse", "vgg22", "vgg54", "none"]
LPIPSNetwork = Literal["alex", "vgg", "both"]
DegradationName = Literal["bicubic", "video"]


def option(default: Any, explanation: str) -> Any:
    """Declare a field that is a flag of `train.srgan` too, with its line of `--help`."""
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that shapes a run; stored in each checkpoint.

    The defaults are those of Ledig et al. 2017, section 3.2, for SRGAN-VGG54. A run has two stages:
    `steps` with a pixel loss alone (SRResNet), then `gan_steps` against a discriminator.
    """

    recipe: str = "paper"  # the one that it began from
    # --- the generator ---
    network: str = option("srgan", "the generator's kind")
    channels: int | None = option(None, "the generator's width; the network's own unless given")
    blocks: int | None = option(None, "its blocks; the network's own unless given")
    norm: NormName = option("batch", "batch norm, or none: the deploy form itself is trained")
    # --- stage 1: a pixel loss ---
    steps: int = option(1_000_000, "steps with the pixel loss alone")
    loss: LossName = option("mse", "the pixel loss: absolute or squared difference")
    luma_weight: float = option(0.0, "share of the pixel loss taken on Y alone, 0 to 1")
    optimizer: OptimizerName = option("adam", "of the stage of the pixel loss")
    learning_rate: float = option(1e-4, "of the stage of the pixel loss")
    warmup_steps: int = option(0, "steps over which that rate rises linearly from 0")
    cooldown_steps: int = option(0, "last steps of that stage, over which it falls to 0")
    # --- stage 2: the GAN, always with Adam ---
    gan_steps: int = option(200_000, "steps against a discriminator, after the others")
    gan_learning_rate: float = option(1e-4, "of the GAN stage; falls to a tenth half way")
    content: ContentName = option("vgg54", "the content loss of the GAN stage")
    content_weight: float = option(1.0, "of the content loss")
    adversarial_weight: float = option(1e-3, "of -log D in the GAN stage")
    pixel_weight: float = option(0.0, "of the pixel loss there, against colour drift")
    lpips_weight: float = option(0.0, "of LPIPS there")
    lpips_network: LPIPSNetwork = option(
        "alex", "what LPIPS looks through: AlexNet, VGG16, or the mean over both"
    )
    grid_weight: float = option(0.0, "of the pattern locked to the pixel shuffle's grid, there")
    discriminator: str = option("paper", "the discriminator's kind")
    discriminator_channels: int = option(64, "the discriminator's width")
    spectral_norm: bool = option(False, "spectral norm in the discriminator")
    r1_weight: float = option(0.0, "of the discriminator's gradient on originals (R1)")
    # --- the data ---
    batch: int = option(16, "patches a step, over all processes")
    crop: int = option(96, "side of the high-resolution patch, pixels")
    candidates: int = option(
        1, "random places, of which the one with most detail is taken; not of degraded clips"
    )
    half_size: bool = option(False, "draw from the photos at half their size too")
    recolour: float = option(0.0, "share of the patches that get colours photographs do not have")
    degradation: DegradationName = option("bicubic", "how the input is made; video: half the time")
    # --- the rest ---
    ema: float = option(0.0, "decay of the averaged weights, a step; 0 turns averaging off")
    amp: bool = option(False, "compute in bfloat16 where PyTorch deems it safe")
    compile: bool = option(False, "torch.compile both networks (with R1 the generator alone)")
    seed: int = option(0, "of weights and draws")

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
        if self.gan_steps and not any(self._gan_weights()):
            raise ValueError("every term of the generator's loss has the weight 0")
        for name in ("learning_rate", "gan_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("luma_weight", "recolour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")

    def _check_choices(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise ValueError(f"unknown {name} {found!r}; known: {', '.join(known)}")

    def _gan_weights(self) -> tuple[float, ...]:
        content = self.content_weight if self.content != "none" else 0.0
        weights = (self.adversarial_weight, self.pixel_weight, self.lpips_weight, self.grid_weight)
        return (content, *weights)

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


# the systems of the paper's tables 1 and 2: whatever the recipe, their losses and discriminator are
# the paper's, so the defaults above, but for what tells them apart
_LOSSES = (
    *("network", "loss", "luma_weight", "content_weight", "adversarial_weight", "pixel_weight"),
    *("lpips_weight", "grid_weight", "r1_weight", "discriminator", "spectral_norm"),
)
_PAPER = {f.name: f.default for f in fields(TrainConfig) if f.name in _LOSSES}
SYSTEMS: dict[str, dict[str, Any]] = {
    "srcnn": {**_PAPER, "network": "srcnn", "gan_steps": 0},
    "srresnet-mse": {**_PAPER, "gan_steps": 0},
    "srgan-mse": {**_PAPER, "content": "mse"},
    "srgan-vgg22": {**_PAPER, "content": "vgg22"},
    "srgan-vgg54": {**_PAPER, "content": "vgg54"},
}

# the same training fitted to the hardware at hand; a system's losses and single flags go over it
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


def combine(
    recipe: str | None, system: str | None, given: dict[str, Any], *, resumed: dict[str, Any]
) -> TrainConfig:
    """Build a run's configuration: single values over what is resumed, or a system over a recipe.

    Raises:
        ValueError: a value is not possible, the system is a GAN and the recipe has no GAN stage, or
            the run to resume is of another recipe or system, or has options of another version.
    """
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    if unknown := resumed.keys() - defaults.keys():
        named = ", ".join(sorted(unknown))
        raise ValueError(f"the run to resume has options that this version does not have: {named}")
    resumed = resumed and {**defaults, **resumed}  # what a newer version has added
    if resumed and recipe not in (None, resumed["recipe"]):
        raise ValueError(f"the run to resume is of the recipe {resumed['recipe']}, not {recipe}")
    wanted = SYSTEMS[system] if resumed and system is not None else {}
    for name, value in wanted.items():
        if name not in given and name != "gan_steps" and resumed[name] != value:
            raise ValueError(f"the run to resume is not of {system}: its {name} is {resumed[name]}")
    sets = resumed or RECIPES.get(recipe or "", {}) | SYSTEMS.get(system or "", {})
    is_gan = system is not None and SYSTEMS[system].get("gan_steps") != 0
    if is_gan and sets.get("gan_steps") == 0 and "gan_steps" not in given:
        raise ValueError(f"{system} has a GAN stage and this run none: give --gan-steps N")
    return TrainConfig(**(sets | given))
