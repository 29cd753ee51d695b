"""The chat application as Serve's command line takes it.

    serve run serve_apps.chat:app model=models:/medschool-quickstart@champion        from the repository's root, until Ctrl-C
    serve deploy serve_apps/chat.yaml                                     on a running cluster

Arguments: `ChatArgs`. The model reference and the API key are resolved once, when the application is built.
"""

from ray import serve

from medschool.serve.on_ray import ChatArgs, application


def app(args: ChatArgs) -> serve.Application:
    """Build the application; Serve turns `key=value` or the YAML's `args` into ChatArgs and refuses unknown names."""
    return application(args)
