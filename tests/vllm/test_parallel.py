"""Two processes share a model, by heads (tensor parallel) or by layers (pipeline parallel): each worker finds the
shared prompts in its own block tables, and the answers are those of one process."""
import pytest
import torch
from engines import engine, greedy, random_model
from serving import LOOKUP, handbook
from test_engine import agree, random_prompts


@pytest.fixture(autouse=True)
def one_thread_a_worker(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # restored afterwards: vLLM sets it from torch's number
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answered(model, asks, sampling, **options):
    """What is answered, and each worker's counters."""
    with engine(model, "relay", max_model_len=1024, max_num_batched_tokens=1024, **options) as llm:
        before = llm.collective_rpc("relay_counters")
        outputs = llm.generate(asks, sampling, use_tqdm=False)
        did = [{name: now[name] - then[name] for name in now}
               for now, then in zip(llm.collective_rpc("relay_counters"), before)]
    return outputs, did


def relayed_alike(workers):
    """Two workers, both of which relayed, and the same."""
    return len(workers) == 2 and workers[0] == workers[1] and workers[0]["relayed_steps"] > 0


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    path, requests = handbook(tmp_path_factory.mktemp("book"), 120, 24, 17)
    with open(path) as f:
        text = f.read().rstrip("\n")
    return [f"{text} {request['text']}" for request in requests], [request["expected"] for request in requests]


@pytest.fixture(scope="module")
def alone(asked):
    """One process."""
    outputs, workers = answered(LOOKUP, asked[0], greedy(8))
    assert len(workers) == 1 and workers[0]["relayed_steps"] > 0
    texts = [output.outputs[0].text for output in outputs]
    assert [text.strip() for text in texts] == asked[1]
    return texts


def test_tensor_parallel(asked, alone):
    """4 query and 2 kv heads: each worker has half of them."""
    outputs, workers = answered(LOOKUP, asked[0], greedy(8), tensor_parallel_size=2, distributed_executor_backend="mp")
    assert [output.outputs[0].text for output in outputs] == alone
    assert relayed_alike(workers)


@pytest.mark.long
def test_tensor_parallel_random_model(tmp_path):
    """8/2 heads in 4/1 and 4/1; what the workers add up is rounded in another order."""
    model, asks = random_model(tmp_path, "Llama"), random_prompts(24, 3)
    sampling = greedy(12, logprobs=2, ignore_eos=True)
    one, _ = answered(model, asks, sampling)
    two, workers = answered(model, asks, sampling, tensor_parallel_size=2, distributed_executor_backend="mp")
    assert agree(two, one) > 150
    assert relayed_alike(workers)


@pytest.mark.long
def test_pipeline_parallel(asked, alone, monkeypatch):
    """Two layers each. vLLM 0.9.1 needs its engine in a process of its own for this, as it is by default."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    outputs, workers = answered(LOOKUP, asked[0], greedy(8), pipeline_parallel_size=2, distributed_executor_backend="mp")
    assert [output.outputs[0].text for output in outputs] == alone
    assert relayed_alike(workers)
