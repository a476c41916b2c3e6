"""Model families behind one contract (see `base`). Models know integers: no tokenizer, optimiser or process group."""

from typing import Annotated

from pydantic import Field

from textwright.models.base import BaseConfig, EncoderDecoder, LanguageModel, Output, Source
from textwright.models.encdec import EncoderDecoderConfig
from textwright.models.pretrained import PretrainedConfig
from textwright.models.pretrained_pairs import PretrainedPairsConfig
from textwright.models.rnn import GRUConfig, LSTMConfig, RNNConfig
from textwright.models.seq2seq import Seq2SeqConfig
from textwright.models.state import State
from textwright.models.transformer import TransformerConfig

TextModelConfig = Annotated[
    RNNConfig | GRUConfig | LSTMConfig | TransformerConfig | PretrainedConfig, Field(discriminator="family")
]
PairModelConfig = Annotated[Seq2SeqConfig | EncoderDecoderConfig | PretrainedPairsConfig, Field(discriminator="family")]

__all__ = [
    "BaseConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "GRUConfig",
    "LSTMConfig",
    "LanguageModel",
    "Output",
    "PairModelConfig",
    "PretrainedConfig",
    "PretrainedPairsConfig",
    "RNNConfig",
    "Seq2SeqConfig",
    "Source",
    "State",
    "TextModelConfig",
    "TransformerConfig",
]
