"""vLLM's engine in this process, one after another, and models for it."""
import gc
import os
from contextlib import contextmanager

import torch
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.gemma2 import Gemma2ForCausalLM
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

# registered as classes: else vLLM starts a process to look at each
for _model in (LlamaForCausalLM, Qwen3ForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM):
    ModelRegistry.register_model(_model.__name__, _model)
ModelRegistry.register_model("MistralForCausalLM", LlamaForCausalLM)


@contextmanager
def engine(model, strategy="auto", **options):
    """An LLM whose relay has that strategy."""
    relay = {"strategy": strategy, **options.pop("relay", {})}
    llm = LLM(str(model), additional_config={"relay": relay}, **{"max_model_len": 4096, "seed": 0, **options})
    try:
        yield llm
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def greedy(tokens, **options):
    return SamplingParams(temperature=0.0, max_tokens=tokens, **options)


def counted(llm):
    (found,) = llm.collective_rpc("relay_counters")
    return found


def counted_since(llm, before):
    return {name: value - before[name] for name, value in counted(llm).items()}


def random_model(folder, kind, **changes):
    """Two layers with random weights, saved as on a model hub, with the lookup model's tokenizer."""
    import shutil
    import transformers
    lookup = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "models", "lookup")
    shape = dict(vocab_size=4066, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=8,
                 num_key_value_heads=2, head_dim=32, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
                 pad_token_id=0, torch_dtype="bfloat16", initializer_range=0.15)
    shape.update(changes)
    torch.manual_seed(5)
    model = getattr(transformers, kind + "ForCausalLM")(getattr(transformers, kind + "Config")(**shape))
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(lookup, name), folder)
    return folder
