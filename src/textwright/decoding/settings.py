"""Everything that may be asked of a sampler, as numbers that belong to one request."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from textwright.config import Config

# setting -> the one without which it would do nothing
NEEDS = {
    "dynamic_exponent": "dynamic_temperature",
    "xtc_threshold": "xtc_probability",
    "mirostat_target": "mirostat",
    "mirostat_rate": "mirostat",
    "dry_base": "dry_multiplier",
    "dry_allowed": "dry_multiplier",
    "dry_window": "dry_multiplier",
    "end_growth_after": "end_growth",
    "watermark_share": "watermark",
    "watermark_key": "watermark",
}
CUTS = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "top_n_sigma")


class Sampling(Config):
    """How the next token is drawn. Every field holds for one request; a batch may mix them freely.

    The defaults switch everything off: the token is drawn from the model's own distribution.
    """

    temperature: float = Field(1.0, ge=0, description="0 takes the most likely token; more than 1 flattens")
    dynamic_temperature: float = Field(
        0.0, ge=0, description="how far the temperature moves: down where the model is sure, up where it is not"
    )
    dynamic_exponent: float = Field(
        1.0, gt=0, description="of the share of the largest entropy, for dynamic_temperature"
    )
    top_k: int = Field(0, ge=0, description="draw among the k most likely tokens; 0: all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw among the fewest tokens whose probabilities reach p")
    min_p: float = Field(0.0, ge=0, lt=1, description="drop tokens less likely than this share of the likeliest")
    typical_p: float = Field(
        1.0, gt=0, le=1, description="draw among the tokens closest to the expected surprise, until they reach p"
    )
    epsilon_cutoff: float = Field(0.0, ge=0, lt=1, description="drop tokens less likely than this")
    eta_cutoff: float = Field(0.0, ge=0, lt=1, description="the same, but less where the model is unsure")
    top_h: float = Field(1.0, gt=0, le=1, description="keep the likeliest tokens up to this share of the entropy")
    top_n_sigma: float = Field(
        0.0, ge=0, description="drop logits more than this many standard deviations below the largest; 0: off"
    )
    xtc_probability: float = Field(0.0, ge=0, le=1, description="how often the likeliest choices are left out")
    xtc_threshold: float = Field(0.1, gt=0, le=0.5, description="what counts as a likely choice, for xtc_probability")
    mirostat: int = Field(0, ge=0, le=2, description="version that holds the surprise at a target; 0: off")
    mirostat_target: float = Field(5.0, gt=0, description="bits a token should surprise by")
    mirostat_rate: float = Field(0.1, gt=0, le=1, description="how fast mirostat corrects itself")
    repetition_penalty: float = Field(1.0, gt=0, description="divide the logit of what already stands in the text")
    presence_penalty: float = Field(0.0, description="subtract from the logit of what was already written")
    frequency_penalty: float = Field(0.0, description="subtract for every time it was already written")
    penalty_window: int = Field(0, ge=0, description="penalties look at so many last tokens; 0: at all")
    dry_multiplier: float = Field(0.0, ge=0, description="penalty for going on as a repeated passage did; 0: off")
    dry_base: float = Field(1.75, ge=1, description="by which it grows with every repeated token")
    dry_allowed: int = Field(2, ge=1, description="repeated tokens that cost just the multiplier; fewer are free")
    dry_window: int = Field(0, ge=0, description="look for repetitions in so many last tokens; 0: in all")
    no_repeat_ngram: int = Field(0, ge=0, description="never write the same n tokens twice; 0: off")
    no_repeat_source_ngram: int = Field(0, ge=0, description="never write n tokens of the source; 0: off")
    end_growth: float = Field(1.0, ge=1, description="the end grows likelier by this factor with every token")
    end_growth_after: int = Field(0, ge=0, description="written tokens after which end_growth begins")
    watermark: float = Field(0.0, ge=0, description="added to the logits of a secret share of the tokens; 0: off")
    watermark_share: float = Field(0.25, gt=0, lt=1, description="the share of the vocabulary that a watermark favours")
    watermark_key: int = Field(15485863, ge=0, lt=2**53, description="what the watermark can be found again with")
    loop_limit: int = Field(0, ge=0, description="end a text that says the same thing so many times in a row; 0: off")

    @model_validator(mode="after")
    def _sense(self) -> Self:
        for name, switch in NEEDS.items():
            if name in self.model_fields_set and self.off(name) is False and self.off(switch):
                raise ValueError(f"{name} does nothing without {switch}: set that, too")
        if self.penalty_window and all(map(self.off, PENALTIES)):
            raise ValueError(f"penalty_window does nothing without one of {', '.join(PENALTIES)}")
        cuts = [name for name in CUTS if not self.off(name)]
        if self.mirostat and cuts:
            raise ValueError(f"mirostat decides itself how many tokens to draw from: leave out {', '.join(cuts)}")
        if self.mirostat and self.temperature == 0:
            raise ValueError("mirostat draws, and temperature 0 does not: leave out one of them")
        if self.loop_limit == 1:
            raise ValueError("loop_limit 1 would end every text: 2 or more, or 0 for off")
        return self

    def off(self, name: str) -> bool:
        """The setting has the value that changes nothing."""
        return bool(getattr(self, name) == Sampling.model_fields[name].default)

    def asked(self) -> dict[str, Any]:
        """The settings that were switched on."""
        return {name: getattr(self, name) for name in Sampling.model_fields if not self.off(name)}


PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
