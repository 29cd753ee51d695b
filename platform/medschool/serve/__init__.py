"""From a checkpoint to HTTP: the OpenAI chat surface over a trained model, on Ray Serve.

    client --HTTP--> gate (key, limits, size, time) --> api --token ids--> engine --token ids--> api --text--> client
                     admission, keys, quota             request, chat,     watch, engine,        answers, reply
                     deadline, proxy (HTTP server)      completions        paged                 audit, metrics, turn

- The *gate* lets in who has a key, as often as the key may ask, with a body that is small and comes in time. Nobody else
  reaches anything but `/health/live` and the files of the chat page (`page`), a client like any other; `votes` keeps what a
  person votes there.
- The *engine* knows token ids only: `EchoEngine` repeats the prompt (no weights; for tests and load trials),
  `TransformersEngine` runs a LLaMA-style model with continuous batching over a paged cache of fixed size, and `VllmEngine`
  hands them to vLLM, for GPUs and many answers at once.
- The *template* turns messages into token ids with the checkpoint's own chat_template.jinja, so tuning, evaluation and
  serving see the same prompt; what a user types can never become a control token.
- `on_ray` puts gate, api and engine into one Serve deployment: a replica is one process with one copy of the weights. `scaling`
  says how many there are, `rollout` and `probe` how a new version takes over, `watch` when one is replaced, `drain` how one goes.
- `adapters`: low-rank adapters over that copy, each a model of its own to clients; by vLLM alone.

What comes out is a language model's text, not for clinical use; every answer says so in a header.

Example:
    >>> from medschool.serve.admission import Limits
    >>> from medschool.serve.api import ModelInfo, build_api
    >>> from medschool.serve.engine import EchoEngine
    >>> from medschool.serve.keys import Key, KeyRing, hash_key
    >>> from medschool.serve.template import BytesText
    >>> ring = KeyRing([Key("me", hash_key("a secret"), requests_per_minute=60)])
    >>> app = build_api(EchoEngine(), BytesText(), ModelInfo("echo", "none", 0), ring, Limits(2048, 8))  # any ASGI server
"""
