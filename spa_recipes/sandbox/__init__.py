"""A village help desk: a small generated world in which the truth about every preference is known.

- `words`: the lexicon and the sentence patterns, plain data.
- `world`: the prompts, and the authors who answer them well or badly.
- `gold`: the true reward of a reply, computed by parsing its sentences.
- `rows`: training data in the usual forms, demonstrations and labelled preference pairs.
- `model`: a randomly initialised language model and a tokenizer that are just large enough for this world.

All but `model` need the standard library only, and nothing is random beyond the seeds that a caller passes.
"""
