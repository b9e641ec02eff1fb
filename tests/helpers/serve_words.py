"""A server of made-up tokens, started as `python serve_words.py FOLDER PORT [FILE [OPTION ...]]`.

It has no library that loads slowly, lists itself as vLLM does, and respects stops, bans, seeds and caps. It appends
the folder, its weights' digest, its options and SERVE_WORDS of its environment to FILE. A folder whose name ends in
`broken` makes it end with a message.
"""

import hashlib
import json
import os
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tokenizer: Tokenizer
    folder: str

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply({"data": [{"id": self.folder, "owned_by": "vllm", "max_model_len": 4096}]})
        else:
            self.reply({"version": "0.0"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        bias = {int(token): value for token, value in body.get("logit_bias", {}).items()}
        forced = [token for token, value in bias.items() if value > 0]
        noise = random.Random(str((body["prompt"], body["seed"] if body["temperature"] else 0)))
        stops, ids, finish = body.get("stop_token_ids", []), [], "length"
        while len(ids) < body["max_tokens"]:
            token = forced[0] if forced else noise.randrange(200)
            if token in bias and not forced:
                continue
            ids.append(token)
            if token in stops:
                finish = "stop"
                break
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        scores = {"token_logprobs": [-1.0] * len(ids), "tokens": [""] * len(ids)}
        self.reply({"choices": [{"text": text, "finish_reason": finish, "token_ids": ids, "logprobs": scores}]})

    def reply(self, data: Any) -> None:
        text = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main() -> None:
    folder, port, *rest = sys.argv[1:]
    if folder.endswith("broken"):
        print("loading ...\nRuntimeError: no room for the weights")
        sys.exit(3)
    for file in rest[:1]:
        with Path(file).open("a") as log:
            weights = hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()
            log.write(f"{folder} {weights} {' '.join(rest[1:]) or '-'} {os.environ.get('SERVE_WORDS', '-')}\n")
    Handler.folder, Handler.tokenizer = folder, Tokenizer.from_file(f"{folder}/tokenizer.json")
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
