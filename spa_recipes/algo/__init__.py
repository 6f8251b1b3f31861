"""The method as pure functions on tensors; needs torch and nothing else of this package.

Shapes are suffixes of names: B sequences or pairs, T tokens of a padded sequence, N scored tokens, V vocabulary,
D hidden size. Log-probabilities are natural logarithms, summed over the tokens of a response.
"""
