"""Tokenizers built here: byte-level BPE over a few sentences, WordPiece for the Q-Former, special tokens by name."""

SENTENCES = (
    "What color is the circle in the image?",
    "Is there a red square on the left of the blue triangle? Yes, there is a red square.",
    "No, there is no green circle at the bottom of the picture.",
    "Describe the image in a few words: a yellow shape, a black line and two white dots.",
    "How many shapes are there? There are three shapes in the image.",
)


def byte_pairs(specials: tuple[str, ...], named: dict[str, str], bos: str | None, eos: str, pad: str, adds_bos=False):
    """A tokenizer of under 500 entries: `specials` first, `named` are those the processor asks for by attribute.

    `adds_bos`: it begins every text with `bos` itself, as Llama's and Gemma's do and Qwen's does not.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(specials) + 100,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=named,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def word_pieces():
    """BERT's tokenizer, as the Q-Former of InstructBLIP reads the instruction with, over the letters."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *".,?:!"]
    return BertTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, model_max_length=512)
