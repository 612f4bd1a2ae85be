"""Whole answers: vLLM with the relay, without it, and `relay generate`."""
import os
import random

import pytest
from engines import counted, counted_since, engine, greedy, random_model
from serving import LOOKUP, ROOT, Run, handbook

GEMMA = os.path.join(ROOT, "models", "gemma", "checkpoint")
GROUPS = [(60, 3), (250, 5), (120, 7), (30, 11)]  # entries and seed of a handbook


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """200 requests to four handbooks, in an order that puts no group's side by side."""
    paths, requests = {}, []
    for index, (entries, seed) in enumerate(GROUPS):
        path, asks = handbook(tmp_path_factory.mktemp("book"), entries, 50, seed)
        paths[f"g{index}"] = path
        requests += [dict(ask, id=f"g{index} {ask['id']}", system=f"g{index}") for ask in asks]
    random.Random(1).shuffle(requests)
    return paths, requests


@pytest.fixture(scope="module")
def generated(asked, tmp_path_factory):
    """What `relay generate` answers."""
    paths, requests = asked
    folder = tmp_path_factory.mktemp("generate")
    run = Run(folder, requests, "--max-tokens", 8, systems=[f"{name}={path}" for name, path in paths.items()])
    assert run.code == 0, run.err
    return {answer["id"]: answer["text"].strip() for answer in run.lines}


def prompts(asked):
    paths, requests = asked
    texts = {name: open(path).read().rstrip("\n") for name, path in paths.items()}
    return [texts[request["system"]] + " " + request["text"] for request in requests]


@pytest.mark.parametrize("strategy", ["auto", "relay", "plain"])
def test_same_text(asked, generated, strategy):
    requests = asked[1]
    with engine(LOOKUP, strategy) as llm:
        before = counted(llm)
        answers = [out.outputs[0].text.strip() for out in llm.generate(prompts(asked), greedy(8), use_tqdm=False)]
        did = counted_since(llm, before)
    assert answers == [request["expected"] for request in requests]  # 100%
    assert answers == [generated[request["id"]] for request in requests]
    if strategy == "plain":
        assert did["relayed_steps"] == did["groups"] == did["tokens_saved"] == 0 < did["steps"]
    else:
        assert did["relayed_steps"] > 0 and did["groups"] > did["relayed_steps"] and did["tokens_saved"] > 10000


def random_prompts(count, seed):
    """Token ids: three prompts, two of which begin alike, and requests under them or alone."""
    rng = random.Random(seed)
    draw = lambda n: [rng.randrange(100, 4000) for _ in range(n)]
    base = draw(200)
    systems = [base, base + draw(150), draw(330), []]
    return [{"prompt_token_ids": systems[i % 4] + draw(rng.randrange(3, 40))} for i in range(count)]


KINDS = {"llama": ("Llama", {}), "qwen3": ("Qwen3", {}), "mistral": ("Mistral", {"sliding_window": 96}),
         "gemma2": ("Gemma2", {"sliding_window": 96, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 20.0,
                               "final_logit_softcapping": 15.0, "hidden_act": "gelu_pytorch_tanh",
                               "hidden_activation": "gelu_pytorch_tanh"})}


def agree(relayed, plain):
    """Logprobs equal up to bf16's rounding, and the same text while the two best tokens are further apart than that.
    Returns how many tokens were compared."""
    compared = 0
    for one, other in zip(relayed, plain):
        ours, theirs = one.outputs[0], other.outputs[0]
        for token, wanted, mine, its in zip(ours.token_ids, theirs.token_ids, ours.logprobs, theirs.logprobs):
            assert abs(max(p.logprob for p in mine.values()) - max(p.logprob for p in its.values())) < 0.15
            first, second = sorted((p.logprob for p in its.values()), reverse=True)[:2]
            if token != wanted:
                assert first - second < 0.15  # a tie; what follows has another beginning
                break
            compared += 1
    return compared


def both_ways(model, asks, tokens, **options):
    results = {}
    for strategy in ("relay", "plain"):
        with engine(model, strategy, **options) as llm:
            before = counted(llm)
            results[strategy] = llm.generate(asks, greedy(tokens, logprobs=2, ignore_eos=True), use_tqdm=False)
            did = counted_since(llm, before)
        assert (did["relayed_steps"] > 0) == (strategy == "relay")
    return results["relay"], results["plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_random_models(kind, tmp_path):
    name, changes = KINDS[kind]
    model = random_model(tmp_path, name, **changes)
    assert agree(*both_ways(model, random_prompts(24, 3), 12, max_model_len=1024)) > 150


@pytest.mark.skipif(not os.path.exists(os.path.join(GEMMA, "model.safetensors")), reason="models/gemma/fetch not run")
def test_gemma():
    """Windows of 512 tokens in most layers, one kv head of 256; prompts beyond the window."""
    with open(os.path.join(ROOT, "docs", "how-it-works.md")) as f:
        page = f.read()
    systems = [page[:5000], page[:2500] + "\nAnswer in one sentence.\n"]
    questions = ["What is a forest?", "What is a plan?", "Who takes items?", "What is packed?", "What is a page?"]
    asks = [f"{system}\n\nQ: {question}\nA:" for question in questions for system in systems]
    assert agree(*both_ways(GEMMA, asks, 16, max_model_len=2048)) > 100


def test_bad_settings_name_the_field():
    from pydantic import ValidationError
    from relay_attention_port.vllm import SettingsError
    with pytest.raises((SettingsError, ValidationError), match="relay.min_prefix: -3"):
        with engine(LOOKUP, relay={"min_prefix": -3}):
            pass


@pytest.mark.parametrize("options, named", [({"dtype": "float32"}, "dtype torch.float32"),
                                            ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype fp8")])
def test_refused_engines(options, named, monkeypatch):
    from pydantic import ValidationError
    monkeypatch.delenv("VLLM_USE_V1", raising=False)  # vLLM sets it for the process
    with pytest.raises((NotImplementedError, ValidationError), match=named):
        with engine(LOOKUP, **options):
            pass
    monkeypatch.delenv("VLLM_USE_V1", raising=False)
