"""Conversations as tokens against the Python packages: on the checkpoints that are here, whose texts are written out
because they carry no chat template; and on a tiny tokenizer with one, which `transformers` runs.
"""
import json
import os
import subprocess
import sys

import pytest

tokenizers = pytest.importorskip("tokenizers")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.environ.get("RENDER_CHAT", os.path.join(ROOT, "build", "tests", "render_chat"))
GEMMA = os.path.join(ROOT, "models", "gemma", "checkpoint")
LOOKUP = os.path.join(ROOT, "models", "lookup")
USERS = ["Hello", "  What is this?\n", "naïve 漢字 🙂 <b>", "a\n\nb"]


def rendered(model, talks, template="-"):
    """A line (template's name, tokens) for each (system, user); one run, for a tokeniser takes its time to load."""
    texts = [text for system, user in talks for text in ("-" if system is None else system, user)]
    done = subprocess.run([PROGRAM, model, template, *texts], check=True, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(name, [int(i) for i in ids]) for name, *ids in lines]


@pytest.fixture(scope="module")
def gemma():
    if not os.path.exists(GEMMA):
        pytest.skip("models/gemma/checkpoint is not there: models/gemma/fetch makes it")
    return tokenizers.Tokenizer.from_file(os.path.join(GEMMA, "tokenizer.json"))


def test_gemma(gemma):
    talks = [(system, user) for system in (None, "You are kind.", "Two lines\nof rules. ") for user in USERS]
    lines = rendered(GEMMA, talks, "gemma")
    assert len(lines) == len(talks)
    for (system, user), line in zip(talks, lines):
        first = "" if system is None else system + "\n\n"
        text = f"<bos><start_of_turn>user\n{first}{user.strip()}<end_of_turn>\n<start_of_turn>model\n"
        expected = gemma.encode(text, add_special_tokens=False).ids
        assert expected.count(gemma.token_to_id("<start_of_turn>")) == 2 and expected.count(gemma.token_to_id("<bos>")) == 1
        assert line == ("gemma", expected)


def test_raw_puts_the_tokenisers_own_tokens(gemma):
    talks = [(system, user) for system in (None, "Be kind.") for user in USERS]
    for (system, user), line in zip(talks, rendered(GEMMA, talks), strict=True):
        apart = "" if system is None else system if user[0].isspace() else system + " "
        assert line == ("raw", gemma.encode(apart + user).ids)


# ---- a checkpoint's own template --------------------------------------------

SPECIAL = ["<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>",
           "<|im_end|>", "<think>", "</think>", "<bos>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
           "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
ASSISTANT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TURN = "'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n'"
EACH = "{% for m in messages %}{{ " + TURN + " }}{% endfor %}"
FIRST = "{% set first = messages[0].content if messages[0].role == 'system' else '' %}"
# name of the row: (BOS token, the program; written for this test with what makes each family's unlike the others)
PROGRAMS = {
    "chatml": (None, EACH + ASSISTANT),
    "chatml with BOS": ("<s>", "{{ bos_token }}" + EACH + ASSISTANT),
    "chatml with a default": (None, "{% if messages[0].role != 'system' %}{{ \"<|im_start|>system\\nYou're Tiny.<|im_end|>\\n\" }}"
                              "{% endif %}" + EACH + ASSISTANT),
    "chatml-thinking": (None, EACH + "{{ '<|im_start|>assistant\\n<think>\\n' }}"),
    "qwen3": (None, EACH + ASSISTANT + "{% if enable_thinking is defined and enable_thinking is false %}"
              "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"),
    "llama3": ("<|begin_of_text|>", "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n'"
               " + m.content | trim + '<|eot_id|>' }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"),
    "mistral-tekken": ("<s>", FIRST + "{{ bos_token }}{{ '[INST]' + (first + '\\n\\n' if first else '') + messages[-1].content + '[/INST]' }}"),
    "mistral-v3": ("<s>", FIRST + "{{ bos_token }}{{ '[INST] ' + (first + '\\n\\n' if first else '') + messages[-1].content + '[/INST]' }}"),
    "mistral": ("<s>", FIRST + "{{ bos_token }}{{ ' [INST] ' + (first + '\\n\\n' if first else '') + messages[-1].content + ' [/INST]' }}"),
    "mistral-v7-tekken": ("<s>", FIRST + "{{ bos_token }}{% if first %}{{ '[SYSTEM_PROMPT]' + first + '[/SYSTEM_PROMPT]' }}{% endif %}"
                          "{{ '[INST]' + messages[-1].content + '[/INST]' }}"),
    "llama2": ("<s>", FIRST + "{% if first %}{% set first = '<<SYS>>\\n' + first + '\\n<</SYS>>\\n\\n' %}{% endif %}"
               "{{ bos_token + '[INST] ' + (first + messages[-1].content).strip() + ' [/INST]' }}"),
    "gemma": ("<bos>", FIRST + "{{ bos_token + '<start_of_turn>user\\n' + (first + '\\n\\n' if first else '') + messages[-1].content | trim"
              " + '<end_of_turn>\\n<start_of_turn>model\\n' }}"),
}


def checkpoint(path, bos, program):
    """A directory with a tokenizer of bytes and the families' special tokens."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(sorted(letters))}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": program}
    if bos is not None:
        config["bos_token"] = bos
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize("name", PROGRAMS)
def test_own_template(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    path = checkpoint(tmp_path / "model", *PROGRAMS[name])
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    talks = [(system, user) for system in (None, " You are kind. ", "Two lines\nof rules.") for user in USERS]
    expected = []
    for system, user in talks:
        messages = ([] if system is None else [{"role": "system", "content": system}]) + [{"role": "user", "content": user}]
        expected.append((name.split()[0], tokenizer.apply_chat_template(messages, add_generation_prompt=True)))
    assert rendered(path, talks) == expected


@pytest.mark.parametrize("shape,template", [
    ("llama2", "llama2"), ("mistral_v3", "mistral-v3"), ("tekken", "mistral-tekken"), ("llama3", "llama3.1"), ("qwen3", "qwen3"),
    ("gemma3", "gemma"), ("gemma3", "raw"), ("llama2", "raw"), ("gpt2", "raw")])
def test_system_text_is_tokenised_once(tmp_path, shape, template):
    """render_chat fails where a conversation on its system's stem has other tokens than as one text."""
    tokenizer_shapes = pytest.importorskip("tokenizer_shapes")
    tokenizer_shapes.SHAPES[shape]().save(str(tmp_path / "tokenizer.json"))
    systems = ["The shop opens at 9. It closes at 18, on Sundays at noon.", "Rules:\n\n1. Be kind.\n2. Be short. \n", "x", " ", "a  b"]
    talks = [(system, user) for system in systems for user in [*USERS, "[INST]", "</s> <s>", " \n\n "]]
    assert len(rendered(str(tmp_path), talks, template)) == len(talks)


def test_unlike_template_is_named(tmp_path):
    """A text that is none of those compared is taken by its markers, and says so; one without markers is refused."""
    def run(name, program):
        path = checkpoint(tmp_path / name, None, program)
        return subprocess.run([PROGRAM, path, "-", "-", "Hello"], capture_output=True, text=True)
    known, unlike, strange = run("known", EACH + ASSISTANT), run("unlike", EACH.replace("m.role", "m.role|trim") + ASSISTANT), \
        run("strange", "{{ messages }}")
    assert known.returncode == 0 and known.stderr == ""
    assert unlike.returncode == 0 and 'taken for "chatml"' in unlike.stderr and "--template" in unlike.stderr
    assert strange.returncode == 1 and "not one that is known" in strange.stderr


def test_lookup():
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(LOOKUP, "tokenizer.json"))
    assert rendered(LOOKUP, [("the handbook .", "what ?")]) == [("raw", tokenizer.encode("the handbook . what ?").ids)]
