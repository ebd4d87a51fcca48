#!/usr/bin/env python3
"""Write the golden vectors of tests/tokenizer.rs with llama.cpp.

    golden_tokenizer.py corpus                        tests/golden/tokenizer/corpus.json
    golden_tokenizer.py tiny                          tests/golden/tokenizer/tiny-*.gguf
    golden_tokenizer.py full MODEL.gguf --out F.json  every id, for a model that the tests ship
    golden_tokenizer.py hashes DIR --out F.json       a hash for each text and vocabulary in DIR:
                                                      tests/golden/tokenizer -> tiny.json, VOCABS_DIR -> peer_vocabs.json
    golden_tokenizer.py show MODEL.gguf TEXT          the ids of one text, to look into a mismatch
    golden_tokenizer.py templates TEMPLATES_DIR       templates.json: chat templates rendered by Python's Jinja

VOCABS_DIR and TEMPLATES_DIR are models/ and models/templates/ of llama.cpp, which the source package
of llama-cpp-python carries under vendor/. Needs: pip install llama-cpp-python==0.3.36 gguf jinja2
"""
import argparse, ctypes, datetime, hashlib, json, os, random, struct, sys

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden", "tokenizer")
CORPUS = os.path.join(GOLDEN, "corpus.json")

# Vocabularies that carry merges in another model's shape are read with other rules as well, so that
# every pre-tokenizer is compared and not only those that a vocabulary is at hand for.
OTHER_PRE = {
    "llama-bpe": ["qwen2", "qwen35", "deepseek-v3", "tekken", "gpt-4o", "seed-coder", "bailingmoe", "minicpm5",
                  "smaug-bpe", "glm4", "laguna", "stablelm2", "default", "gpt-2", "falcon", "viking"],
    "gpt-2": ["smollm", "codeshell", "phi-2", "bloom", "deepseek-coder", "deepseek-llm"],
}

# ---------------------------------------------------------------- corpus
PLAIN = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", "\r\n", "\r\n\r\n", " \n ", "a", " a", "a ", "  a  ",
    "Hello world", " Hello world", "Hello World", " Hello World!", "Hello, world!", "   Hello", "    Hello\n    Hello",
    " (", "\n =", "' era", "Hello, y'all! How are you 😁 ?我想在apple工作1314151天~", "!!!!!!", "!!!!!! x",
    "3", "33", "333", "3333", "33333", "333333", "3333333", "33333333", "333333333", "1 2  3   4", "3.14159", "1e-10",
    "0xDEADBEEF", "12,345,678.90", "½ ⅓ Ⅷ ²³ ①②", "٠١٢٣ १२३ ๑๒๓",
    "I'll we'd they've it's don't I'm you're", "I'LL WE'D THEY'VE IT'S DON'T I'M YOU'RE", "'s 't 're 've 'm 'll 'd", "'ſ 'K o'clock ''s '''",
    "Cửa Việt", "Việt Nam đất nước", "нещо на Български", "Привет, мир!", "ΑΒΓ αβγ ς Σ", "שלום עולם", "السلام عليكم",
    "កាន់តែពិសេសអាចខលចេញ", "नमस्ते दुनिया", "สวัสดีชาวโลก", "こんにちは世界", "カタカナ ひらがな 漢字", "한국어 텍스트", "你好，世界！", "中文English混排123",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ (only emoji that has its own token)", "👩‍👩‍👧‍👦👍🏽🇩🇪", "🦙🦙🦙", "e\u0301 e\u0301e\u0301 \u0301", "ﬁ ﬂ ﬀ Ⓐ ａｂｃ ＡＢＣ１２３",
    "\u00a0", "a\u00a0b", "\u2003x\u2009y", "\u3000全角", "\u200b\u200c\u200d", "\ufeffBOM", "x\u0000y", "\u0001\u0002\u001f\u007f", "\u0085next", "\u2028\u2029",
    "\ufffd", "\ue000private", "𝕳𝖊𝖑𝖑𝖔", "𐐀𐐁", "\U000e0041\U0010ffff", "İstanbul ı I i", "ÀÁÂ ñ ç Ø ß ẞ", "ǅ ǆ ᾳ", "a\u0300\u0301\u0302\u0303b",
    "naïve café résumé", "l'été d'où", "“quotes” ‘single’ «guillemets» — – …", "€100 £5 ¥7 $3.50 ₿", "a+b=c <= >= != == ^ ~ ` | & % # @", "~~~ ``` $$$ ^^^ ||| +++ <<<>>>",
    "http://example.com/path?x=1&y=2#frag", "user@example.org", "C:\\Users\\name\\file.txt", "/usr/local/bin", "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "HTTPResponseCode XMLHttpRequest",
    "def f(x):\n    return x + 1\n", "def quick_sort(a):\n    if len(a) <= 1:\n        return a\n    p = a[len(a) // 2]\n    return quick_sort([x for x in a if x < p])\n\nprint(quick_sort([3, 1, 2]))\n",
    "int main(void) {\n\tprintf(\"%d\\n\", 42);\n\treturn 0;\n}\n", "fn main() {\n    let v: Vec<u8> = vec![0; 10];\n    println!(\"{:?}\", &v[..]);\n}\n",
    "for (let i = 0; i < n; i++) {\r\n  a[i] ??= b?.[i] ?? `t${i}`;\r\n}\r\n", "SELECT * FROM t WHERE a = 'x''y' AND b <> 3;\n", "<div class=\"a b\">&nbsp;</div><!-- c -->", "#include <stdio.h>\n#define X(a) #a\n",
    "{\"key\": [1, 2.5, null, true], \"s\": \"\\u00e9\\n\"}", "if x:\n\n\n\n        y\n\t\tz\n \t \tw", "# comment\n\n\n# another\n", "a = b  # c\n\n  \n\nd", "x=1;y=2;;z", "print('a','b' , 'c' )", "\"\"\"doc\nstring\"\"\"", "λx.x ∀x∈ℝ ∑ ∫ √ ≤ ≠ → ⇒",
    "<s>", "</s>", "<unk>", "<s>a</s>", "<|endoftext|>", "a<|endoftext|>b", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", " <|im_end|> <|im_end|>", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<fim_prefix>x<fim_suffix>y<fim_middle>", "<｜begin▁of▁sentence｜>x<｜end▁of▁sentence｜>", "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>", "<|EOT|>", "### Instruction:\nhi\n### Response:\n", "<|user|>\nhi <|end|>\n <|assistant|> \n", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>",
    "[CLS] a [SEP] [MASK] b [PAD]", "<0x0A>", "<0x41>", "▁", "▁▁a", "a▁b", "Ġ", "ĠHello", "Ċ", "<pad> <mask>", "<|im_start", "<|im_end|", "<<|im_end|>>", "<|reserved_special_token_0|>",
    "unaffable UNAFFABLE un-affable", "antidisestablishmentarianism", "xyzzyplughfrobozz", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ab" * 60, " " * 130, "\n" * 40, "\t" * 33, "=" * 90, "-" * 70, "." * 25, "0" * 50, "ha" * 30 + "!" * 20, "字" * 30, "🦀" * 10, " a" * 40, "\n " * 20, " \n" * 20,
    "a \t \n \t b", "a\u00a0\u00a0 b", "x \u3000 y", "end with spaces   ", "end with newline\n", "end with both \n ", "\n leading", " \n\n  \n   x", "w\r\rx", "w\r\n\n\rx", "…\n\n…", "?!\n\nWhat", ".\n", "; }\n\n\n}", "//\n//\n", "a/b/c\n/\n",
    "The quick brown fox jumps over the lazy dog.", "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore.",
]
BYTES = ["ff", "fe61", "61ff62", "c3", "c328", "e282", "e28261", "f09f98", "f09f9861", "80808080", "20ff20", "e4bda0ff", "0aff0a", "68656c6c6fe2", "f8888080", "c3a9c3", "efbf"]
POOLS = [
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "    \t\n\n\r", "'\"`.,;:!?()[]{}<>/\\|@#$%^&*-_=+~", "éèüñçøåßÀÉŽđ", "αβγДЖшאבعج", "你好世界日本語한국어ไทย", "😀🦀👍🏽\u200d\ufe0f", "\u00a0\u3000\u2009\u0085", "²½Ⅳ٣१", "\u0301\u0308\u0e31\u093f", "€£¥©®™±≤→",
]
WORDS = ["def", "return", "self", "import", "print", "the", "of", "in", "function", "'s", "'ll", "'RE", "==", "->", "<|im_end|>", "<s>", "</s>", "<|endoftext|>", "    ", "\n\n", "\r\n", "[SEP]", "1234", "ﬁ", "naïve"]


def corpus():
    rng = random.Random(20240717)
    texts = list(PLAIN)
    for i in range(220):
        parts = []
        for _ in range(rng.randint(1, 14)):
            if rng.random() < 0.35:
                parts.append(rng.choice(WORDS))
            else:
                pool = rng.choice(POOLS)
                parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 5))))
            if rng.random() < 0.3:
                parts.append(" " * rng.randint(1, 3))
        texts.append("".join(parts))
    cases = [{"text": t} for t in dict.fromkeys(texts)] + [{"hex": h} for h in BYTES]
    with open(CORPUS, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases) + "\n]\n")
    print(len(cases), "cases")


def cases():
    return [c["text"].encode() if "text" in c else bytes.fromhex(c["hex"]) for c in json.load(open(CORPUS))]


# ---------------------------------------------------------------- llama.cpp
class Peer:
    def __init__(self, path, pre=None):
        import llama_cpp
        self.c = c = llama_cpp
        self.log = c.llama_log_callback(lambda *_: None)
        c.llama_log_set(self.log, None)
        params = c.llama_model_default_params()
        params.vocab_only = True
        if pre:
            kv = (c.llama_model_kv_override * 2)()
            kv[0].key, kv[0].tag = b"tokenizer.ggml.pre", c.LLAMA_KV_OVERRIDE_TYPE_STR
            kv[0].value.val_str = pre.encode()
            params.kv_overrides = kv
            self.kv = kv
        self.model = c.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        self.vocab = c.llama_model_get_vocab(self.model)
        self.n_vocab = c.llama_vocab_n_tokens(self.vocab)

    def encode(self, data, add_special, parse_special):
        n = 2 * len(data) + 16
        out = (ctypes.c_int32 * n)()
        got = self.c.llama_tokenize(self.vocab, data, len(data), out, n, add_special, parse_special)
        assert got >= 0
        return list(out[:got])

    def piece(self, token, special):
        for n in (64, 65536):
            buf = ctypes.create_string_buffer(n)
            got = self.c.llama_token_to_piece(self.vocab, token, buf, n, 0, special)
            if got >= 0:
                return buf.raw[:got]
        raise AssertionError(token)

    def decode(self, ids, special):
        n = 8 * len(ids) * 16 + 64
        buf, arr = ctypes.create_string_buffer(n), (ctypes.c_int32 * max(1, len(ids)))(*ids)
        got = self.c.llama_detokenize(self.vocab, arr, len(ids), buf, n, False, special)
        assert got >= 0
        return buf.raw[:got]

    def special(self):
        c, v = self.c, self.vocab
        named = dict(bos=c.llama_vocab_bos, eos=c.llama_vocab_eos, eot=c.llama_vocab_eot, sep=c.llama_vocab_sep, pad=c.llama_vocab_pad,
                     fim_prefix=c.llama_vocab_fim_pre, fim_suffix=c.llama_vocab_fim_suf, fim_middle=c.llama_vocab_fim_mid,
                     fim_pad=c.llama_vocab_fim_pad, fim_repo=c.llama_vocab_fim_rep, fim_file_sep=c.llama_vocab_fim_sep)
        out = {k: f(v) for k, f in named.items()}
        out["add_bos"], out["add_eos"] = bool(c.llama_vocab_get_add_bos(v)), bool(c.llama_vocab_get_add_eos(v))
        out["eog"] = [i for i in range(self.n_vocab) if c.llama_vocab_is_eog(v, i)]
        return out

    def pieces_hash(self, special):
        h = hashlib.sha256()
        for i in range(self.n_vocab):
            p = self.piece(i, special)
            h.update(struct.pack("<I", len(p)) + p)
        return h.hexdigest()[:16]


def ids_hash(*lists):
    """FNV-1a of the ids, 0xffffffff after each list; 32 bits are plenty and short."""
    h = 0xcbf29ce484222325
    for ids in lists:
        for i in [*ids, 0xffffffff]:
            for b in struct.pack("<I", i):
                h = (h ^ b) * 0x100000001b3 % (1 << 64)
    return f"{h >> 32:08x}"


def full(path, out):
    p = Peer(path)
    rows = []
    for data in cases():
        both = [p.encode(data, True, True), p.encode(data, False, False)]
        rows.append([*both, p.decode(both[1], False).hex()])
    with open(out, "w") as f:
        head = {"special": p.special(), "pieces": [p.pieces_hash(True), p.pieces_hash(False)]}
        f.write('{"model": %s,\n"cases": [\n' % json.dumps(head))
        f.write(",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]}\n")


def hashes(folder, out):
    rows = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".gguf"):
            continue
        short = name.removeprefix("ggml-vocab-").removesuffix(".gguf")
        if short in ("gemma-4", "nomic-bert-moe"):  # tokenizer models gemma4 and t5, which JetForge refuses
            continue
        for pre in [None] + OTHER_PRE.get(short, []):
            p = Peer(os.path.join(folder, name), pre)
            plain = [p.encode(d, False, False) for d in cases()]
            texts = [ids_hash(p.encode(d, True, True), ids) for d, ids in zip(cases(), plain)]
            decoded = hashlib.sha256()
            for ids in plain:
                text = p.decode(ids, False)
                decoded.update(struct.pack("<I", len(text)) + text)
            rows[f"{short}@{pre}" if pre else short] = {
                "special": p.special(), "pieces": [p.pieces_hash(True), p.pieces_hash(False)],
                "decoded": decoded.hexdigest()[:16], "texts": " ".join(texts)}
            p.c.llama_model_free(p.model)
            print(short, pre, flush=True)
    with open(out, "w") as f:
        f.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n}\n")


# ---------------------------------------------------------------- tiny vocabularies
def tiny():
    import gguf
    sys.path.insert(0, HERE)
    from mkmodel import LETTERS, byte_alphabet, pieces
    import itertools
    T = gguf.TokenType

    def write(name, arch, model, toks, types, scores=None, merges=None, pre=None, **ids):
        w = gguf.GGUFWriter(os.path.join(GOLDEN, name), arch)
        w.add_name(name.removesuffix(".gguf"))
        w.add_context_length(64); w.add_embedding_length(32); w.add_block_count(1); w.add_feed_forward_length(32)
        w.add_head_count(2); w.add_layer_norm_rms_eps(1e-5); w.add_layer_norm_eps(1e-5); w.add_rope_dimension_count(16)
        if arch == "bert":
            w.add_causal_attention(False); w.add_token_type_count(2)
        w.add_tokenizer_model(model)
        if pre:
            w.add_tokenizer_pre(pre)
        w.add_token_list(toks); w.add_token_types(types)
        if scores:
            w.add_token_scores(scores)
        if merges:
            w.add_token_merges(merges)
        for key, value in ids.items():
            if isinstance(value, bool):
                w.add_bool(f"tokenizer.ggml.{key}", value)
            else:
                w.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
        w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

    # SPM: bytes, user-defined runs of spaces, and words whose scores are no frequencies, with ties.
    rng = random.Random(7)
    chars = ["▁"] + [chr(c) for c in range(33, 127)] + list("éüñ你好世界")
    words = list(dict.fromkeys(
        [a + b for a, b in itertools.islice(pieces("▁"), 330)] +
        ["▁the", "he", "th", "ll", "▁H", "el", "lo", "llo", "▁Hello", "▁world", "wor", "ld", "rl", "return", "ret", "urn", "re", "tu", "rn",
         "▁=", "==", "▁==", "你好", "世界", "▁你", "in", "▁in", "pr", "print", "▁print", "int", "▁int", "ha", "hah", "aha", "haha", "aa", "aaa", "aaaa"]))
    toks = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + chars
    types = [T.UNKNOWN, T.CONTROL, T.CONTROL] + [T.BYTE] * 256 + [T.NORMAL] * len(chars)
    words = [x for x in words if x not in toks]
    toks += words + ["▁▁▁▁", "<|im_start|>", "<|im_end|>", "<0xFE>x"]
    toks = list(dict.fromkeys(toks))
    types += [T.NORMAL] * (len(toks) - len(types) - 4) + [T.NORMAL, T.USER_DEFINED, T.NORMAL, T.UNUSED]
    scores = [0.0] * 259 + [float(-rng.randint(0, 40)) / 4 for _ in toks[259:]]
    write("tiny-spm.gguf", "llama", "llama", toks, types, scores, pre="default", bos=1, eos=2)
    write("tiny-phi3.gguf", "llama", "llama",
          toks[:-3] + ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<code>"],
          types[:-3] + [T.CONTROL] * 4 + [T.USER_DEFINED], scores[:-3] + [0.0] * 5, pre="default", bos=1, eos=2,
          add_bos_token=False, add_eos_token=True, add_space_prefix=False)

    # WordPiece.
    letters = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789"] + list("éßж你好世界가")
    signs = list("!\"#$%&'()*+,-./:;<=>?@[]_{}|~€“”")
    bert = ["[PAD]"] + [f"[unused{i}]" for i in range(99)] + ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bert += ["▁" + c for c in letters + signs] + letters
    bert += ["▁hello", "▁world", "▁un", "aff", "able", "▁the", "ing", "▁print", "▁def", "▁return", "▁cafe", "▁naive", "▁res", "ume", "ed", "s", "▁12", "34", "▁privet"]
    bert = list(dict.fromkeys(bert))
    types = [T.CONTROL if t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") else T.NORMAL for t in bert]
    write("tiny-bert.gguf", "bert", "bert", bert, types, unknown=100, seperator=102, padding=0, cls=101, mask=103)

    # Byte-level BPE with user-defined tokens and texts that only look like control tokens.
    merges = [f"{a} {b}" for a, b in itertools.islice(pieces("Ġ"), 300)] + ["Ċ Ċ", "Ċ ĊĊ", "Ã ©", "= =", "1 2", "12 3"]
    merges = list(dict.fromkeys(merges))
    bpe = byte_alphabet()
    merges = [m for m in merges if all(p in bpe or p in {"".join(x.split(" ")) for x in merges} for p in m.split(" "))]
    known, kept = set(bpe), []
    for m in merges:
        a, b = m.split(" ")
        if a in known and b in known and a + b not in known:
            kept.append(m); known.add(a + b); bpe.append(a + b)
    n = len(bpe)
    extra = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<｜end▁of▁sentence｜>", "    x"]
    types = [T.NORMAL] * n + [T.CONTROL, T.CONTROL, T.NORMAL, T.USER_DEFINED, T.CONTROL, T.CONTROL, T.USER_DEFINED, T.USER_DEFINED]
    for pre in ("deepseek-coder", "starcoder", "llama-bpe"):
        write(f"tiny-{pre}.gguf", "llama", "gpt2", bpe + extra, types, merges=kept, pre=pre, bos=n, eos=n + 2)


# ---------------------------------------------------------------- chat templates
CHATS = [
    [("user", "Hi <b> & \"x\"")],
    [("system", "Be brief."), ("user", "  write quick sort  "), ("assistant", "def f(): ..."), ("user", "now in Rust")],
    [("user", "é 你好 🦀"), ("assistant", "ok\n"), ("user", "{{ 1 }}")],
]
TOOLS = [{"type": "function", "function": {"name": "run", "description": "Runs <code> & \"more\" é", "parameters": {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "default": 1.5}, "s": {"type": ["string", "null"], "enum": ["a", None, True]}},
    "required": ["n"]}}}]
NOW = 1720000000


def python_template(source):
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.ext import Extension, loopcontrols
    import jinja2

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

        def _run(self, caller):
            return caller()

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(f)
    return env.from_string(source)


def templates(folder, out):
    import jinja2
    rows = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".jinja"):
            continue
        template = python_template(open(os.path.join(folder, name)).read())
        results = []
        for chat in CHATS:
            for tools in (None, TOOLS):
                messages = [{"role": r, "content": c} for r, c in chat]
                try:
                    text = template.render(messages=messages, tools=tools, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
                except Exception as e:
                    text = None
                results.append(text and hashlib.sha256(text.encode()).hexdigest()[:16])
                if out:
                    with open(os.path.join(out, f"{name}.{len(results) - 1}.txt"), "w") as f:
                        f.write(text or "")
        rows[name] = results
    with open(os.path.join(GOLDEN, "templates.json"), "w") as f:
        f.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n}\n")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("what", choices=["corpus", "tiny", "full", "hashes", "show", "templates"])
    a.add_argument("path", nargs="?")
    a.add_argument("text", nargs="?")
    a.add_argument("--pre")
    a.add_argument("--out")
    o = a.parse_args()
    if o.what == "corpus":
        corpus()
    elif o.what == "tiny":
        tiny()
    elif o.what == "full":
        full(o.path, o.out)
    elif o.what == "hashes":
        hashes(o.path, o.out)
    elif o.what == "templates":
        templates(o.path, o.out)
    else:
        p = Peer(o.path, o.pre)
        data = o.text.encode("utf-8", "surrogateescape")
        for flags in ((True, True), (False, False)):
            ids = p.encode(data, *flags)
            print(*flags, [(i, p.piece(i, True)) for i in ids])


main()
