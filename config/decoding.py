"""Settings of inpainting by iterative decoding."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from config.section import Finite, MaskSchedule, NoBool, PositiveFloat, PositiveInt, Section

RuleName = Literal[
    "listing", "maskgit", "lab", "lab_ceil", "lab_from_zero", "lab_remaining", "lab_sampled"
]
# functions of models/orders.py and utils/data/fill.py
OrderName = Literal["confidence", "random", "halton", "revise"]
HoleFillName = Literal["grey", "mean", "harmonic", "biharmonic"]
CompositeName = Literal["none", "hard", "feather"]


class RuleConfig(Section):
    """A decode rule, spelled out: one choice for each of five questions (docs/decoding.md).

    q: progress at step t of T. g: the mask schedule at q. U, M: tokens of the image hidden at the
    start and now. N: all tokens. p: probability of the chosen token. The defaults are `lab`.
    """

    progress: Literal["(t+1)/T", "t/T", "t/(T-1)"] = "(t+1)/T"
    """Progress q at step t = 0 .. T - 1."""
    hidden: Literal["two curves", "paced", "ceil(gU)", "floor(gU)", "floor(gM)", "floor(gN)"] = (
        "floor(gU)"
    )
    """How many stay hidden; two curves: the report's; paced: floor(gU), but fewer at each step."""
    trust: Literal["p", "log p"] = "p"
    """Confidence in a token before noise."""
    noise: Literal["1-q", "g", "1-g"] = "1-g"
    """Factor of choice_temperature; 1-g grows from step to step."""
    token: Literal["argmax", "sample"] = "argmax"
    """The most probable token, or a sample from the softmax."""

    def __str__(self) -> str:
        return ", ".join(self.model_dump().values())


RULES: dict[str, RuleConfig] = {
    "listing": RuleConfig(hidden="two curves", noise="g"),
    "maskgit": RuleConfig(hidden="paced", trust="log p", noise="1-q", token="sample"),
    "lab": RuleConfig(),
    "lab_ceil": RuleConfig(hidden="ceil(gU)", noise="1-q"),
    "lab_from_zero": RuleConfig(progress="t/T"),
    "lab_remaining": RuleConfig(hidden="floor(gM)"),
    "lab_sampled": RuleConfig(token="sample"),
}


def _form_of_rule(value: Any) -> str:
    return "choices" if isinstance(value, dict | RuleConfig) else "name"


Rule = Annotated[
    Annotated[RuleName, Tag("name")] | Annotated[RuleConfig, Tag("choices")],
    Discriminator(_form_of_rule),
]


class DecodingConfig(Section):
    """Inpainting by iterative decoding (Chang et al. 2022, section 3.2). Read by inpainting.py."""

    rule: Rule = "listing"
    """listing: the report's code. maskgit: the paper's. lab: the commonest in the lab's public
    solutions, lab_*: variants of it. Or the five choices spelled out."""
    mask_schedule: MaskSchedule = "cosine"
    """How fast tokens are revealed (--mask-func)."""
    total_iter: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 10
    """Iterations T of the full schedule."""
    sweet_spot: PositiveInt | None = None
    """Stop after this many iterations, or after total_iter if those are fewer; null: run all."""
    stop: Annotated[Literal["at", "after"], Field(exclude_if=lambda stop: stop == "at")] = "at"
    """at: run sweet_spot iterations. after: one more, as some public solutions do."""
    choice_temperature: Annotated[float, Field(ge=0.0, le=1e6), NoBool] = 4.5
    """Scale of the Gumbel noise on confidences; the rule's noise multiplies it."""
    order: OrderName = "confidence"
    """Which tokens are revealed first; revise may change its own choices, never known ones."""
    token_choice: Literal["rule", "argmax", "sample"] = "rule"
    """The most probable token or a sample; rule: as the rule says."""
    temperature: Annotated[float, Field(ge=1e-6), Finite, NoBool] = 1.0
    """Divides the logits when sampling tokens; confidences are unaffected."""
    hole_fill: HoleFillName = "grey"
    """What fills holes before encoding: the lab's grey, the known mean, or a smooth fill."""
    composite: CompositeName = "none"
    """hard: paste known pixels back; feather: without a seam (always so in images repaired in
    windows)."""
    feather_width: PositiveFloat = 8.0
    """Pixels into the hole over which feather fades out; the default is two tokens."""
    samples: Annotated[int, Field(ge=1, le=1_000, strict=True)] = 1
    """Different repairs of each image; if more than one, file names end in _s0, _s1, ..."""
    step_pictures: bool = True
    """Write the token masks and the image after every step next to the result."""
    comparison: bool = True
    """Write a strip for each image: masked, inpainted and, if known, the ground truth."""
    animation: Literal["none", "gif", "webp"] = "none"
    """Write the image after every step as an animation."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Images at once; auto: depends on the device. Results do not depend on it."""

    @property
    def steps(self) -> int:
        """Iterations that are run."""
        if self.sweet_spot is None:
            return self.total_iter
        return min(self.sweet_spot + (self.stop == "after"), self.total_iter)

    @property
    def choices(self) -> RuleConfig:
        """The rule's five choices."""
        return self.rule if isinstance(self.rule, RuleConfig) else RULES[self.rule]

    @property
    def token(self) -> str:
        """How tokens are chosen: argmax or sample."""
        return self.choices.token if self.token_choice == "rule" else self.token_choice

    @model_validator(mode="after")
    def _samples_differ(self) -> DecodingConfig:
        draws = self.token == "sample"
        is_noisy = self.order in ("confidence", "revise") and self.choice_temperature > 0
        is_gradual = self.mask_schedule != "constant" or self.choices.hidden == "paced"
        order_matters = self.steps > 1 and is_gradual  # else one step decides all tokens
        if self.samples > 1 and not (
            draws or (order_matters and (is_noisy or self.order == "random"))
        ):
            raise ValueError(
                f"samples {self.samples} would all be equal, since nothing is drawn that matters; "
                "allowed is 1, or token_choice sample, or several steps of a schedule other than "
                "constant with choice_temperature above 0"
            )
        return self
