"""Public models by a short name: where they are, under which licence, and how they are exported.

Data, and where a model that was pulled lies. Shapes are those of the published config.json; nobody
has run the weights of the diffusion models through this package yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from ..cache import cache_root
from ..errors import BundleError

NO_COMMERCE = ("-nc", "research", "non-commercial", "noncommercial")
"""Parts of the names of licences that forbid commercial use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a transformer, as far as memory and time depend on them."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    tied: bool
    gated: bool = True
    """Whether the MLP has three matrices, or two."""
    condition: int = 0
    """Width of the condition that layers keep; 0: none."""

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of all layers."""
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = (3 if self.gated else 2) * self.dim * self.hidden
        return self.layers * (attention + mlp + 6 * self.dim * self.condition)

    @property
    def table_weights(self) -> int:
        """Weights of the embedding; the head has as many."""
        return self.vocab * self.dim

    @property
    def parameters(self) -> int:
        """Weights of all matrices."""
        return self.layer_weights + self.table_weights * (1 if self.tied else 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicModel:
    """One public model."""

    hub: str
    """owner/name."""
    licence: str
    """As its card names it."""
    shape: Shape
    block: int | None = None
    """Positions denoised together; 0: the whole canvas; None: it is causal."""
    canvas: int = 2048
    """Positions of the context, or of the canvas that is denoised whole, that are exported."""
    rows: int | None = None
    """Rows of a run; None: those of the block."""
    revision: str = "main"
    tokenizer: str | None = None
    """Where the tokenizer is of a model whose repository has none."""
    tokens_per_run: float | None = None
    """Of a published measurement; None: none was found. A causal model makes one."""
    source: str = ""
    """Of that measurement."""
    download_bytes: int = 2
    """Of a weight in the published file."""
    missing: str = ""
    """What this version lacks to read it; empty: it reads it."""


QWEN3_06B = Shape(
    dim=1024, layers=28, heads=16, kv_heads=8, head_dim=128, hidden=3072, vocab=151936, tied=True
)
QWEN3_17B = Shape(
    dim=2048, layers=28, heads=16, kv_heads=8, head_dim=128, hidden=6144, vocab=151936, tied=True
)
SDAR_17B = replace(QWEN3_17B, tied=False)
QWEN2_05B = Shape(
    dim=896, layers=24, heads=14, kv_heads=2, head_dim=64, hidden=4864, vocab=151936, tied=True
)
QWEN2_15B = Shape(
    dim=1536, layers=28, heads=12, kv_heads=2, head_dim=128, hidden=8960, vocab=151936, tied=True
)
QWEN2_3B = Shape(
    dim=2048, layers=36, heads=16, kv_heads=2, head_dim=128, hidden=11008, vocab=151666, tied=True
)
MINISTRAL_3B = Shape(
    dim=3072, layers=26, heads=32, kv_heads=8, head_dim=128, hidden=9216, vocab=131072, tied=False
)
SMOLLM2 = Shape(
    dim=576, layers=30, heads=9, kv_heads=3, head_dim=64, hidden=1536, vocab=49152, tied=True
)
DDIT_SMALL = Shape(
    dim=768, layers=12, heads=12, kv_heads=12, head_dim=64, hidden=3072, vocab=50258, tied=False,
    gated=False,
)  # fmt: skip
DDIT_MEDIUM = replace(DDIT_SMALL, dim=1024, layers=24, heads=16, kv_heads=16, hidden=4096)
GPT2_TOKENS = "openai-community/gpt2"
SDLM = "SDLM, table 3"
SDAR_8B = "MBD-LMs, SDAR-8B at threshold 0.95"

SHELF: Mapping[str, PublicModel] = {
    "a2d-0.6b-bd3lm": PublicModel(
        hub="dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1", licence="apache-2.0", shape=QWEN3_06B,
        block=32, canvas=1024,
    ),
    "a2d-0.6b-mdlm": PublicModel(
        hub="dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", licence="apache-2.0", shape=QWEN3_06B,
        block=0, canvas=1024,
    ),
    "a2d-coder-0.5b-bd3lm": PublicModel(
        hub="dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-bd3lm-v0.1", licence="apache-2.0",
        shape=QWEN2_05B, block=32, canvas=1024,
    ),
    "a2d-coder-0.5b-mdlm": PublicModel(
        hub="dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1", licence="apache-2.0",
        shape=QWEN2_05B, block=0, canvas=1024,
    ),
    "tide-cross-0.6b": PublicModel(
        hub="TIDE-dllm/distill-LLaDA2-TIDE_Cross", licence="apache-2.0", shape=QWEN3_06B,
        block=32, canvas=1024,
    ),
    "opdlm-0.6b": PublicModel(
        hub="divelab/OPDLM-0.6B", licence="mit", shape=QWEN3_06B, block=4, tokens_per_run=1.0,
        source="OPDLM: static decoding",
    ),
    "opdlm-1.7b": PublicModel(
        hub="divelab/OPDLM-1.7B", licence="mit", shape=QWEN3_17B, block=4, tokens_per_run=1.0,
        source="OPDLM: static decoding",
    ),
    "sdar-1.7b-b4": PublicModel(
        hub="JetLM/SDAR-1.7B-Chat", licence="apache-2.0", shape=SDAR_17B, block=4,
        tokens_per_run=1.25, source=SDAR_8B,
    ),
    "sdar-1.7b-b8": PublicModel(
        hub="JetLM/SDAR-1.7B-Chat-b8", licence="apache-2.0", shape=SDAR_17B, block=8
    ),
    "sdar-1.7b-b32": PublicModel(
        hub="JetLM/SDAR-1.7B-Chat-b32", licence="apache-2.0", shape=SDAR_17B, block=32,
        tokens_per_run=2.54, source=SDAR_8B,
    ),
    "fast-dllm-v2-1.5b": PublicModel(
        hub="Efficient-Large-Model/Fast_dLLM_v2_1.5B", licence="apache-2.0", shape=QWEN2_15B,
        block=32, tokens_per_run=2.5, source="Fast-dLLM v2, 7B",
    ),
    "open-dcoder-0.5b": PublicModel(
        hub="fredzzp/open-dcoder-0.5B", licence="", shape=QWEN2_05B, block=0, canvas=1024
    ),
    "coda-1.7b": PublicModel(
        hub="Salesforce/CoDA-v0-Instruct", licence="cc-by-nc-4.0", shape=SDAR_17B, block=0,
        canvas=1024, download_bytes=4,
    ),
    "mdlm-owt": PublicModel(
        hub="kuleshov-group/mdlm-owt", licence="apache-2.0", shape=DDIT_SMALL, block=0,
        canvas=1024, tokenizer=GPT2_TOKENS, download_bytes=4,
    ),
    **{
        f"bd3lm-owt-b{size}": PublicModel(
            hub=f"kuleshov-group/bd3lm-owt-block_size{size}", licence="apache-2.0",
            shape=DDIT_SMALL, block=size, canvas=1024, tokenizer=GPT2_TOKENS, download_bytes=4,
        )
        for size in (4, 8, 16)
    },
    "sedd-small": PublicModel(
        hub="louaaron/sedd-small", revision="refs/pr/1", licence="", block=0, canvas=1024,
        shape=replace(DDIT_SMALL, condition=128), tokenizer=GPT2_TOKENS, download_bytes=4,
    ),
    "sedd-medium": PublicModel(
        hub="louaaron/sedd-medium", revision="refs/pr/1", licence="", block=0, canvas=1024,
        shape=replace(DDIT_MEDIUM, condition=128), tokenizer=GPT2_TOKENS, download_bytes=4,
    ),
    **{
        name: PublicModel(
            hub=f"s-sahoo/{name}", licence="apache-2.0", block=0, canvas=1024,
            shape=replace(DDIT_SMALL, condition=128), tokenizer=GPT2_TOKENS, download_bytes=4,
        )
        for name in ("duo", "duo-distilled")
    },
    "nemotron-diffusion-3b": PublicModel(
        hub="nvidia/Nemotron-Labs-Diffusion-3B", licence="nvidia-nemotron-open-model-license",
        shape=MINISTRAL_3B, block=32, missing="its rotary positions (YaRN) and its two modes",
    ),
    "sdlm-3b-d4": PublicModel(
        hub="OpenGVLab/SDLM-3B-D4", licence="apache-2.0, qwen-research", shape=QWEN2_3B,
        block=4, rows=20, tokens_per_run=3.42, source=SDLM,
        missing="its windows behind a causal prefix",
    ),
    "sdlm-3b-d8": PublicModel(
        hub="OpenGVLab/SDLM-3B-D8", licence="apache-2.0, qwen-research", shape=QWEN2_3B,
        block=8, rows=72, tokens_per_run=5.41, source=SDLM,
        missing="its windows behind a causal prefix",
    ),
    "smollm2-135m": PublicModel(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct", licence="apache-2.0", shape=SMOLLM2
    ),
    "qwen2.5-0.5b": PublicModel(
        hub="Qwen/Qwen2.5-0.5B-Instruct", licence="apache-2.0", shape=QWEN2_05B
    ),
    "qwen2.5-1.5b": PublicModel(
        hub="Qwen/Qwen2.5-1.5B-Instruct", licence="apache-2.0", shape=QWEN2_15B
    ),
    "qwen3-0.6b": PublicModel(hub="Qwen/Qwen3-0.6B", licence="apache-2.0", shape=QWEN3_06B),
    "qwen3-1.7b": PublicModel(hub="Qwen/Qwen3-1.7B", licence="apache-2.0", shape=QWEN3_17B),
}  # fmt: skip
"""By the name that commands take."""


def forbids_commerce(licence: str) -> bool:
    """Whether a licence is known to forbid commercial use, by its name."""
    return any(part in licence.lower() for part in NO_COMMERCE)


def find_model(name: str) -> PublicModel:
    """Gives a model by its name; BundleError if the shelf has none of it."""
    if name in SHELF:
        return SHELF[name]
    near = get_close_matches(name, SHELF, n=1)
    remedy = f"did you mean {near[0]}?" if near else "dlm-models list shows them"
    raise BundleError(f"the shelf has no model {name!r}; {remedy}")


def shelf_path(name: str) -> Path:
    """Says where a pulled model's bundle lies, or would."""
    return cache_root() / "shelf" / f"{name}.dlm"


def named_bundle(path: str | Path) -> Path:
    """Gives the bundle that a path or a name of the shelf means.

    Raises:
        BundleError: It is a name whose model was not pulled.
    """
    name = str(path)
    if name not in SHELF or Path(path).exists():
        return Path(path)
    place = shelf_path(name)
    if not place.is_file():
        raise BundleError(f"{name} is on the shelf, but not here yet: dlm-models pull {name}")
    return place
