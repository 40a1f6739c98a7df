"""A small sentence encoder in the layout of a Hugging Face model folder, trained here in seconds, without a network.

    python examples/make_bert_folder.py tiny-bert
    python examples/sentence_embeddings.py tiny-bert
    python examples/sentence_embeddings.py tiny-bert --onnx tiny-bert/onnx/model.onnx

A BERT of two layers learns from the text below that sentences of one paragraph belong together, by a contrastive loss,
as sentence encoders are trained. Its WordPiece vocabulary is that of the text. The seed is 0; the folder is under 1 MB.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from bert import Bert, Config
from bert_onnx import write_onnx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SEED = 0
STEPS = 60
# mixtures of each paragraph in a step
SHOWN = 4
LONGEST = 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEMPERATURE = 0.3

TEXT = """
The cook tastes the soup and adds more salt. Bread rises slowly before it goes into the oven. She chops an onion and
fries it in butter. The baker kneads the dough every morning. He peels the potatoes while the water boils. A pinch of
pepper and a little sugar make the sauce better. The cake comes out of the oven and cools on the table. They eat fresh
bread with cheese for dinner. My mother bakes apple pie on Sundays. Stir the rice so that it does not burn. The hot
pan is ready for the fish and the garlic. Our lunch is soup with a slice of bread. The recipe asks for flour, sugar
and two eggs. The kitchen smells of onions and hot butter. Taste the sauce before dinner.

The captain sails the ship out of the harbour. Waves broke over the deck of the old boat. The sailors pull the ropes
and raise the sail. A strong wind drives us along the coast. The lighthouse warns the ships of the rocks. The crew
sleeps below deck during the storm. Gulls follow the fishing boat to the harbour. The anchor holds the vessel in the
bay. He steers the boat by the stars all night. The tide carries the ship out to the open sea. Two sailors mend the
torn sail on the shore. The island lies a day of sailing to the south. The captain looks at the waves and waits for
the wind. A small boat left the harbour before the storm. The ship turns to the coast with the tide.

The violin plays a slow melody. She sings the song in a clear voice. The piano stands in the middle of the concert
hall. The band plays an old tune once more. The singer learns the words of the song by heart. A drum keeps the rhythm
while the guitar plays. The orchestra waits for its conductor. He practises scales on the piano each day. The choir
sings in four voices. The audience claps after the last note. Her violin sounds warm in the small hall. They wrote the
melody first and the words later. The guitar and the drum play the tune. A choir sings the old melody. She plays the
piano in a concert.

The bank lends money at a low interest. He pays the loan back from his savings. The price of the shares fell in one
day. She opens an account and saves a little money each month. The company asks the bank for credit. Taxes are due at
the end of the year. The customer pays the bill with a card. Their debts grew with the interest. An investor buys
shares of the company. The shop gives the change in coins. The budget leaves no money for new debts. The accountant
checks each payment twice. He saved money to pay his debts. The interest on the loan is too high. The company pays the
bill from its account.

The gardener waters the roses in the morning. Tomatoes need sun and rich soil. She plants the seeds in rows. The old
apple tree blossoms in spring. Bees visit the flowers all summer. He cuts the grass and trims the hedge. Weeds grow
between the beans after the rain. The leaves of the oak fall in autumn. A bird builds its nest in the hedge. The soil
is dry and the plants need rain. Put the young plants into the shade. Tulips and roses grow along the path. The seeds
need water and sun. Flowers grow under the apple tree. Bees like the roses in the garden.
"""


@click.command(help=__doc__.partition("\n")[0])
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def main(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise click.ClickException(f"{out} is not empty")
    start = time.perf_counter()
    paragraphs = [sentences(paragraph) for paragraph in TEXT.strip().split("\n\n")]
    tokenizer = made_tokenizer([each for paragraph in paragraphs for each in paragraph])
    model = trained(tokenizer, paragraphs)
    write(out, model, tokenizer)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    click.echo(f"{out}: {size / 1e3:.0f} kB, seed {SEED}, {time.perf_counter() - start:.0f} s")


def sentences(paragraph: str) -> list[str]:
    return [f"{each.strip()}." for each in paragraph.replace("\n", " ").rstrip(" .").split(". ")]


def made_tokenizer(text: list[str]) -> Tokenizer:
    """BERT's: lower case, words and punctuation, WordPiece; other words fall into a stem and its ending, or letters.

    The trainer of `tokenizers` breaks ties by chance, and other tokens would make another model of the same seed.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for each in text for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(each))}
    letters = {letter for word in words for letter in word}
    endings = {word.removeprefix(stem) for word in words for stem in words if len(stem) > 2 and word.startswith(stem)}
    pieces = [*SPECIAL, *sorted(words | letters), *sorted(f"##{ending}" for ending in letters | endings - {""})]
    tokenizer = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    last, first = (("[SEP]", SPECIAL.index("[SEP]")), ("[CLS]", SPECIAL.index("[CLS]")))
    tokenizer.post_processor = processors.BertProcessing(last, first)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=LONGEST)
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


# -- training ------------------------------------------------------------------------------------------------


def vectors(model: Bert, ids: mx.array, mask: mx.array) -> mx.array:
    """Mean of the hidden states, of length 1."""
    kept = mask[..., None]
    mean = (model(ids, mask, mx.zeros_like(ids)) * kept).sum(axis=1) / kept.sum(axis=1)
    return mean / mx.linalg.norm(mean, axis=-1, keepdims=True)


def contrastive(model: Bert, ids: mx.array, mask: mx.array, subjects: mx.array) -> mx.array:
    """How far sentences of one paragraph are from being each other's nearest."""
    found = vectors(model, ids, mask)
    similar = found @ found.T / TEMPERATURE
    similar = similar - 1e4 * mx.eye(len(subjects))
    same = (subjects[:, None] == subjects[None]) & ~mx.eye(len(subjects)).astype(mx.bool_)
    return -((similar - mx.logsumexp(similar, axis=-1, keepdims=True)) * same).sum() / same.sum()


def trained(tokenizer: Tokenizer, paragraphs: list[list[str]]) -> Bert:
    """A model that was shown mixtures of sentences, four for each paragraph in each step."""
    mx.random.seed(SEED)
    rng = np.random.default_rng(SEED)
    model = Bert(
        Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=2 * LONGEST,
        )
    )
    # words first: so few sentences say nothing of positions
    for table in (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings):
        table.weight = 0.1 * table.weight
    optimizer = optim.AdamW(optim.cosine_decay(1e-3, STEPS))
    step = nn.value_and_grad(model, contrastive)
    encoded = [np.array([each.ids for each in tokenizer.encode_batch(paragraph)]) for paragraph in paragraphs]
    longest = max((each != 0).sum(axis=1).max() for each in encoded)
    subjects = mx.repeat(mx.arange(len(paragraphs)), SHOWN)
    for _ in range(STEPS):
        one, other = (np.concatenate([rng.choice(each[:, :longest], SHOWN) for each in encoded]) for _ in range(2))
        # half of the words of one sentence, half of those of another: so that each word counts
        ids = mx.array(np.where(rng.random(one.shape) < 0.5, one, other))
        _, gradients = step(model, ids, (ids != 0).astype(mx.int32), subjects)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    return model


# -- the folder ----------------------------------------------------------------------------------------------


def write(out: Path, model: Bert, tokenizer: Tokenizer) -> None:
    """The files that `sentence-transformers` writes, and an ONNX export where it is found beside them."""
    (out / "1_Pooling").mkdir(parents=True)
    config = asdict(model.config) | {"model_type": "bert", "architectures": ["BertModel"]}
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    limits = {"max_seq_length": LONGEST, "do_lower_case": False}
    for name, content in (
        ("config.json", config),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", limits),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(out / "model.safetensors"), weights, {"format": "pt"})
    write_onnx(model, out / "onnx" / "model.onnx")


if __name__ == "__main__":
    main()
