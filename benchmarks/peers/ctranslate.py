"""CTranslate2: python ctranslate.py SHAPE float32|int8."""

import sys
import tempfile

import ctranslate2
import torch
from ctranslate2.converters.transformers import GPT2Loader, MarianMTLoader
from hugging_face import build
from shapes import NEW, SHAPES, prompts, serve

name, kind = sys.argv[1:]
shape = SHAPES[name]
encdec = name.startswith("encdec")
words = ["<unk>", "<s>", "</s>"] + [f"t{number}" for number in range(3, shape.vocab)]
model = build(name)
folder = tempfile.mkdtemp()
with torch.no_grad():
    spec = (MarianMTLoader() if encdec else GPT2Loader()).get_model_spec(model)
if encdec:
    words.pop()  # it leaves out the padding
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.decoder_start_token = "<s>"
else:
    spec.register_vocabulary(words)
spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
spec.validate()
spec.optimize(quantization=None if kind == "float32" else kind)
spec.save(folder)
del model, spec
writer = (ctranslate2.Translator if encdec else ctranslate2.Generator)(
    folder, device="cpu", compute_type=kind, inter_threads=1, intra_threads=torch.get_num_threads()
)


def write(rows: int, beams: int) -> int:
    texts = [[words[id % len(words)] for id in text] for text in prompts(shape, rows)]
    if encdec:
        results = writer.translate_batch(
            texts, beam_size=beams, min_decoding_length=NEW, max_decoding_length=NEW, max_batch_size=0
        )
        return sum(len(result.hypotheses[0]) for result in results)
    sampling = {"sampling_topk": shape.top_k, "sampling_temperature": 0.8} if shape.top_k and beams == 1 else {}
    results = writer.generate_batch(
        texts, beam_size=beams, min_length=NEW, max_length=NEW, include_prompt_in_result=False, **sampling
    )
    return sum(len(result.sequences_ids[0]) for result in results)


serve(write)
