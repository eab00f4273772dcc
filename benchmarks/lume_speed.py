"""How long LUME takes: 200 rows, a random Llama of ten million parameters, two threads.

    python benchmarks/lume_speed.py [--rows 200] [--threads 2] [--batch 32]

The rows are generated (`bench/generate.py`), half of them to forget. A random model never ends a
text, so each sentence completion costs all of its 256 tokens: this is the worst case.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from steelyard.bench.choices import questions_of
from steelyard.bench.generate import Sizes, documents, generate
from steelyard.bench.lume import evaluate
from steelyard.hf.sources import quiet

VOCABULARY = 4096


def make_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE, trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def make_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with quiet():
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=336,
                intermediate_size=960,
                num_hidden_layers=6,
                num_attention_heads=8,
                max_position_embeddings=1024,
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=0,
            )
        ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    each = -(-given.rows // 20)  # a document of each task has 2 + 6 + 2 rows, in two sets
    made = generate(Sizes(forget=each, retain=each, non_members=each, facts=50))
    rows = [*made.forget, *made.retain]
    tokenizer = make_tokenizer([f"{row['input']} {row['output']}" for row in rows])
    model = make_model()

    began, worked = time.perf_counter(), time.process_time()
    found = evaluate(
        model,
        tokenizer,
        made.forget,
        made.retain,
        members=documents(made.forget),
        non_members=documents(made.non_members),
        mmlu=questions_of(made.general),
        batch=given.batch,
    )
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    print(
        f"LUME, {len(rows)} rows, {found.model['parameters'] / 1e6:.1f} M parameters, "
        f"{given.threads} threads, batch {given.batch}: {seconds:.1f} s "
        f"({worked:.1f} s of processor time; aggregate {found.aggregate:.3f})"
    )


if __name__ == "__main__":
    main()
