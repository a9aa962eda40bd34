"""Architecture: the sizes of every model and of the plugin, each written once."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from stablesam_jax.errors import InputError

Dtype = Literal["float32", "bfloat16"]

# The mask decoder's own tokens: the IoU token, the mask tokens, of which the first makes the single mask, and HQ-SAM's
# token or SAM 2's. The official SAM 2 has its own before the others; their order changes no result.
MASK_TOKENS = slice(1, 5)
HQ_TOKEN = OBJECT_TOKEN = MASK_TOKENS.stop

OWN = "own_sam"  # name of a model that is none of MODELS


class _Hashable:
    """Base of configurations, by which compiled programs are kept: what was given as a list becomes a tuple."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(_Hashable):
    """SAM's image encoder (segment_anything/build_sam.py)."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]  # blocks whose attention sees the whole grid, from 0
    window_size: int = 14  # cells; side of the windows of all other blocks
    patch_size: int = 16  # pixels

    def __post_init__(self):
        super().__post_init__()
        _check_heads([self.width], [self.heads])
        if not all(0 <= block < self.depth for block in self.global_blocks):
            raise InputError(f"global_blocks are 0 to {self.depth - 1}, one less than depth; got {self.global_blocks}.")

    @property
    def size_multiple(self) -> int:
        """Pixels that must divide the side of the input."""
        return self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyViTConfig(_Hashable):
    """MobileSAM's image encoder (segment_anything_hq/modeling/tiny_vit_sam.py, build_sam_vit_t).

    The first stage is convolutional, the others are windowed transformers; the stages work at strides 4, 8, 16, 16.
    """

    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)  # that of the first stage is never used
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)  # cells, likewise
    classes: int = 1000  # of the ImageNet classifier in official files; nothing reads it
    patch_size: int = 16  # pixels per cell of the image embedding

    def __post_init__(self):
        super().__post_init__()
        if not len(self.widths) == len(self.depths) == len(self.heads) == len(self.window_sizes) == 4:
            raise InputError("widths, depths, heads and window_sizes are of four stages.")
        _check_heads(self.widths, self.heads)

    @property
    def size_multiple(self) -> int:
        """Pixels that must divide the side of the input."""
        return self.patch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiteStage:
    """One row of EfficientNet-Lite0: `repeats` inverted bottlenecks, the first with `stride`."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiteConfig(_Hashable):
    """EfficientNet-Lite0 (Tan and Le 2019, table 1; the Lite variant has fixed stem and no squeeze)."""

    stem_width: int = 32
    stages: tuple[LiteStage, ...] = (
        LiteStage(repeats=1, kernel=3, stride=1, expansion=1, width=16),
        LiteStage(repeats=2, kernel=3, stride=2, expansion=6, width=24),
        LiteStage(repeats=2, kernel=5, stride=2, expansion=6, width=40),
        LiteStage(repeats=3, kernel=3, stride=2, expansion=6, width=80),
        LiteStage(repeats=3, kernel=5, stride=1, expansion=6, width=112),
        LiteStage(repeats=4, kernel=5, stride=2, expansion=6, width=192),
        LiteStage(repeats=1, kernel=3, stride=1, expansion=6, width=320),
    )
    taps: tuple[int, ...] = (1, 2, 4, 6)  # stages whose outputs (strides 4, 8, 16, 32) feed the neck
    patch_size: int = 16  # pixels per cell of the image embedding, after the neck

    @property
    def size_multiple(self) -> int:
        """Pixels that must divide the side of the input: the coarsest tap has stride 32."""
        return 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class HieraConfig(_Hashable):
    """SAM 2's image encoder (sam2/configs/sam2.1): four stages at strides 4, 8, 16, 32, each twice as wide as the last.

    A model with it is a SAM 2 throughout, see `SamConfig.sam2`.
    """

    width: int  # of the first stage
    heads: int  # of the first stage; doubled from stage to stage, like the width
    depths: tuple[int, ...]  # blocks in each stage
    global_blocks: tuple[int, ...]  # blocks whose attention sees the whole map, from 0
    window_sizes: tuple[int, ...] = (8, 4, 14, 7)  # cells; of the other blocks, by stage
    background_size: int = 7  # cells; side of the coarse map of positions, which is enlarged to the grid of stride 4
    patch_size: int = 16  # pixels per cell of the image embedding

    def __post_init__(self):
        super().__post_init__()
        if not len(self.depths) == len(self.window_sizes) == 4 or min(self.depths) < 1:
            raise InputError("depths and window_sizes are of four stages, each of one block or more.")
        _check_heads([self.width], [self.heads])
        first = [sum(self.depths[:stage]) for stage in range(4)]
        inner = {block for block in range(sum(self.depths)) if block not in first[1:]}
        if not set(self.global_blocks) <= inner:
            raise InputError(f"global_blocks may not be the first of stages 2 to 4; got {self.global_blocks}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width * 2**stage for stage in range(4))

    @property
    def size_multiple(self) -> int:
        """Pixels that must divide the side of the input: the last stage has stride 32."""
        return 32


@dataclasses.dataclass(frozen=True)
class Frame:
    """How a picture is resized to the square input of a model; coordinates and masks go the same way."""

    size: int  # S, pixels
    stretched: bool = False
    """False: the longer side becomes S, the rest is padding, as in SAM. True: both sides become S, as in SAM 2."""


class FirstPass(NamedTuple):
    """Limits of a first pass without the plugin, each from 0 to 1; in files a list in this order.

    Fit is the IoU of a prompt's box and the box around its mask.
    """

    fit: float
    """The mask of a prompt with a box is changed if SAM's fit is below this limit."""
    least_fit: float
    """Not if the plugin's own fit is below this one,"""
    lost_fit: float
    """or below SAM's by more than this one."""
    predicted_iou: float
    """The mask of another prompt is changed if SAM's predicted IoU is below this limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginConfig(_Hashable):
    """Stable-SAM's plugin: deformable sampling (DSP, sec. 4.2) and dynamic routing (DRP, sec. 4.3).

    The paper leaves much open; every choice is a field, so that each can be measured.
    """

    attentions: tuple[int, ...] = (0, 2)
    """Token-to-image attentions that read resampled features, one plugin for all: 0 and 1 are the decoder's layers, 2
    is the final one. Figure 3 draws the second layer, which is 1; the text does not say. In our measurements 0 and 2
    gain more with sloppy boxes (results/plugin.md). The features of 0 are the same for all prompts of a picture, so
    they are resampled once."""
    resample: Literal["deform", "cbam", "coordinate", "linear"] = "deform"
    """What happens to the features. deform: deformable sampling. cbam, coordinate: the spatial attention of Table 11,
    which only re-weights them; the paper does not say which one it is. linear, not in the paper: maps of low rank,
    which can be folded into SAM's weights (docs/fold.md)."""
    rank: int = 40
    """Rank of the linear maps. 40 before two attentions makes 82,432 parameters, about as many as the paper's
    plugin."""
    amplitude: Literal["project", "gate", "none"] = "project"
    """x* of deformable sampling. project: W x + b, as figure 3b draws it (the first convolution's output). gate:
    x (1 + W x + b), as the words "feature amplitudes" may be read. none: x itself, offsets only."""
    max_offset_cells: float = 8.0
    """s_p, the largest offset, in cells of a map of 64 x 64 cells; scaled for other maps. The paper calls it
    pre-defined and gives no value."""
    groups: int = 1
    """Number of groups of channels with their own offsets, as in deformable attention. The paper has one group."""
    offset_kernel: int = 5
    """Side in cells of the depthwise convolution of the offset network (figure 3b)."""
    padding: Literal["border", "zeros"] = "border"
    """Values outside the map. border: those of the border, since the text keeps p + delta p within the map. zeros:
    zero."""
    positions: Literal["grid", "resampled"] = "grid"
    """Positional encoding of the keys. grid: that of the original grid. resampled: sampled and mixed in the same way as
    the features. The paper mentions image features only."""
    router: bool = True
    """Whether there is a router (DRP). Without one, as in the rows "+ DSP" of Table 5, alpha is (1, 0)."""
    router_token: Literal["output", "mean"] = "output"
    """t_o, the token that the router reads. output: that of the single mask, also where several masks are decoded; of
    an HQ-SAM, which is trained on the HQ token's mask, the HQ token. mean: the mean of the four mask tokens. The
    paper says "output mask token", and nothing about HQ-SAM."""
    router_width: int = 32
    """Hidden units of the router. The paper gives no number; this one gives its 0.08 M parameters."""
    start: Literal["identity", "perturbed"] = "identity"
    """Initial values. identity: SAM's masks are unchanged before training. perturbed: small random values in the last
    layers of DSP and DRP, so that every layer has a gradient from the first step. The paper does not say."""
    strength: float = 1.0
    """Interpolates between SAM's features (0) and the plugin's (1). Not in the paper. Train with 1; a lower value
    afterwards loses less with exact boxes and keeps most of the gain (results/plugin.md)."""
    first_pass: tuple[float, float, float, float] | None = None
    """Four limits, such as 0.8 0.45 0.2 0.4: the plugin changes a mask only where SAM's own is poor (docs/train.md).
    None: it changes every mask. Not in the paper. Train without."""
    embedding_width: int = 256
    """Channels of keys and tokens."""

    def __post_init__(self):
        super().__post_init__()
        limits = self.first_pass
        if limits is not None and (len(limits) != 4 or not all(0 <= limit <= 1 for limit in limits)):
            raise InputError(f"first_pass has four limits, each from 0 to 1; got {limits}.")
        if not self.attentions or not set(self.attentions) <= {0, 1, 2}:
            raise InputError(f"attentions name some of 0, 1 (decoder layers) and 2 (final); got {self.attentions}.")
        if len(set(self.attentions)) < len(self.attentions):
            raise InputError(f"attentions name each of 0, 1 and 2 once; got {self.attentions}.")
        if self.groups < 1 or self.embedding_width % self.groups:
            raise InputError(f"groups must divide {self.embedding_width} channels; got {self.groups}.")
        if self.router_width < 1:
            raise InputError(f"router_width must be at least 1; got {self.router_width}.")
        if self.offset_kernel < 1 or self.offset_kernel % 2 == 0:
            raise InputError(f"offset_kernel must be odd, to have a centre; got {self.offset_kernel}.")
        if not 0 <= self.max_offset_cells < float("inf"):
            raise InputError(f"max_offset_cells must be a number of cells, 0 or more; got {self.max_offset_cells}.")
        if not isinstance(self.strength, numbers.Real) or not 0 <= self.strength <= 1:
            raise InputError(f"strength is a share, from 0 to 1; got {self.strength!r}.")
        object.__setattr__(self, "strength", float(self.strength))
        if self.resample != "deform" and self.positions == "resampled":
            raise InputError(f"resample {self.resample!r} samples nothing: positions must be 'grid'.")
        if self.resample == "linear" and self.router:
            raise InputError("resample 'linear' is the same map for every prompt: router must be False.")
        if self.rank < 1:
            raise InputError(f"rank must be at least 1; got {self.rank}.")
        for field in dataclasses.fields(self):
            known = get_args(field.type) if get_origin(field.type) is Literal else ()
            if known and (value := getattr(self, field.name)) not in known:
                raise InputError(f"{field.name} is one of {', '.join(known)}; got {value!r}.")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "PluginConfig":
        """A configuration from what JSON gives back; a field that is absent was added since, with a neutral default.

        Raises:
            KeyError, TypeError, ValueError: these are not the fields of a plugin.
        """
        limits = fields.get("first_pass")
        return cls(**fields | {"first_pass": None if limits is None else FirstPass(*limits)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamConfig(_Hashable):
    """A promptable segmenter: image encoder, prompt encoder, mask decoder, and what is added to them."""

    encoder: ViTConfig | TinyViTConfig | LiteConfig | HieraConfig
    hq: bool = False  # HQ-SAM's token and features in the mask decoder
    plugin: PluginConfig | None = None  # Stable-SAM's plugin
    image_size: int = 1024  # pixels; side of the square that the encoder sees
    dtype: Dtype = "float32"  # what layers compute in; parameters are float32 in any case
    embedding_width: int = 256  # channels of the image embedding and of every token
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self):
        super().__post_init__()
        multiple = self.encoder.size_multiple
        if not isinstance(self.image_size, numbers.Integral):
            raise InputError(f"image size {self.image_size!r}: must be a whole number of pixels.")
        object.__setattr__(self, "image_size", int(self.image_size))  # JSON holds no numbers of NumPy
        if self.image_size < multiple or self.image_size % multiple:
            raise InputError(f"image size {self.image_size}: must be a positive multiple of {multiple} pixels.")
        if self.dtype not in get_args(Dtype):
            raise InputError(f"dtype {self.dtype!r}: is one of {', '.join(get_args(Dtype))}, as a string.")
        # Eight heads of half the width attend to the image; an eighth of the width makes the masks.
        if self.embedding_width < 16 or self.embedding_width % 16:
            raise InputError(f"embedding_width {self.embedding_width}: must be a multiple of 16 channels.")
        if self.hq and self.sam2:
            raise InputError("SAM 2 cannot have HQ-SAM's parts; take one of hq_sam_vit_b, hq_sam_vit_l, hq_sam_vit_h.")
        if self.plugin is not None and self.plugin.embedding_width != self.embedding_width:
            raise InputError(
                f"The model's features are {self.embedding_width} channels wide, the plugin's "
                f"{self.plugin.embedding_width}."
            )

    @property
    def sam2(self) -> bool:
        """Whether it is a SAM 2: its encoder implies its mask decoder, and how pictures and boxes are prepared."""
        return isinstance(self.encoder, HieraConfig)

    @property
    def frame(self) -> Frame:
        """How pictures are resized to the input."""
        return Frame(self.image_size, stretched=self.sam2)

    @property
    def grid_size(self) -> int:
        """G, the side of the image embedding in cells."""
        return self.image_size // self.encoder.patch_size

    @property
    def output_token(self) -> int:
        """Index of the token of the single mask among the decoder's own; of HQ-SAM of the mask that it trains."""
        return HQ_TOKEN if self.hq else MASK_TOKENS.start

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution logits in pixels: 4 G."""
        return 4 * self.grid_size

    @property
    def name(self) -> str:
        """The name in MODELS, which is the same at every input size and dtype and with every plugin; else `OWN`."""
        plain = dataclasses.replace(self, plugin=None)
        for name, known in MODELS.items():
            same = dataclasses.replace(plain, image_size=known.image_size, dtype=known.dtype)
            if dataclasses.replace(known, plugin=None) == same and (known.plugin is None) == (self.plugin is None):
                return name
        return OWN

    @classmethod
    def from_json(cls, fields: dict[str, Any], encoder: str) -> "SamConfig":
        """A configuration of any sizes from what JSON gives back.

        Args:
            fields: of the configuration.
            encoder: name of the class of its encoder's configuration.

        Raises:
            KeyError, TypeError, ValueError: these are not the fields of a model.
        """
        hints = get_type_hints(cls)
        hints["encoder"] = {kind.__name__: kind for kind in get_args(hints["encoder"])}[encoder]
        plugin = None if fields["plugin"] is None else PluginConfig.from_json(fields["plugin"])
        others = {name: _from_json(hints[name], value) for name, value in fields.items() if name != "plugin"}
        return cls(**others, plugin=plugin)


def _check_heads(widths: Sequence[int], heads: Sequence[int]) -> None:
    for width, count in zip(widths, heads, strict=True):
        if count < 1 or width < 1 or width % count:
            raise InputError(f"heads must divide the width; got {count} heads for {width} channels.")


def _from_json(kind: Any, value: Any) -> Any:
    """A dataclass from a dictionary, a tuple from a list, and any other value as it is."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _from_json(hints[name], field) for name, field in value.items()})
    if get_origin(kind) is tuple:
        return tuple(_from_json(get_args(kind)[0], entry) for entry in value)
    return value


def _vit(width: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> SamConfig:
    return SamConfig(encoder=ViTConfig(width=width, depth=depth, heads=heads, global_blocks=global_blocks))


def _hiera(width: int, heads: int, depths: tuple[int, ...], global_blocks: tuple[int, ...], **other: Any) -> SamConfig:
    return SamConfig(encoder=HieraConfig(width=width, heads=heads, depths=depths, global_blocks=global_blocks, **other))


def _family(plain: dict[str, SamConfig], hq_names: dict[str, str]) -> dict[str, SamConfig]:
    """The plain models, the HQ twins that exist, and of each of these the twin with the plugin."""
    hq = {twin: dataclasses.replace(plain[name], hq=True) for name, twin in hq_names.items()}
    stable = {
        f"stable_{name}": dataclasses.replace(config, plugin=PluginConfig()) for name, config in (plain | hq).items()
    }
    return plain | hq | stable


# EfficientNet-Lite's own normalisation: (pixel - 127) / 128.
_NANO = SamConfig(
    encoder=LiteConfig(), image_size=512, pixel_mean=(127.0, 127.0, 127.0), pixel_std=(128.0, 128.0, 128.0)
)

MODELS: dict[str, SamConfig] = _family(
    {
        "sam_vit_b": _vit(768, 12, 12, (2, 5, 8, 11)),
        "sam_vit_l": _vit(1024, 24, 16, (5, 11, 17, 23)),
        "sam_vit_h": _vit(1280, 32, 16, (7, 15, 23, 31)),
        "mobile_sam": SamConfig(encoder=TinyViTConfig()),
        "sam_nano": _NANO,
        "sam2_hiera_t": _hiera(96, 1, (1, 2, 7, 2), (5, 7, 9)),
        "sam2_hiera_s": _hiera(96, 1, (1, 2, 11, 2), (7, 10, 13)),
        "sam2_hiera_b_plus": _hiera(112, 2, (2, 3, 16, 3), (12, 16, 20), background_size=14),
        "sam2_hiera_l": _hiera(144, 2, (2, 6, 36, 4), (23, 33, 43), window_sizes=(8, 4, 16, 8)),
    },
    hq_names={
        "sam_vit_b": "hq_sam_vit_b",
        "sam_vit_l": "hq_sam_vit_l",
        "sam_vit_h": "hq_sam_vit_h",
        "mobile_sam": "hq_sam_vit_tiny",
        "sam_nano": "hq_sam_nano",
    },
)
