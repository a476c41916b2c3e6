"""From a model to tokens: one loop per topology (independent rows, groups of beams), none per model family."""

from textwright.decoding.beam import Beam, beam_search
from textwright.decoding.engine import Engine, Result, collect, generate
from textwright.decoding.rows import Event, Request
from textwright.decoding.settings import Sampling
from textwright.decoding.steering import Steering
from textwright.decoding.stops import StopStrings

__all__ = [
    "Beam",
    "Engine",
    "Event",
    "Request",
    "Result",
    "Sampling",
    "Steering",
    "StopStrings",
    "beam_search",
    "collect",
    "generate",
]
