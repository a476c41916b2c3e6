"""Model families behind one contract (see `base`). Models know integers: no tokenizer, optimiser or process group."""

from typing import Annotated

from pydantic import Field

from textwright.models.base import BaseConfig, LanguageModel, Output, Source
from textwright.models.rnn import GRUConfig, LSTMConfig, RNNConfig
from textwright.models.state import State
from textwright.models.transformer import TransformerConfig

ModelConfig = Annotated[RNNConfig | GRUConfig | LSTMConfig | TransformerConfig, Field(discriminator="family")]

__all__ = [
    "BaseConfig",
    "GRUConfig",
    "LSTMConfig",
    "LanguageModel",
    "ModelConfig",
    "Output",
    "RNNConfig",
    "Source",
    "State",
    "TransformerConfig",
]
