"""Ask a model that ``workbench serve`` serves, with the openai package.

    pip install openai
    workbench serve -m runs/demo-1                      # prints the token
    WORKBENCH_TOKEN=… python examples/openai_client/chat.py "Hello, what is your name?"

WORKBENCH_URL names another server than http://127.0.0.1:8000/v1.
"""

import os
import sys

import openai


def main() -> None:
    """Write the reply to stdout as it comes, and what it used to stderr."""
    client = openai.OpenAI(
        base_url=os.environ.get("WORKBENCH_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ["WORKBENCH_TOKEN"],
    )
    model = next(iter(client.models.list())).id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": " ".join(sys.argv[1:]) or "Hello!"}],
        temperature=0.7,
        max_tokens=200,
        stream=True,
        stream_options={"include_usage": True},
        # What OpenAI's own servers do not have goes into extra_body.
        extra_body={"min_p": 0.05, "repetition_penalty": 1.05},
    )
    for chunk in stream:
        if chunk.choices:
            sys.stdout.write(chunk.choices[0].delta.content or "")
            sys.stdout.flush()
        elif chunk.usage is not None:
            used = chunk.usage
            sys.stderr.write(f"\n{used.prompt_tokens} + {used.completion_tokens} tokens\n")
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
