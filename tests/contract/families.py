"""Every model configuration that the contract is run on, small enough to enumerate its texts."""

from textwright.models import GRUConfig, LSTMConfig, RNNConfig, TransformerConfig

VOCAB = 7
WINDOW = 16

FAMILIES = {
    "rnn": RNNConfig(vocab=VOCAB, width=16, layers=2),
    "rnn-relu-untied": RNNConfig(vocab=VOCAB, width=16, layers=1, nonlinearity="relu", tied=False),
    "gru": GRUConfig(vocab=VOCAB, width=16, layers=2),
    "lstm": LSTMConfig(vocab=VOCAB, width=16, layers=2),
    "lstm-untied": LSTMConfig(vocab=VOCAB, width=12, layers=1, tied=False),
    "transformer": TransformerConfig(vocab=VOCAB, width=16, layers=2, heads=2, window=WINDOW),
    "gpt2-like": TransformerConfig(
        vocab=VOCAB, width=16, layers=2, heads=2, window=WINDOW, positions="learned", bias=True
    ),
    "llama-like": TransformerConfig(
        vocab=VOCAB,
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        window=WINDOW,
        inner=24,
        norm="rmsnorm",
        feed_forward="swiglu",
        tied=False,
    ),
    "original": TransformerConfig(
        vocab=VOCAB, width=16, layers=2, heads=2, window=WINDOW, positions="sinusoidal", norm_place="post", bias=True
    ),
}
