"""From token rows and a model to a better model: continued training with DeepSpeed under Ray Train.

    model artifact + ordered rows --loop, one process a worker--> checkpoints (training state) --export--> safetensors + tokenizer

- `model`: loads the weights, keeps documents in one row apart, sums the loss.
- `schedule`, `zero`: learning rate, and the DeepSpeed configuration derived from the recipe.
- `checkpoint`: training state in the store, manifest last, hashes checked before anything is loaded.
- `guard`: which updates are made; `veto`: leaves one out; `skips`: what is kept of it. `memory`: what is done when it runs out.
- `loop`: the steps, knowing neither Ray nor the store. `on_ray`: the worker group around it.
"""
