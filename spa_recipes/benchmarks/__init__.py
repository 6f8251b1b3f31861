"""AlpacaEval and MT-Bench: their files, and the figures computed from them. No model runs here."""
