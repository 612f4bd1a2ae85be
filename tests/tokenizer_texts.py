"""Text to try tokenizers with: many scripts, odd spaces, combining marks, code, control characters, broken UTF-8."""
import random
import unicodedata

# Some text of each kind; the generator cuts and mixes it.
SEEDS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? I'LL say we've 12345 reasons; they're 3.14159 each.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Straße, Füße, Ärger, naïve café déjà-vu",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак, ґанок, ўсё",
    "Η γρήγορη καφετιά αλεπού πηδάει πάνω από το τεμπέλικο σκυλί",
    "敏捷的棕色狐狸跳过了懒狗。一二三四五六七八九十，百千万億兆、「引用」《書名》",
    "いろはにほへと ちりぬるを カタカナ ｶﾀｶﾅ 日本語のテキストです。ﾊﾟﾋﾟﾌﾟ",
    "다람쥐 헌 쳇바퀴에 타고파. 한국어 문장입니다",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق ١٢٣٤٥",
    "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश १२३ क़ ख़ ग़",
    "নির্দিষ্ট বাংলা পাঠ্য ৪৫৬ தமிழ் மொழி తెలుగు ಕನ್ನಡ മലയാളം ગુજરાતી ਪੰਜਾਬੀ සිංහල",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ๑๒๓ ພາສາລາວ ភាសាខ្មែរ မြန်မာစာ བོད་སྐད",
    "Հայերեն ქართული አማርኛ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ᠮᠣᠩᠭᠣᠯ ⴰⵎⴰⵣⵉⵖ",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ❤️‍🔥 🧑🏿‍🚀 ☕️ ✨ 1️⃣ 🫠🪿🩷 😀😃😄",
    "é e\u0301 ñ n\u0303 Å A\u030a ộ o\u0302\u0323 o\u0323\u0302 a\u0301\u0323\u0315\u0334 q\u0307\u0323 \u1e9b\u0323 각 "
    "\u1100\u1161\u11a8 \u0344 \u0958 \u2126 \u212b \uf900 \U0002f800",
    "ﬁ ﬂ ﬃ ½ ¾ ² ³ ⅷ Ⅷ ① ㋿ ㌀ ﷺ Ω Å ſ İ ı ß ẞ ǅ ŉ",
    'def f(x, *args, **kw):\n    return {"a": [1, 2, x if x > 0 else -1]}  # comment\n\tif (a && b || !c) { x += 0xFF; }',
    '<html><body class="x">&amp; &lt;tag&gt;</body></html> http://example.org/a?b=c&d=%20#frag user@example.org',
    "SELECT * FROM t WHERE a='b' AND c IN (1,2,3); -- $HOME ${x} `cmd` ~/.bashrc C:\\dir\\file.txt",
    "1234567890 12 123 1234 12345 3.14 -1e-10 0xDEADBEEF 1,000,000 ½ ٣ ४ 五 Ⅻ ²",
    "'S 'T 'Re 'VE 'm 'LL 'd 'ſ can't CAN'T we'Ll it’s don’t",
    "₠ € $ ¥ £ ± × ÷ ≤ ≥ ∞ ∑ √ ∂ → ⇒ ■ □ ▲ ● ★ ♠ ♥ ♪ ‰ † ‡ § ¶ © ® ™ « » „ “ ” ‚ ‘ ’ … – —",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒜𝒷𝒸 𝟘𝟙𝟚 𐍈 𒀀 𓀀 𠀀 𫝀 🀄 𝄞",
]
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", " \n ", "\n \n", "\t\t", "\u00a0", "\u0085",
          "\u1680", "\u180e", "\u2003", "\u2028", "\u2029", "\u200a", "\u200b", "\u202f", "\u205f", "\u3000", "\ufeff",
          " " * 17, "\n" * 9, "▁", "▁▁", " ▁", "\u200d", "\u200c"]
BROKEN = [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80",
          b"\xe0\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xbf\xbf", b"\xf0\x80", b"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"]
BYTE_TOKENS = ["<0x0A>", "<0xE2>", "<0xff>", "<0x+5>", "<0xZZ>"]


def training_text():
    return [line for _ in range(4) for line in SEEDS]


# Letters and symbols of Unicode 15.1, which the package's parts and the engine's libraries know or not, each for
# itself.  What is newer still is unassigned to the Python versions that run this.
UNEVEN = [range(0x2EBF0, 0x2EE5E), range(0x2FFC, 0x3000), range(0x31EF, 0x31F0)]


def any_character(rng):
    """An assigned character from anywhere, or one that never will be."""
    while True:
        code = rng.choice([rng.randrange(0x80), rng.randrange(0x800), rng.randrange(0x3000), rng.randrange(0x10000),
                           rng.randrange(0x10000, 0x20000), rng.randrange(0x20000, 0x33000),
                           rng.randrange(0x50000, 0x110000)])
        assigned = unicodedata.category(chr(code)) not in ("Cn", "Cs") and not any(code in r for r in UNEVEN)
        if assigned or code >= 0x50000:
            return chr(code)


def piece(rng, specials):
    kind = rng.randrange(12)
    seed = rng.choice(SEEDS)
    if kind < 4:
        begin = rng.randrange(len(seed))
        return seed[begin:begin + rng.randrange(1, 40)]
    if kind == 4:
        return rng.choice(SPACES)
    if kind == 5:
        return "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 4)))
    if kind == 6:
        return "".join(any_character(rng) for _ in range(rng.randrange(1, 6)))
    if kind == 7:
        return rng.choice(specials + BYTE_TOKENS) if specials else rng.choice(BYTE_TOKENS)
    if kind == 8:
        return rng.choice(seed) * rng.choice([1, 2, 3, 7, 40])
    if kind == 9:
        return rng.choice(["", rng.choice(SPACES)]) + rng.choice(specials or ["x"]) + rng.choice(["", " ", "  ", "s"])
    if kind == 10:
        return chr(rng.randrange(32))
    return "".join(rng.choice(seed) for _ in range(rng.randrange(1, 12)))


def lines(count, specials, seed=1):
    """`count` byte strings, the same for the same arguments."""
    rng = random.Random(seed)
    out = [b"", b" ", b"\n", b"\x00", "▁".encode(), b"a", b" a", b"\xf0", " ".join(SEEDS).encode()]
    while len(out) < count:
        line = b""
        for _ in range(rng.choice([1, 1, 2, 3, 5, 8])):
            line += piece(rng, specials).encode()
            if rng.randrange(12) == 0:
                line += rng.choice(BROKEN)
        if rng.randrange(40) == 0:  # cut inside a character
            line = line[:rng.randrange(len(line) + 1)]
        out.append(line)
    return out[:count]
