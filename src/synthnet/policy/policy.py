"""The policy: flat weights -> tokens -> trunk -> a Gaussian over the next weights; and its self-describing file.

A policy file is one `.safetensors`: the trunk's tensors, and in the metadata (`synthnet.policy`, JSON) everything needed
to rebuild and to judge it: token scheme, trunk, action, k_max, best K, the architectures it was trained on, provenance.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthnet.engine import Network, Variants, network_of
from synthnet.errors import InputError
from synthnet.files import write_safetensors
from synthnet.nets import Arch, init_scale
from synthnet.policy.action import Alike, WeightGaussian, positive_variances
from synthnet.policy.critic import Critic
from synthnet.policy.growth import regrown
from synthnet.policy.imagined import Imagined, io_sizes
from synthnet.policy.layouts import layout_of
from synthnet.policy.moe import mixtures
from synthnet.policy.tokens import TokenLayout
from synthnet.policy.trunks import build_backbone
from synthnet.seeds import generator
from synthnet.settings import check_settings, setting

POLICY_FORMAT = 2
HEADS = ("delta", "x0")


@dataclass
class ActionConfig:
    """What the policy's Gaussian is over."""

    head: str = setting("delta", "the trunk adds to the weights, or (x0) replaces them", choices=HEADS)
    sigma: float = setting(0.05, "action noise, in scale units", (1e-12, 1e3))
    learn_sigma: bool = setting(False, "learn it, for each role of weights")


@dataclass
class PolicyConfig:
    """What a policy is made of; recorded in its file. `critic`: hidden width of its early-stop critic, 0 for none. `imagined`:
    examples that it makes up for each number of steps left (`imagined.Imagined`)."""

    tokens: dict = field(default_factory=lambda: {"name": "unit"})
    backbone: dict = field(default_factory=lambda: {"name": "set_transformer"})
    action: ActionConfig = field(default_factory=ActionConfig)
    k_max: int = 6
    critic: int = 0
    imagined: int = 0


class Policy(nn.Module):
    """A Gaussian policy over weights. Serves every network that its token vocabulary covers, and every K up to k_max."""

    trunk: Any  # what a file of `trunks/` builds
    log_sigma: Tensor

    def __init__(self, config: PolicyConfig, archs: list[Arch], vocabulary: dict[str, int] | None = None):
        super().__init__()
        check_settings("action", config.action)
        if config.k_max < 1:
            raise InputError(f"k_max must be at least 1, got {config.k_max}")
        if config.imagined < 0:
            raise InputError(f"imagined must not be negative, got {config.imagined}")
        if config.imagined and config.action.head != "delta":
            raise InputError("imagined examples move the weights that are there: they need action.head=delta")
        self.config, self.archs = config, archs
        self.record: dict = {}
        self.data_sets: dict[str, list[float]] = {}  # statistics of the data of each task that it was trained for
        self.variants: Variants | None = None  # of the task that it was trained for, where that has any
        self._layouts: dict = {}
        if vocabulary is None:
            layouts = [self._build_layout(network_of(arch), None) for arch in archs]
            vocabulary = {key: size for layout in layouts for key, size in layout.vocabulary.items()}
            if layouts[0].siblings is None and any(layout.siblings is not None for layout in layouts):
                config.backbone = {**config.backbone, "siblings": True}
        self.vocabulary = vocabulary
        layout = self._build_layout(network_of(archs[0]), vocabulary)
        self.n_classes = layout.n_classes
        self.trunk = build_backbone(config.backbone, layout, config.k_max)
        self.critic = self._build_critic() if config.critic else None
        self.imagined = self._build_imagined() if config.imagined else None
        if self.imagined is None and not any(True for _ in self.trunk.parameters()):
            raise InputError(f"backbone {config.backbone['name']} learns nothing without imagined examples: pass imagined=N")
        log_sigma = torch.full((len(vocabulary),), config.action.sigma).log()
        if config.action.learn_sigma:
            self.log_sigma = nn.Parameter(log_sigma)
        else:
            self.register_buffer("log_sigma", log_sigma)

    @classmethod
    def create(cls, config: PolicyConfig, archs: list[Arch], seed: int) -> "Policy":
        """A fresh policy whose parameters depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "policy").initial_seed())
            return cls(config, archs)

    @property
    def device(self) -> torch.device:
        return self.log_sigma.device

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def _build_layout(self, net: Network, vocabulary: dict[str, int] | None) -> TokenLayout:
        return layout_of(self.config.tokens, net, vocabulary)

    def layout(self, net: Network) -> TokenLayout:
        """The token layout of a network on the policy's device (cached). Raises: InputError where it is not covered."""
        key = (net.spec, net.task, self.device)
        if key not in self._layouts:
            layout = layout_of(self.config.tokens, net, self.vocabulary, self.n_classes)
            self._layouts[key] = replace(layout, statistics=self._statistics(net)).to(self.device)
        return self._layouts[key]

    @property
    def reads_data(self) -> bool:
        """Whether its trunk is told of the data of the task that a net is for."""
        return self.config.backbone.get("data", False)

    def task_of(self, net: Network) -> str | None:
        """The task that a network is for: as it says, else the one of this policy's that was trained on with such nets."""
        if net.task is not None:
            return net.task
        mine = {arch.label for arch in self.archs if arch.spec() == net.spec}
        fits = {name for name, label in self.record.get("members", ()) if label in mine} or set(self.data_sets)
        return fits.pop() if len(fits) == 1 else None

    def _statistics(self, net: Network) -> Tensor | None:
        """What the trunk is told of the data of a network's task. Raises: InputError for one that the policy does not know."""
        if not self.reads_data:
            return None
        task = self.task_of(net)
        if task not in self.data_sets:
            known = ", ".join(self.data_sets)
            told = f"is for task {task}" if task else "says none (metadata synthnet.task)"
            raise InputError(f"this policy is told which task a net is for, and knows {known}; the net {told}")
        return torch.tensor(self.data_sets[task])

    @property
    def code_dim(self) -> int:
        """Dims of the latent code that is the action; 0 where actions are the next weights themselves."""
        return self.config.backbone.get("code", 0)

    @property
    def reads_spec(self) -> bool:
        """Whether its trunk is told which variant of the task a net is for."""
        return bool(self.config.backbone.get("spec"))

    def _told(self, spec: Tensor | None, n_nets: int) -> dict[str, Tensor]:
        """What the trunk is told of specs [row number], each of as many nets in a row; nothing where it reads none."""
        if not self.reads_spec or self.variants is None:
            return {}
        spec = self.variants.spec(None) if spec is None else spec  # None is refused there, with what is missing
        return {"spec": self.variants.scaled(spec).repeat_interleave(n_nets // len(spec), 0)}

    def forward(self, scaled: Tensor, steps_left: Tensor | int, net: Network, spec: Tensor | None = None) -> WeightGaussian:
        """The Gaussian over the action, given weights [net weights] in scale units and the steps left (with this one): over the
        next weights [net weights], or over a latent code [net code dim] that `land` decodes into them. spec [row number]: which
        variant of the task nets are for, each row for as many nets in a row as there are for one."""
        layout, left = self.layout(net), _as_steps(steps_left, scaled)
        if self.code_dim:
            read = self.trunk.features(layout.encode(scaled), layout, left, **self._told(spec, len(scaled)))
            mean = self.trunk.code_head(read)
            one = torch.zeros(self.code_dim, dtype=torch.long, device=mean.device)
            return WeightGaussian(mean, self.log_sigma.mean()[None], Alike(one, one))
        return WeightGaussian(self._next(scaled, net, left, None, spec), self.log_sigma.clone(), layout)  # as it is now

    def land(
        self, scaled: Tensor, action: Tensor, steps_left: Tensor | int, net: Network, spec: Tensor | None = None
    ) -> Tensor:
        """The next weights [net weights], in scale units, that an action leads to: itself, or what its code decodes to."""
        if not self.code_dim:
            return action
        return self._next(scaled, net, _as_steps(steps_left, scaled), action, spec)

    def _next(self, scaled: Tensor, net: Network, steps_left: Tensor, code: Tensor | None, spec: Tensor | None) -> Tensor:
        layout, extra = self.layout(net), self._told(spec, len(scaled)) | ({} if code is None else {"code": code})
        change = layout.decode(self.trunk(layout.encode(scaled), layout, steps_left, **extra))
        if self.imagined is not None:
            change = change + self.imagined(scaled, self.scale(net), steps_left, net, layout)
        if self.config.action.head == "delta":
            change += scaled  # in place: of a large net every copy counts
        return positive_variances(change, net)

    def judge(self, scaled: Tensor, net: Network) -> Tensor:
        """The critic's word on weights [net weights] in scale units: how far behind the best k they are now and would be
        after 1 … k_max more steps [net k_max + 1] (`critic.lag`).

        Raises: InputError where the policy has no critic.
        """
        if self.critic is None:
            raise InputError("this policy has no early-stop critic; train one with synthnet critic, or pass --steps K")
        layout = self.layout(net)
        with torch.no_grad():
            features = self.trunk.features(layout.encode(scaled), layout, _as_steps(1, scaled))
        return self.critic(features)

    def _build_critic(self) -> Critic:
        self._check_features("critic")
        return Critic(self.trunk.head.in_features, self.config.critic, self.config.k_max)

    def _build_imagined(self) -> Imagined:
        nets = [network_of(arch) for arch in self.archs]
        if len(sizes := sorted({io_sizes(net) for net in nets})) > 1:
            raise InputError(f"imagined examples need nets of the same inputs and classes, got {sizes}")
        return Imagined(self.config.imagined, self.config.k_max, len(self.vocabulary), nets[0])

    def _check_features(self, what: str) -> None:
        if not hasattr(self.trunk, "features"):
            raise InputError(f"trunk {self.config.backbone['name']} has no {what}: that needs a trunk over tokens=unit")
        if what == "critic" and self.reads_spec:
            raise InputError("a critic foresees one task; this policy is told which variant of one a net is for")

    def with_code(self, dims: int, seed: int) -> "Policy":
        """The same policy with latent codes of `dims` numbers as its actions: its mean code is zero, which decodes to what
        it did before. Raises: InputError where its trunk has no codes."""
        self._check_features("latent codes")
        return regrown(self, replace(self.config, backbone={**self.config.backbone, "code": dims}), "code", seed)

    def with_critic(self, hidden: int, seed: int) -> "Policy":
        """The same policy with a fresh critic. Raises: InputError where its trunk cannot feed one."""
        self._check_features("critic")
        return regrown(self, replace(self.config, critic=hidden), "critic", seed)

    def drop_critic(self) -> None:
        """Forget the critic, as a stage does that changes what it foresaw."""
        self.critic, self.config.critic = None, 0

    def auxiliary_loss(self) -> tuple[Tensor | float, dict[str, float]]:
        """What mixtures of experts in the trunk add to a stage's loss since the last call, and their load: the largest share
        of tokens that one expert got, mean and worst over layers. Nothing where there are none."""
        parts = mixtures(self.trunk)
        if not any(mixture.passes for mixture in parts):
            return 0.0, {}
        loads = torch.stack([mixture.load.max() for mixture in parts if mixture.load is not None])
        loss = torch.stack([mixture.auxiliary_loss() for mixture in parts if mixture.passes]).sum()
        return loss, {"moe/load_max": loads.max().item(), "moe/load_mean": loads.mean().item(), "moe/loss": loss.item()}

    @property
    def settings(self) -> dict[str, float]:
        """What the trunk's mixtures of experts read at every forward: temperature and balance; {} where there are none."""
        parts = mixtures(self.trunk)
        return {"temperature": parts[0].temperature, "balance": parts[0].balance} if parts else {}

    @settings.setter
    def settings(self, values: dict[str, float]) -> None:
        self.config.backbone = {**self.config.backbone, **values}  # so that the policy's file says so too
        for part in mixtures(self.trunk):
            part.temperature, part.balance = values["temperature"], values["balance"]

    def scale(self, net: Network) -> Tensor:
        """The scale of each weight [weights]: a function of names and shapes, never of the input file's values."""
        return init_scale(net.spec).to(self.device)

    def synthesize(self, start: Any, steps: int | str | None = None, spec: Mapping[str, float] | None = None) -> Any:
        """Working weights from random ones, as `synthnet.synthesize` makes them: of a module, which is filled in place and
        returned, a state dict, or a file, which gives a `WeightState`. spec: which variant of its task the net is for, by
        name, where the policy is told. Raises: InputError for a net that it does not cover."""
        from synthnet.policy.serving import serve

        return serve(self, start, steps, spec)

    # --- files -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict:
        """The metadata that a policy file carries."""
        return {
            "format": POLICY_FORMAT,
            "config": asdict(self.config),
            "archs": [arch.to_dict() for arch in self.archs],
            "vocabulary": self.vocabulary,
            **({"data_sets": self.data_sets} if self.data_sets else {}),
            **({"spec": self.variants.to_json()} if self.variants else {}),
            "record": self.record,
        }

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32, record: dict | None = None) -> None:
        """Write the policy, with another record than its own where one is given; float16 halves the file, and loading computes
        in float32 again."""
        tensors = {name: value.to(dtype) for name, value in self.state_dict().items()}
        described = {**self.describe(), **({} if record is None else {"record": record})}
        write_safetensors(path, tensors, {"format": "pt", "synthnet.policy": json.dumps(described)})


def _as_steps(steps_left: Tensor | int, scaled: Tensor) -> Tensor:
    return torch.full((len(scaled),), steps_left, device=scaled.device) if isinstance(steps_left, int) else steps_left
