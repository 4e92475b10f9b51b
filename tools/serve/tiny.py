"""A tiny Llama with random weights, a tokenizer and an adapter, as Hugging Face and PEFT write them."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = [
    "Rest helps, and so does talking with someone you trust. Sleep well, walk every day, and eat at regular hours.",
    "What is the warning sign of depression? Losing interest in what you liked, sleeping badly, feeling empty.",
    "壓力大的時候，可以先慢慢呼吸，再和信任的人說說話。",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(
    folder: Path, hidden: int = 64, layers: int = 2, positions: int = 512, eos_scale: float = 1.0
) -> tuple[Path, Path]:
    """Writes the model and its adapter; returns their folders. A small `eos_scale` keeps it from ending by chance."""
    base, adapter = folder / "tiny-llama", folder / "tiny-adapter"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(base)

    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=positions, initializer_range=0.2,
        eos_token_id=fast.eos_token_id, bos_token_id=None, pad_token_id=fast.pad_token_id, tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[fast.eos_token_id] *= eos_scale
    model.save_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    for name, parameter in tuned.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(adapter)
    return base, adapter
