"""An agent that calls a model: it is asked something, lets the model call tools, and reports the answer.

It runs in a sandbox without a network. The model is behind a tunnel, a port of the sandbox's own loopback, and the key
that the model's API wants is added on the host: neither this program nor anything else in here ever holds it.
"""

import json
import os
import subprocess
import urllib.request

MODEL = f"http://{os.environ['MAYFLY_TUNNEL_MODEL']}/v1/chat/completions"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "python",
            "description": "Run a Python program and return what it prints.",
            "parameters": {
                "type": "object",
                "properties": {"program": {"type": "string"}},
                "required": ["program"],
            },
        },
    }
]
# A model that never comes to an end shall not go on for ever.
MOST_TURNS = 8


def ask(messages):
    body = json.dumps({"model": "stub", "messages": messages, "tools": TOOLS}).encode()
    request = urllib.request.Request(MODEL, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["choices"][0]["message"]


def python(program):
    done = subprocess.run(["python3", "-c", program], capture_output=True, text=True, timeout=20)
    return done.stdout + done.stderr


def main():
    messages = [{"role": "user", "content": "What is the 50th Fibonacci number?"}]
    for _ in range(MOST_TURNS):
        message = ask(messages)
        messages.append(message)
        if not message.get("tool_calls"):
            print(f"answer  {message['content']}")
            return
        for call in message["tool_calls"]:
            program = json.loads(call["function"]["arguments"])["program"]
            result = python(program)
            print(f"tool    {len(program.splitlines())} lines of Python gave {result.strip()}")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    raise SystemExit("the model never came to an end")


main()
