"""Tokenizers in the shapes of published models, trained on the spot.

The settings are those of the tokenizer.json files that the families publish; only the vocabularies are small."""
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokenizer_texts import training_text

WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTE_TOKENS = ["<0x%02X>" % i for i in range(256)]


def special(text, **flags):
    return AddedToken(text, special=True, normalized=flags.pop("normalized", False), **flags)


def byte_level(split, specials, vocab_size=3000):
    """Split by an expression, then BPE over bytes."""
    t = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte])
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens([special(s) for s in specials])
    return t


def byte_fallback(normalizer, pre_tokenizer, specials, strip=True, vocab_size=2500):
    """BPE over characters, with byte tokens for those that the vocabulary lacks."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        t.normalizer = normalizer
    if pre_tokenizer is not None:
        t.pre_tokenizer = pre_tokenizer
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    t.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if strip else []))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials + BYTE_TOKENS, limit_alphabet=400,
                                  show_progress=False, max_token_length=16)
    t.train_from_iterator((" ".join(line.split(" ")[i:i + 2]) for line in training_text()
                           for i in range(0, line.count(" ") + 1, 2)), trainer)
    content = json.loads(t.to_str())
    content["added_tokens"] = [a for a in content["added_tokens"] if a["content"] not in BYTE_TOKENS]
    return Tokenizer.from_str(json.dumps(content))


def with_bos(t, bos, *before):
    template = processors.TemplateProcessing(single=bos + " $A", pair=bos + " $A " + bos + ":1 $B:1",
                                             special_tokens=[(bos, t.token_to_id(bos))])
    t.post_processor = processors.Sequence([*before, template]) if before else template
    return t


def edit(t, **changes):
    """Changes fields of the saved form."""
    content = json.loads(t.to_str())
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            content[section][field] = value
        else:
            content[section] = value
    return Tokenizer.from_str(json.dumps(content))


def llama2():
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return with_bos(byte_fallback(normalizer, None, ["<unk>", "<s>", "</s>"]), "<s>")


def mistral_v3():
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return with_bos(byte_fallback(None, metaspace, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]), "<s>")


def llama3():
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    t = edit(byte_level(WORDS % "{1,3}", specials), model__ignore_merges=True)
    return with_bos(t, specials[0], processors.ByteLevel(trim_offsets=False))


def tekken():
    return with_bos(edit(byte_level(TEKKEN, ["<s>", "</s>", "[INST]", "[/INST]"]), model__ignore_merges=True), "<s>")


def qwen2():
    t = byte_level(WORDS % "", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    t.normalizer = normalizers.NFC()
    return edit(t, model__continuing_subword_prefix="", model__end_of_word_suffix="", model__unk_token=None)


def qwen3():
    t = qwen2()
    t.add_tokens([AddedToken(s, special=False, normalized=False)
                  for s in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    return t


def gemma3():
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    t = byte_fallback(normalizers.Replace(" ", "▁"), split, ["<pad>", "<eos>", "<bos>", "<unk>"], strip=False)
    t.add_special_tokens([special(s) for s in ("<start_of_turn>", "<end_of_turn>")])
    t.add_tokens([AddedToken(s, special=False, normalized=False)
                  for s in ("\n\n", "\n\n\n", "▁▁", "▁▁▁▁", "\t\t", "<table>", "<unused0>")])
    return with_bos(t, "<bos>")


def gpt2():
    t = byte_level("x", ["<|endoftext|>"])
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return t


def word_level(pre_tokenizer, normalizer=None):
    t = Tokenizer(models.WordLevel(unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        t.normalizer = normalizer
    t.train_from_iterator(training_text(), trainers.WordLevelTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    return t


def flags():
    """Added tokens with every flag, normalised ones among them."""
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(left=True, right=True)]
    t = word_level(pre_tokenizers.Whitespace(), normalizers.Sequence(steps))
    t.add_tokens([AddedToken("[Word]", single_word=True, normalized=False), AddedToken("fox", single_word=True),
                  AddedToken("LAZY"), AddedToken("naïve", lstrip=True, rstrip=True), AddedToken("the"),
                  AddedToken("ﬁx"), AddedToken("  ", normalized=False)])
    t.add_special_tokens([special("<mask>", lstrip=True), special("<sep>", rstrip=True),
                          special("<both>", lstrip=True, rstrip=True), special("<NORM>", normalized=True)])
    return t


def byte_flags():
    """The same where white space is text, and tokens that lie within others."""
    t = byte_level(WORDS % "{1,3}", [])
    t.add_tokens([AddedToken(s, normalized=False) for s in ("{ab}", "({ab})", "b}", "b})", "word", " \n", "\n ")])
    t.add_tokens([AddedToken("[Word]", single_word=True, normalized=False), AddedToken("al", single_word=True, normalized=False)])
    t.add_special_tokens([special("<mask>", lstrip=True), special("<sep>", rstrip=True),
                          special("<both>", lstrip=True, rstrip=True)])
    return t


def forms(form):
    return lambda: word_level(pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=False)]),
        form())


def behaviour(name, pattern, invert):
    def make():
        t = byte_fallback(None, pre_tokenizers.Split(pattern, name, invert), ["<unk>", "<s>"], vocab_size=1200)
        t.decoder = decoders.Metaspace()
        return t
    return make


def metaspace(scheme, split):
    def make():
        t = byte_fallback(normalizers.Strip(left=True, right=False),
                          pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                   pre_tokenizers.Metaspace("▁", scheme, split)]),
                          ["<unk>", "<s>"], vocab_size=1200)
        t.decoder = decoders.Metaspace("▁", scheme, split)
        return t
    return make


def no_byte_fallback():
    """Unknown characters one by one; an expression that rewrites; a decoder that strips at the end."""
    t = edit(byte_fallback(normalizers.Sequence([normalizers.Replace(Regex(r"\s{2,}|\d+$"), " # "), normalizers.NFD()]),
                           pre_tokenizers.Split(Regex(r"\w+|\h{4}"), "merged_with_next"), ["<unk>", "<s>"]),
             model__fuse_unk=False)
    t.decoder = decoders.Sequence([decoders.Strip("e", 0, 1), decoders.Fuse(), decoders.Strip(" ", 2, 0)])
    # without byte tokens every character that is not in the alphabet is unknown
    content = json.loads(t.to_str())
    content["model"]["byte_fallback"] = False
    content["model"]["merges"] = [" ".join(m) for m in content["model"]["merges"] if " " not in m[0] + m[1]]
    return Tokenizer.from_str(json.dumps(content))


SHAPES = {
    "llama2": llama2, "llama3": llama3, "mistral_v3": mistral_v3, "tekken": tekken, "qwen2": qwen2, "qwen3": qwen3,
    "gemma3": gemma3, "gpt2": gpt2, "flags": flags, "byte_flags": byte_flags, "nfd": forms(normalizers.NFD), "nfkd": forms(normalizers.NFKD),
    "nfkc": forms(normalizers.NFKC), "nfc": forms(normalizers.NFC),
    "removed": behaviour("removed", " ", False), "isolated": behaviour("isolated", Regex(r"\d+| "), False),
    "merged_with_next": behaviour("merged_with_next", Regex(r"\s+"), False),
    "merged_with_previous": behaviour("merged_with_previous", Regex(r"[aeiou]"), False),
    "contiguous": behaviour("contiguous", Regex(r"[aeiou]"), False),
    "inverted": behaviour("removed", Regex(r"\p{L}+"), True),
    "metaspace_always": metaspace("always", True), "metaspace_first": metaspace("first", True),
    "metaspace_never": metaspace("never", False), "no_byte_fallback": no_byte_fallback,
}
