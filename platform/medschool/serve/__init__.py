"""From a checkpoint to HTTP: the OpenAI chat surface over a trained model, on Ray Serve.

    client --HTTP--> gate (key, size) --> api (chat completions) --token ids--> engine --token ids--> api --text--> client
                     admission.py         api.py, chat.py                       engine.py, paged.py   template.py

- The *engine* knows token ids only: `EchoEngine` repeats the prompt (no weights; for tests and load trials), and
  `TransformersEngine` runs a LLaMA-style model with continuous batching over a paged cache of fixed size.
- The *template* turns messages into token ids with the checkpoint's own chat_template.jinja, so tuning, evaluation and
  serving see the same prompt; what a user types can never become a control token.
- `on_ray` puts gate, api and engine into one Serve deployment: a replica is one process with one copy of the weights.

What comes out is a language model's text, not for clinical use; every answer says so in a header.

Example:
    >>> from medschool.serve.api import Limits, ModelInfo, build_api
    >>> from medschool.serve.engine import EchoEngine
    >>> from medschool.serve.template import BytesText
    >>> app = build_api(EchoEngine(), BytesText(), ModelInfo("echo", "none", 0), [key_hash], Limits(2048, 8))  # any ASGI server
"""
