"""The names of the files of a LoRA adapter, as peft writes them. Imports nothing, so light commands may know them."""

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
