"""Tiny checkpoints of the layouts that published recipes imply: the tensors of each, its config.json and its tokenizer."""

import json
import os

import numpy as np

import checkpoint

WIDTH, INNER, HEADS, ROWS = 8, 16, 2, 40
TOKENS = 32


def config(layout, depth):
    common = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": depth, "num_attention_heads": HEADS,
              "num_key_value_heads": HEADS, "vocab_size": ROWS, "torch_dtype": "float32", "tie_word_embeddings": False,
              "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1}
    own = {
        "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
        "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        "gemma2": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": WIDTH // HEADS, "tie_word_embeddings": True},
        "phi": {"architectures": ["PhiForCausalLM"], "model_type": "phi"},
        "gpt_neox": {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"},
        "bert": {"architectures": ["BertForMaskedLM"], "model_type": "bert", "type_vocab_size": 2},
    }
    return common | own[layout]


def shapes(layout, depth):
    """{name: shape}, in the order of a real checkpoint's files."""
    square, up, down, vector = (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER), (WIDTH,)
    if layout in ("llama", "mistral", "qwen2", "gemma2"):
        out = {"model.embed_tokens.weight": (ROWS, WIDTH)}
        for i in range(depth):
            at = f"model.layers.{i}."
            out[at + "input_layernorm.weight"] = vector
            for name in "qkv":
                out[f"{at}self_attn.{name}_proj.weight"] = square
                if layout == "qwen2":
                    out[f"{at}self_attn.{name}_proj.bias"] = vector
            out[at + "self_attn.o_proj.weight"] = square
            out[at + "mlp.gate_proj.weight"] = out[at + "mlp.up_proj.weight"] = up
            out[at + "mlp.down_proj.weight"] = down
            out[at + "post_attention_layernorm.weight"] = vector
            if layout == "gemma2":
                out[at + "pre_feedforward_layernorm.weight"] = out[at + "post_feedforward_layernorm.weight"] = vector
        out["model.norm.weight"] = vector
        if layout != "gemma2":
            out["lm_head.weight"] = (ROWS, WIDTH)
        return out
    if layout == "phi":
        out = {"model.embed_tokens.weight": (ROWS, WIDTH)}
        for i in range(depth):
            at = f"model.layers.{i}."
            for name, shape in (("input_layernorm", vector), ("self_attn.q_proj", square), ("self_attn.k_proj", square), ("self_attn.v_proj", square),
                                ("self_attn.dense", square), ("mlp.fc1", up), ("mlp.fc2", down)):
                out[f"{at}{name}.weight"], out[f"{at}{name}.bias"] = shape, shape[:1]
        out |= {"model.final_layernorm.weight": vector, "model.final_layernorm.bias": vector, "lm_head.weight": (ROWS, WIDTH), "lm_head.bias": (ROWS,)}
        return out
    if layout == "gpt_neox":
        out = {"gpt_neox.embed_in.weight": (ROWS, WIDTH)}
        for i in range(depth):
            at = f"gpt_neox.layers.{i}."
            for name, shape in (("input_layernorm", vector), ("post_attention_layernorm", vector), ("attention.query_key_value", (3 * WIDTH, WIDTH)),
                                ("attention.dense", square), ("mlp.dense_h_to_4h", up), ("mlp.dense_4h_to_h", down)):
                out[f"{at}{name}.weight"], out[f"{at}{name}.bias"] = shape, shape[:1]
        out |= {"gpt_neox.final_layer_norm.weight": vector, "gpt_neox.final_layer_norm.bias": vector, "embed_out.weight": (ROWS, WIDTH)}
        return out
    if layout == "bert":
        at = "bert.embeddings."
        out = {at + "word_embeddings.weight": (ROWS, WIDTH), at + "position_embeddings.weight": (64, WIDTH), at + "token_type_embeddings.weight": (2, WIDTH),
               at + "LayerNorm.weight": vector, at + "LayerNorm.bias": vector}
        for i in range(depth):
            at = f"bert.encoder.layer.{i}."
            for name, shape in (("attention.self.query", square), ("attention.self.key", square), ("attention.self.value", square),
                                ("attention.output.dense", square), ("attention.output.LayerNorm", vector), ("intermediate.dense", up),
                                ("output.dense", down), ("output.LayerNorm", vector)):
                out[f"{at}{name}.weight"], out[f"{at}{name}.bias"] = shape, shape[:1]
        out |= {"bert.pooler.dense.weight": square, "bert.pooler.dense.bias": vector, "cls.predictions.bias": (ROWS,), "cls.predictions.transform.dense.weight": square, "cls.predictions.transform.dense.bias": vector,
                "cls.predictions.transform.LayerNorm.weight": vector, "cls.predictions.transform.LayerNorm.bias": vector}
        return out
    raise SystemExit(f"unknown layout {layout}")


def tokenizer(folder, own, unknown):
    """A byte-pair tokenizer of 32 tokens in a vocabulary of 40 rows; `own`: how many of them no other model has."""
    letters = [chr(ord("a") + i) for i in range(TOKENS - 4 - own)]
    letters += [f"{os.path.basename(folder)}{i}" for i in range(own)]
    vocab = {"<s>": 0, "</s>": 1, unknown: 2} | {letter: 3 + i for i, letter in enumerate(letters)}
    vocab["ab"] = len(vocab)
    special = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for i, text in enumerate(("<s>", "</s>", unknown))]
    data = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None, "decoder": None,
            "model": {"type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": [["a", "b"]]}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": unknown,
                "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}
    for name, content in (("tokenizer.json", data), ("tokenizer_config.json", settings),
                          ("special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": unknown})):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(data if name == "tokenizer.json" else content, file)


def write(folder, layout, depth, seed, dtype="F32", own_tokens=0):
    """One checkpoint; those of other seeds are fine-tunes of the same base (seed 0)."""
    os.makedirs(folder, exist_ok=True)
    base, own = np.random.default_rng(1), np.random.default_rng(1000 + seed)
    tensors = {}
    for name, shape in shapes(layout, depth).items():
        values = base.standard_normal(shape)
        if seed:
            values = values + 0.05 * own.standard_normal(shape)
        tensors[name] = values.astype(np.float32)
    checkpoint.save(os.path.join(folder, "model.safetensors"), {name: (dtype, checkpoint.encode(values, dtype)) for name, values in tensors.items()})
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config(layout, depth), file)
    # What transformers adds to Qwen2's where it is missing.
    tokenizer(folder, own_tokens, "<|endoftext|>" if layout == "qwen2" else "<unk>")


def write_adapter(folder, base, depth, seed, rank=2):
    """A LoRA adapter of the attention's matrices in PEFT's layout."""
    os.makedirs(folder, exist_ok=True)
    random = np.random.default_rng(2000 + seed)
    tensors = {}
    for i in range(depth):
        for name in "qv":
            at = f"base_model.model.model.layers.{i}.self_attn.{name}_proj."
            tensors[at + "lora_A.weight"] = random.standard_normal((rank, WIDTH)).astype(np.float32)
            tensors[at + "lora_B.weight"] = (0.05 * random.standard_normal((WIDTH, rank))).astype(np.float32)
    checkpoint.save(os.path.join(folder, "adapter_model.safetensors"), {name: ("F32", values) for name, values in tensors.items()})
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
        json.dump({"peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
                   "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": False, "modules_to_save": None}, file)
