"""A stub of a model's API, as OpenAI's looks: it wants a key, asks for a tool once, and believes what the tool says.

    model.py KEY-FILE

Listens on a free port of the loopback and prints it. It answers what a model could; nothing of it is intelligent.
"""

import http.server
import json
import sys

PROGRAM = """a, b = 0, 1
for _ in range(50):
    a, b = b, a + b
print(a)"""

with open(sys.argv[1]) as file:
    KEY = file.read().strip()


def reply(messages):
    said = [message["content"].strip() for message in messages if message["role"] == "tool"]
    if said:
        return {"role": "assistant", "content": f"The 50th Fibonacci number is {said[-1]}."}
    call = {"name": "python", "arguments": json.dumps({"program": PROGRAM})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}


class Model(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.say(401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}})
        if self.path != "/v1/chat/completions":
            return self.say(404, {"error": {"message": f"Unknown path {self.path}"}})
        message = reply(json.loads(body)["messages"])
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        self.say(200, {"object": "chat.completion", "model": "stub", "choices": [choice]})

    def say(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
print(server.server_address[1], flush=True)
server.serve_forever()
